"""The simulated runner: the protocol of `remuda.workers.runner`, spoken by a VM without processes.

Its requests are the methods `do_*`; see there for their contracts. What a real runner keeps in its
journal is the ledger here, which outlives the runner: `revive` after `kill` reports LOST.
"""

from __future__ import annotations

import base64
import collections
import itertools
import json
import os
import platform
import signal
from typing import Any

from remuda.workers.backends.noop.faults import Faults
from remuda.workers.backends.noop.job import SimulatedFile, SimulatedJob
from remuda.workers.backends.noop.jobs import JobTable
from remuda.workers.backends.noop.loop import Loop
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.ledger import dumps
from remuda.workers.onvm.processes import now

__all__ = ["SimulatedRunner"]

VERSION = 1
PEEK = 4 << 20  # bytes in one answer to `peek`
ENTRIES = 500  # in one push
FILES = 10_000  # in one answer to `files`
FEATURES = (
    "check", "dead_man", "extend", "files", "follow", "peek", "prepare", "reboot", "resume", "signal",
    "suspend",
)  # fmt: skip


class NoFile(Exception):
    """The attempt has no such file, or no more."""


class SimulatedRunner(JobTable):
    """The connections of one VM and what is asked on them; all in the loop's thread, or its lock."""

    def __init__(
        self, loop: Loop, *, name: str, slots: int, memory: int, heartbeat_s: float, faults: Faults
    ) -> None:
        """Be a VM nobody knows yet."""
        super().__init__(loop, name=name, slots=slots, memory=memory, faults=faults)
        self.heartbeat_s = heartbeat_s
        self.connections: set[Connection] = set()
        self.watcher: Connection | None = None
        self.asked: dict[Connection, int] = {}  # requests so far
        self.prepared: dict[str, dict[str, Any]] = {}
        self.beats = itertools.count(1)
        self.beat_of = 0

    def attach(self) -> Any:
        """Return a socket that leads here."""
        sock, connection = self.loop.serve(self.handle, self.forget)
        self.connections.add(connection)
        return sock

    def hang_up(self) -> None:
        """Break every channel."""
        for connection in list(self.connections):
            connection.close()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.asked.pop(connection, None)
        if self.watcher is connection:
            self.watcher = None

    # ---- messages

    def handle(self, connection: Connection, line: bytes) -> None:
        """Answer one request, as the faults allow; then let follow what follows from it."""
        if connection.closed or not self.alive:
            return
        ask = json.loads(line)
        count = self.asked[connection] = self.asked.get(connection, 0) + 1
        faults, meeting = self.faults, ask["do"] == "hello"
        drop = not meeting and faults.happens(faults.drop_rate)
        early = drop and faults.happens(0.5)
        if early or (not meeting and faults.use_up("cut_requests")):
            return connection.close()
        reply = {"re": ask.get("id"), **self.answer(connection, ask)}
        drop = drop or 0 < faults.drop_after < count  # the first was its hello
        drop = drop or (not meeting and faults.use_up("cut_answers"))
        lost = not meeting and (faults.use_up("lose_answers") or faults.happens(faults.lose_rate))
        if not (drop or lost) and ("id" in ask or not reply["ok"]):
            if faults.answer_delay_s > 0:
                self.loop.after(faults.answer_delay_s, lambda: self.say(connection, reply))
            else:
                connection.send(dumps(reply))
        self.settle()
        if drop:
            connection.close()

    def answer(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; one that is refused has changed nothing."""
        try:
            verb = getattr(self, "do_" + ask["do"], None)
            if verb is None:
                raise ValueError("unknown request")
            return {"ok": True, **(verb(connection, ask) or {})}
        except NoFile as error:
            return {"ok": False, "code": "NOFILE", "error": str(error)}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return {"ok": False, "code": "BAD", "error": repr(error)}

    def say(self, connection: Connection, message: dict[str, Any]) -> None:
        """Send now."""
        if not connection.closed:
            connection.send(dumps(message))
            connection.flush()

    def settle(self) -> None:
        """Start what can start, push what is due, write to all."""
        self.start_some()
        watcher = self.watcher
        while watcher and watcher.backlog and not watcher.closed:
            some = [watcher.backlog.popleft() for _ in range(min(ENTRIES, len(watcher.backlog)))]
            text = f'{{"push":"entries","now":{now():.6f},"entries":[{",".join(some)}]}}'
            for _ in range(1 + self.faults.happens(self.faults.duplicate_rate)):
                watcher.send(text)
        for connection in list(self.connections):
            self.pump(connection)
            connection.flush()

    def pump(self, connection: Connection) -> None:
        """Push the output a connection follows."""
        for a, (job, offsets) in list(connection.follows.items()):
            for i, (name, stream) in enumerate((("stdout", job.out), ("stderr", job.err))):
                if len(stream) > offsets[i]:
                    data = base64.b64encode(stream[offsets[i] :]).decode()
                    chunk = {"a": a, "s": name, "at": offsets[i], "d": data}
                    connection.send(dumps({"push": "output", **chunk}))
                    offsets[i] = len(stream)
            if job.state == "exited":
                del connection.follows[a]

    def on_entry(self, text: str) -> None:
        if self.watcher:
            self.watcher.backlog.append(text)

    def on_start(self, job: SimulatedJob) -> None:
        if job.follow and self.watcher:
            self.watcher.follows[job.a] = (job, [0, 0])

    def beat(self, number: int) -> None:
        """Tell the watcher that all is well, again and again while it watches."""
        if self.watcher and number == self.beat_of and self.alive:
            self.watcher.send(dumps({"push": "beat", **self.load()}))
            self.watcher.flush()
            self.loop.after(self.heartbeat_s, lambda: self.beat(number))

    def load(self) -> dict[str, Any]:
        running = sum(job.state == "running" for job in self.jobs.values())
        return {
            "load": [float(running), 0.0, 0.0],
            "running": running,
            "queued": len(self.jobs) - running,
            "mem_free": self.free_memory,
            "disk_free": 1 << 40,
            "uptime": now(),
            "cores": self.slots,
            "moved_files": self.moved_files,
            "moved_bytes": self.moved_bytes,
            "n": self.ledger.n,
        }

    # ---- requests

    def do_hello(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        since, entries = int(ask.get("since") or 0), self.ledger.entries
        if ask.get("watch"):
            if self.watcher and self.watcher is not connection:
                self.watcher.send('{"push":"unwatched"}')
                self.watcher.backlog.clear()
                self.watcher.follows.clear()
            self.watcher = connection
            connection.backlog = collections.deque(text for n, text in entries if n > since)
            for job in self.jobs.values():
                if job.follow and job.state == "running":
                    connection.follows.setdefault(job.a, (job, [0, 0]))
            self.beat_of = number = next(self.beats)
            self.loop.after(self.heartbeat_s, lambda: self.beat(number))
        return {
            "version": VERSION,
            "python": platform.python_version(),
            "pid": self.starts,
            "slots": self.slots,
            "memory_bytes": self.memory,
            "cores": self.slots,
            "gpus": self.gpus,
            "cgroup": "",
            "cpu_model": "noop",
            "disk_bytes": 1 << 40,
            "disk_free_bytes": 1 << 40,
            "architecture": os.uname().machine,
            "boot_id": self.boot,
            "journal": self.ledger.n,
            "first_n": entries[0][0] if entries else self.ledger.n + 1,
            "now": now(),
            "features": list(FEATURES),
        }

    def do_start(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        return {"states": self.take_on([SimulatedJob(s) for s in ask["jobs"]], int(ask["floor"]))}

    def do_cancel(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        ids, grace = [int(a) for a in ask["a"]], float(ask.get("grace", 5.0))
        for a in ids:
            if a in self.jobs:
                self.terminate(self.jobs[a], "CANCELLED", grace)
        return {"unknown": [a for a in ids if a not in self.jobs and not self.ledger.state(a)]}

    def do_recall(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        ids = [a for a in dict.fromkeys(ask["a"]) if a in self.jobs and not self.jobs[a].held]
        for a in ids:
            self.jobs.pop(a).state = "recalled"
            self.ledger.add(t="drop", a=a)
        return {"recalled": ids}

    def do_signal(self, _connection: Connection, ask: dict[str, Any]) -> None:
        number = signal.Signals(int(ask["signal"]))
        self.deliver(self.running(int(ask["a"])), number)

    def do_suspend(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        job = self.running(int(ask["a"]))
        self.suspend(job)
        return {"suspended": True, "stopped_s": self.stopped_s(job)}

    def do_resume(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        job = self.running(int(ask["a"]))
        self.resume(job)
        return {"suspended": False, "stopped_s": self.stopped_s(job)}

    def do_extend(self, _connection: Connection, ask: dict[str, Any]) -> None:
        job, wall = self.jobs.get(int(ask["a"])), float(ask["wall"])
        if job is None or not wall > 0:
            raise ValueError("not running or queued, or no time")
        self.extend(job, wall)

    def do_files(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        files = sorted(self.files_of(int(ask["a"])).items())
        rows = [[name, len(f.data), f.mode, f.mtime] for name, f in files[:FILES]]
        return {"files": rows, "more": len(files) > FILES}

    def do_prepare(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        key = str(ask["key"])
        if key not in self.prepared:
            state = {"state": "running", "st": None, "sig": None, "out": "", "timed_out": False}
            self.prepared[key] = state
            self.prepare(key, list(ask["c"]), dict(ask.get("env") or {}), ask.get("timeout"))
        return self.prepared[key]

    def on_prepared(self, key: str, result: dict[str, Any]) -> None:
        self.prepared[key] = {"state": "done", **result}
        if self.watcher:
            self.watcher.send(dumps({"push": "prepared", "key": key, **self.prepared[key]}))
            self.watcher.flush()

    def do_status(self, _connection: Connection, _ask: dict[str, Any]) -> dict[str, Any]:
        jobs = self.jobs.values()
        return {
            **self.load(),
            "queued": [job.a for job in jobs if job.state == "queued"],
            "running": [[job.a, 1 << 22] for job in jobs if job.state == "running"],
            "suspended": [job.a for job in jobs if job.suspended_at is not None],
            "exited": list(self.ledger.done),
        }

    def do_peek(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        a, name, offset = int(ask["a"]), str(ask["file"]), int(ask.get("offset") or 0)
        size = min(int(ask.get("size") or PEEK), PEEK)
        if size < 0:
            raise ValueError("negative size")
        job = self.jobs.get(a) or self.ended.get(a)
        data = job.content(name) if job else None
        if job and ask.get("written") and name in ("stdout", "stderr"):
            data = bytes(job.out if name == "stdout" else job.err)
        if data is None:
            raise NoFile(f"attempt {a} has no file {name[:200]!r}")
        at = max(0, offset + len(data) * (offset < 0))
        piece = base64.b64encode(data[at : at + size]).decode()
        return {"data": piece, "at": at, "size": len(data)}

    def files_of(self, a: int) -> dict[str, SimulatedFile]:
        job = self.jobs.get(a) or self.ended.get(a)
        if job is None:
            raise NoFile(f"attempt {a} has no files here")
        return job.files

    def do_free(self, _connection: Connection, ask: dict[str, Any]) -> None:
        for a in (int(a) for a in ask["a"] if int(a) not in self.jobs):
            if a not in self.ledger.stale:
                self.ledger.add(t="drop", a=a)
            self.ended.pop(a, None)

    def do_follow(self, connection: Connection, ask: dict[str, Any]) -> None:
        job = self.jobs.get(int(ask["a"]))
        if job is None:
            raise NoFile(f"attempt {ask['a']} is not running")
        connection.follows[job.a] = (job, [0, 0])

    def do_ack(self, _connection: Connection, ask: dict[str, Any]) -> None:
        self.acknowledge(int(ask["n"]))

    def do_check(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """Answer at once, whatever time the command would take."""
        return self.outcome(list(ask["c"]), dict(ask.get("env") or {}), ask.get("timeout"))

    def do_configure(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """Take it; a simulated machine is never left alone for long."""
        float(ask.get("dead_man") or 0.0)

    def do_heard(self, _connection: Connection, _ask: dict[str, Any]) -> None:
        pass

    def do_reboot(self, _connection: Connection, _ask: dict[str, Any]) -> None:
        self.loop.after(0.0, self.kill)

    def do_stop(self, _connection: Connection, _ask: dict[str, Any]) -> None:
        self.kill()
