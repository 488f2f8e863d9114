"""Requests about single attempts: looking into them, and what is done to them while they run."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
from typing import Any

from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.executor import Executor
from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.processes import signal_process
from remuda.workers.onvm.sandbox import find_file

PEEK = 4 << 20  # bytes in one answer to `peek`
FILES = 10_000  # in one answer to `files`
LOOKED_AT = 200_000  # folder entries, for one such answer


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class NoFile(Exception):
    """The attempt has no such file, or no more."""


def list_files(folder: str) -> tuple[list[list[Any]], bool]:
    """Return [name, size, mode, time of change] of the regular files, and whether there are more.

    No link is followed. Names are as JSON can tell them.
    """
    found: list[list[Any]] = []
    folders, looked = [""], 0
    while folders:
        below = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(folder, below)), key=lambda e: e.name)
        except OSError:
            continue  # gone by now, or nobody may look into it
        for entry in entries:
            looked += 1
            if len(found) >= FILES or looked > LOOKED_AT:
                return found, True
            name = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_file(follow_symlinks=False):
                try:
                    about = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                shown = os.fsencode(name).decode("utf-8", "replace")
                mode = stat.S_IMODE(about.st_mode)
                found.append([shown, about.st_size, mode, about.st_mtime])
    return found, False


def _written(file: Any, cut: list[int], offset: int, size: int) -> dict[str, Any]:
    """Return a piece of a shortened output by the offset it was written at."""
    begin, end, total = cut
    if offset < begin:
        data = os.pread(file.fileno(), min(size, begin - offset), offset)
    else:
        offset = max(offset, end)
        kept = os.fstat(file.fileno()).st_size
        data = os.pread(file.fileno(), size, kept - total + offset) if offset < total else b""
    return {"data": b64(data), "at": offset, "size": total}


class AttemptRequests(Executor):
    """The requests about one attempt, each a method `do_*`."""

    def running(self, ask: dict[str, Any]) -> Job:
        """Return the attempt that is asked about; ValueError or KeyError if it is not running."""
        job = self.jobs[int(ask["a"])]
        if not job.pid:
            raise ValueError("not running")
        return job

    def do_signal(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{a, signal}: signal the group of a running attempt."""
        number = signal.Signals(int(ask["signal"]))
        signal_process(self.running(ask).pid, number)

    def do_suspend(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a}: stop a running attempt and the clock of its walltime. It keeps what it holds."""
        job = self.running(ask)
        if job.why:
            raise ValueError(f"it is being ended: {job.why}")
        self.suspend(job)
        return {"suspended": job.suspended, "stopped_s": job.stopped}

    def do_resume(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a}: let a suspended attempt go on."""
        job = self.running(ask)
        self.resume(job)
        return {"suspended": job.suspended, "stopped_s": job.stopped}

    def do_extend(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{a, wall}: let it run so many seconds from its start, suspension not counted."""
        job, wall = self.jobs[int(ask["a"])], float(ask["wall"])
        if job.why:
            raise ValueError(f"it is being ended: {job.why}")
        if not 0 < wall < NEVER:
            raise ValueError("a walltime is a number of seconds above 0")
        job.wall = wall
        if job.pid:
            job.deadline = job.due()

    def do_files(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a}: the regular files in the sandbox: [name, size, mode, time of change] each."""
        a = int(ask["a"])
        job = self.jobs.get(a)
        if not job and a not in self.ledger.done:
            raise NoFile(f"attempt {a} is not known here, or no more")
        files, more = list_files((job.folder if job else self.boxes.of(a)) or os.devnull)
        return {"files": files, "more": more}

    def do_where(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a}: the folder and the environment of an attempt; of one that ended, what is left."""
        a = int(ask["a"])
        job = self.jobs.get(a)
        if job and job.folder:
            return {"folder": job.folder, "cwd": job.cwd, "env": self.environment_of(job)}
        if job or not os.path.isdir(self.boxes.of(a)):
            raise NoFile(f"attempt {a} has no folder" + (" yet" if job else " here, or no more"))
        own = {"REMUDA_ATTEMPT_ID": str(a), "REMUDA_VM": self.name, "REMUDA_VM_HOME": self.home}
        return {"folder": self.boxes.of(a), "cwd": "", "env": {**self.environ, **own}}

    def do_peek(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a, file, offset, size}: a piece of "stdout", "stderr" or a file of the sandbox.

        A negative offset counts from the end. "./stdout" is the file of that name. While the
        attempt runs, offsets of streams count all it wrote; when it has ended, what is kept.
        With {written: true} they count all it wrote then, too: `at` is past what was cut out.
        """
        a, name, offset = int(ask["a"]), str(ask["file"]), int(ask.get("offset") or 0)
        job, size = self.jobs.get(a), min(int(ask.get("size") or PEEK), PEEK)
        if size < 0:
            raise ValueError("negative size")
        stream = {"stdout": job.out, "stderr": job.err}.get(name) if job else None
        if stream:
            offset, data = stream.read(max(0, offset + stream.total * (offset < 0)), size)
            return {"data": b64(data), "at": offset, "size": stream.total}
        if name in ("stdout", "stderr"):
            path = f"{self.boxes.of(a)}.{name[3:]}"
            if not os.path.exists(path):
                whole = self.inline(a, "o" if name == "stdout" else "er")
                start = max(0, offset + len(whole) * (offset < 0))
                return {"data": b64(whole[start : start + size]), "at": start, "size": len(whole)}
        else:
            folder = job.folder if job else self.boxes.of(a)
            path = find_file(folder, name[2:] if name.startswith("./") else name) or ""
        try:
            with open(path, "rb") as file:
                total = os.fstat(file.fileno()).st_size
                done = self.ledger.done.get(a)
                cut = done.get(name) if isinstance(done, dict) and ask.get("written") else None
                if cut:
                    return _written(file, cut, offset, size)
                start = file.seek(max(0, offset + total * (offset < 0)))
                return {"data": b64(file.read(size)), "at": start, "size": total}
        except OSError:
            raise NoFile(f"attempt {a} has no file {name[:200]!r}") from None

    def inline(self, a: int, key: str) -> bytes:
        """Return the output that went into an entry, as long as that is not acknowledged."""
        for text in (text for _, text in self.ledger.entries if f'"a":{a},' in text):
            entry = json.loads(text)
            exited = entry["t"] == "exit" and entry["a"] == a and a in self.ledger.done
            if exited and not entry.get(key[0] + "sp"):
                return base64.b64decode(entry.get(key, ""))
        if a in self.jobs:
            return b""
        raise NoFile(f"the output of attempt {a} is not kept here")
