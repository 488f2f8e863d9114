"""One attempt on the VM, from the request that brought it to its end."""

from __future__ import annotations

import base64
from typing import Any

from remuda.workers.onvm.capture import Stream
from remuda.workers.onvm.cgroups import Group
from remuda.workers.onvm.outputs import find_outputs
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.sandbox import inside
from remuda.workers.onvm.usage import Usage, told

NEVER = float("inf")
STREAMS = {"o": "stdout", "er": "stderr"}  # by the key of their content in an entry
LIMIT = 64 << 20  # bytes of stdout, and of stderr, that are kept


class Job:
    """What was asked (short names as in the protocol) and how far it has come."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Read an item of a `start` request.

        KeyError, TypeError or ValueError if it is not even an attempt; for anything else that is
        wrong with it, `why` is set.
        """
        self.spec = spec
        self.a, self.j, self.e = int(spec["a"]), int(spec["j"]), int(spec["e"])
        self.held = False  # has its cores and memory; until then it is queued
        self.pid = 0
        self.started, self.deadline = 0.0, NEVER  # when it is to be ended, or killed if `why`
        self.why, self.message = "", ""  # why it is being ended
        self.killed = False  # its time is over for good: no step of it begins any more
        self.step = ""  # "prologue", "command" or "epilogue": what runs
        self.result: tuple[int | None, int | None, str] = (None, None, "")  # of the command
        self.mark, self.usage = 0, Usage()
        self.group: Group | None = None
        self.cpus: list[int] = []
        self.gpu_ids: list[int] = []
        self.stopped_at, self.stopped_s = 0.0, 0.0  # since when it is suspended; before that
        self.folder = ""
        self.brought_files = self.brought_bytes = 0  # inputs in its sandbox
        self.out: Stream | None = None
        self.err: Stream | None = None
        self.state = "queued"  # then "running", "exited"; or "recalled"
        try:
            self.read(spec)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.why, self.message = "SUBMISSION", f"bad job: {error}"

    def read(self, spec: dict[str, Any]) -> None:
        """Read what is to be done."""
        self.ins: list[tuple[str, str, int]] = []
        self.outs: list[tuple[str, bool]] = []
        self.cores, self.mem, self.follow = 1, 0, False
        self.pin, self.gpus, self.cwd = False, 0, ""
        self.prologue: list[str] = []
        self.epilogue: list[str] = []
        self.argv: list[str] = spec["c"]
        self.env: dict[str, str] = spec.get("env") or {}
        self.ins = [
            (str(name), str(source), int(mode)) for name, source, mode in spec.get("in") or ()
        ]
        self.outs = [(str(name), bool(optional)) for name, optional in spec.get("out") or ()]
        self.cores, self.mem = int(spec.get("cores") or 1), int(spec.get("mem") or 0)
        self.wall = float(spec.get("wall") or NEVER)
        self.limit = int(spec.get("limit") or LIMIT)
        self.follow, self.join = bool(spec.get("follow")), bool(spec.get("join"))
        self.pin, self.gpus = bool(spec.get("pin")), int(spec.get("gpus") or 0)
        self.cwd = inside(str(spec["cwd"]).rstrip("/")) if spec.get("cwd") else ""
        self.prologue, self.epilogue = spec.get("pro") or [], spec.get("epi") or []
        commands = self.argv, self.prologue, self.epilogue
        words = [*self.argv, *self.prologue, *self.epilogue, *self.env, *self.env.values()]
        lists = all(isinstance(command, list) for command in commands)
        if not lists or not all(isinstance(word, str) for word in words):
            raise ValueError("the command is no list of strings, or the environment not of strings")
        least = self.cores < 1 or self.mem < 0 or self.gpus < 0
        if not self.argv or least or not self.wall > 0:
            raise ValueError("no command, or cores, memory, GPUs or walltime below what can be")

    @property
    def suspended(self) -> bool:
        """Whether it is stopped until somebody resumes it."""
        return self.stopped_at > 0

    @property
    def stopped(self) -> float:
        """The seconds it has been suspended, all in all."""
        return self.stopped_s + (now() - self.stopped_at if self.suspended else 0.0)

    def due(self) -> float:
        """Return when its walltime is over; never, as long as it is suspended."""
        return NEVER if self.suspended else self.started + self.wall + self.stopped_s

    def report(
        self,
        why: str,
        message: str,
        *,
        code: int | None = None,
        signal: int | None = None,
        usage: Any = None,
    ) -> dict[str, Any]:
        """Return the exit entry. Its output is complete, its folder what it leaves behind."""
        report: dict[str, Any] = {"t": "exit", "a": self.a, "e": self.e, "st": code, "sig": signal}
        report.update(s=self.started if self.pid else None, x=now(), started=bool(self.pid))
        if usage:
            report.update(told(usage))
        box = bool(self.folder)
        keys = (self.out, "o", "os", "osp"), (self.err, "er", "es", "esp")
        for stream, inline, size, spilled in keys:
            if stream:
                report[size] = stream.total
                if stream.file:
                    report[spilled] = box = True
                    if stream.cut:
                        report.setdefault("cut", {})[STREAMS[inline]] = stream.cut
                elif stream.data:
                    report[inline] = base64.b64encode(stream.data).decode()
                if stream.error:
                    why, message = "STAGING" if why == "OK" else why, message or stream.error
        if self.outs and self.folder:
            found = find_outputs(self.folder, self.outs, {item[0] for item in self.ins})
            report["f"] = found.files
            if found.executable:
                report["fx"] = found.executable
            if found.missing:
                report["miss"] = found.missing
            if found.problem and why == "OK":
                why, message = "STAGING", found.problem
        report["why"] = why
        if message:
            report["msg"] = message
        if box:
            report["box"] = True
        return report
