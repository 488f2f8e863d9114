"""One attempt on a simulated VM: what was asked, what it has written, how it ends."""

from __future__ import annotations

import base64
import os
import time
from typing import Any

from remuda.patterns import ANY_OUTPUT, Pattern, is_pattern
from remuda.workers.backends.noop.loop import Timer
from remuda.workers.backends.noop.script import Script, read_script
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.sandbox import inside

__all__ = ["SimulatedFile", "SimulatedJob", "matching"]

INLINE = 64 << 10  # bytes of output that go with the exit entry
LIMIT = 64 << 20


class SimulatedFile:
    """A file in memory."""

    __slots__ = ("data", "mode", "mtime")

    def __init__(self, data: bytes, mode: int = 0o644) -> None:
        """Be written now."""
        self.data, self.mode, self.mtime = data, mode, time.time()


def matching(wanted: str, names: list[str]) -> list[str]:
    """Return the file names that a declared output means."""
    if not is_pattern(wanted):
        return [name for name in names if name == wanted]
    pattern = Pattern(wanted)
    return [name for name in names if pattern.matches(name)]


class SimulatedJob:
    """What was asked (short names as in the protocol) and how far it has come."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Read an item of a `start` request; KeyError, TypeError or ValueError if it is no attempt."""
        self.a, self.j, self.e = int(spec["a"]), int(spec["j"]), int(spec["e"])
        self.state = "queued"  # then "running", "exited"; or "recalled"
        self.held = False
        self.why, self.message = "", ""  # why it is being ended
        self.started_at: float | None = None
        self.files: dict[str, SimulatedFile] = {}
        self.inputs: set[str] = set()
        self.out, self.err = bytearray(), bytearray()
        self.timer: Timer | None = None  # the end of the process that runs now
        self.clock: Timer | None = None  # its walltime, or the end of its grace
        self.left_s = 0.0  # of that process, while suspended
        self.suspended_at: float | None = None
        self.stopped_s = 0.0
        self.phase = ""  # "pro", "c" or "epi": what runs now
        self.ended_as: tuple[int | None, int | None] = (
            None,
            None,
        )  # code and signal of the command
        self.follow = bool(spec.get("follow"))
        self.join = bool(spec.get("join"))
        self.cores, self.mem = int(spec.get("cores") or 1), int(spec.get("mem") or 0)
        self.gpus = int(spec.get("gpus") or 0)
        self.wall = float(spec["wall"]) if spec.get("wall") else None
        self.limit = int(spec.get("limit") or LIMIT)
        self.env: dict[str, str] = dict(spec.get("env") or {})
        self.ins = [(str(n), str(s), int(m)) for n, s, m in spec.get("in") or ()]
        self.outs = [(str(name), bool(optional)) for name, optional in spec.get("out") or ()]
        self.cwd = str(spec.get("cwd") or "")
        self.words = {name: list(spec.get(name) or ()) for name in ("pro", "c", "epi")}
        if not self.words["c"] or self.cores < 1 or self.mem < 0 or (self.wall or 1) <= 0:
            self.why, self.message = "SUBMISSION", "bad job: no command, or needs that cannot be"

    @property
    def script(self) -> Script:
        """What runs now does this."""
        return read_script(self.words[self.phase])

    def stage(self, fault: str) -> None:
        """Take in the inputs; sets `why` to STAGING if that cannot be."""
        try:
            for name, source, mode in self.ins:
                if fault:
                    raise OSError(5, fault, source)
                if not os.path.isabs(source):
                    raise ValueError(f"cannot read {source[:200]!r} here")
                with open(source, "rb") as file:
                    self.files[inside(name)] = SimulatedFile(file.read(), mode & 0o777)
                self.inputs.add(name)
        except (OSError, ValueError) as error:
            self.why, self.message = self.why or "STAGING", f"input: {error}"

    def act(self, script: Script) -> None:
        """Leave the output and files of a process that has just started."""
        text = script.stdout + "".join(f"{n}={self.env.get(n, '')}\n" for n in script.variables)
        text += "".join(f"{n}\n" for n in range(1, script.lines + 1))
        self.out += text.encode()
        (self.out if self.join else self.err).extend(script.stderr.encode())
        for name, data in script.files:
            self._put(name, data)
        for name, sources in script.joined:
            parts = [self.files.get(self._there(source)) for source in sources]
            self._put(name, b"".join(part.data for part in parts if part))
        for name in script.executables:
            self.files[self._there(name)].mode |= 0o111

    def _put(self, name: str, data: bytes) -> None:
        there = self._there(name)
        self.files[there] = SimulatedFile(data)
        self.inputs.discard(there)  # an output now

    def _there(self, name: str) -> str:
        return inside(f"{self.cwd}/{name}" if self.cwd else name)

    def kept(self, stream: bytearray) -> bytes:
        """Return an output as far as the limit lets it be kept."""
        if len(stream) <= self.limit:
            return bytes(stream)
        half = self.limit // 2
        note = b"\n[remuda: the middle of %d bytes was cut out here]\n" % len(stream)
        return bytes(stream[:half]) + note + bytes(stream[len(stream) - half :])

    def content(self, name: str) -> bytes | None:
        """Return a stream or a file; None if there is no such file."""
        if name in ("stdout", "stderr"):
            return self.kept(self.out if name == "stdout" else self.err)
        file = self.files.get(name.removeprefix("./"))
        return file.data if file else None

    def report(self, why: str, message: str) -> dict[str, Any]:
        """Return the exit entry."""
        code, signal = self.ended_as
        ran, current = self.started_at is not None, now()
        report: dict[str, Any] = {"t": "exit", "a": self.a, "e": self.e, "st": code, "sig": signal}
        report.update(s=self.started_at, x=current, started=ran)
        box = bool(self.files)
        if ran:
            report.update(u=0.0, sy=0.0, rss=0, peak=self.mem if why == "OUT_OF_MEMORY" else 0)
            report.update(rd=0, wr=sum(len(file.data) for file in self.files.values()))
            report.update(self.written())
            box = box or "box" in report
            why, message = self._outputs(report, why, message)
        report["why"] = why
        if message:
            report["msg"] = message
        if box:
            report["box"] = True
        return report

    def written(self) -> dict[str, Any]:
        """Return what an exit entry tells of the streams."""
        found: dict[str, Any] = {}
        keys = ("stdout", "o", "os", "osp"), ("stderr", "er", "es", "esp")
        for stream, (name, inline, size, spilled) in zip((self.out, self.err), keys, strict=True):
            if self.join and stream is self.err:
                continue
            found[size] = len(stream)
            if len(stream) > INLINE:
                found[spilled] = found["box"] = True
                if len(stream) > self.limit:
                    cut = [self.limit // 2, len(stream) - self.limit // 2, len(stream)]
                    found.setdefault("cut", {})[name] = cut
            elif stream:
                found[inline] = base64.b64encode(stream).decode()
        return found

    def _outputs(self, report: dict[str, Any], why: str, message: str) -> tuple[str, str]:
        found: dict[str, int] = {}
        missing = []
        names = sorted(self.files)
        for pattern, optional in self.outs:
            some = matching(pattern, names)
            if pattern == ANY_OUTPUT:
                some = [name for name in some if name not in self.inputs]
            found.update((name, len(self.files[name].data)) for name in some)
            if not some and not optional and pattern != ANY_OUTPUT:
                missing.append(pattern)
        if self.outs:
            report["f"] = found
            executable = [name for name in found if self.files[name].mode & 0o100]
            report.update({"fx": executable} if executable else {})
        if missing:
            report["miss"] = missing
            if why == "OK":
                return "STAGING", f"missing output: {', '.join(missing):.1000}"
        return why, message
