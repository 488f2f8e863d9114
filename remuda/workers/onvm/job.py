"""One attempt on the VM, from the request that brought it to its end."""

from __future__ import annotations

import base64
from typing import Any

from remuda.workers.onvm.capture import Stream
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.sandbox import size_of

NEVER = float("inf")
LIMIT = 64 << 20  # bytes of stdout, and of stderr, that are kept


class Job:
    """What was asked (short names as in the protocol) and how far it has come."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Read an item of a `start` request.

        KeyError, TypeError or ValueError if it is not even an attempt; for anything else that is
        wrong with it, `why` is set.
        """
        self.a, self.j, self.e = int(spec["a"]), int(spec["j"]), int(spec["e"])
        self.held = False  # has its cores and memory; until then it is queued
        self.pid = 0
        self.started, self.deadline = 0.0, NEVER  # when it is to be ended, or killed if `why`
        self.why, self.message = "", ""  # why it is being ended
        self.folder = ""
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
        words = [*self.argv, *self.env, *self.env.values()]
        if not isinstance(self.argv, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("the command is no list of strings, or the environment not of strings")
        if not self.argv or self.cores < 1 or self.mem < 0 or not self.wall > 0:
            raise ValueError("no command, or cores, memory or walltime below what can be")

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
            report.update(u=usage.ru_utime, sy=usage.ru_stime, rss=usage.ru_maxrss * 1024)
        box = bool(self.folder)
        keys = (self.out, "o", "os", "osp"), (self.err, "er", "es", "esp")
        for stream, inline, size, spilled in keys:
            if stream:
                report[size] = stream.total
                if stream.file:
                    report[spilled] = box = True
                elif stream.data:
                    report[inline] = base64.b64encode(stream.data).decode()
                if stream.error:
                    why, message = "STAGING" if why == "OK" else why, message or stream.error
        if self.outs and self.folder:
            sizes = {name: size_of(self.folder, name) for name, _ in self.outs}
            report["f"] = {name: size for name, size in sizes.items() if size is not None}
            missing = [name for name, optional in self.outs if not optional and sizes[name] is None]
            if missing:
                report["miss"] = missing
                if why == "OK":
                    why, message = "STAGING", f"missing output: {', '.join(missing):.1000}"
        report["why"] = why
        if message:
            report["msg"] = message
        if box:
            report["box"] = True
        return report
