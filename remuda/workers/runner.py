"""The runner: the one process Remuda keeps on a VM. It starts the VM's jobs and reports their ends.

`serve` listens on HOME/runner.sock for JSON lines. A request {"id", "do", ...} is answered by one
line {"re": id, "ok": true, ...} or {"re": id, "ok": false, "error", "code"}; the methods `do_*`
are the requests. One connection watches: it is pushed every start and exit, numbered by n, kept
until it acknowledges them, and a beat. The runner is detached, so nothing that happens to its
controllers matters to its jobs. What starts is in HOME/journal first: after a kill -9 the next
runner kills what is left and reports it LOST, and an attempt the journal knows never starts again.

Runs on the VM as one file (see bundle.py): Python >= 3.7, standard library only, Linux.
Times are CLOCK_BOOTTIME seconds, sizes bytes.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import socket
import sys
from typing import Any

from remuda.workers.onvm.checks import LATER
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.ending import Ending
from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.ledger import dumps
from remuda.workers.onvm.processes import now, slurp
from remuda.workers.onvm.requests import NoFile, b64

VERSION = 1
BATCH, BATCH_S = 64, 0.005  # entries are pushed when so many wait, or for so long
FOLLOW_S = 0.05  # between two pushes of output
TURN_S = 0.02  # the most one turn of the loop spends on starting jobs
CHUNK = 256 << 10  # bytes in one push of output


def memory_of(key: str) -> int:
    """Return a figure of /proc/meminfo in bytes."""
    return int(slurp("/proc/meminfo").partition(key.encode() + b":")[2].split()[0]) * 1024


def cpu_model() -> str:
    """Return what the CPU calls itself, or its architecture."""
    text = slurp("/proc/cpuinfo").decode("utf-8", "replace")
    found = re.search(r"^(?:model name|cpu model|Model)\s*:\s*(.+)$", text, re.M)
    return found.group(1).strip() if found else os.uname().machine


class Runner(Ending):
    """The event loop and the requests."""

    features = (
        *("check", "dead_man", "extend", "files", "follow", "peek", "prepare", "reboot"),
        *("resources", "resume", "said", "signal", "suspend"),
    )

    def __init__(self, home: str, *, memory: int, heartbeat: float, **options: Any) -> None:
        """Take over the home; `memory` 0: what the machine has. `heartbeat` in seconds."""
        self.connections: set[Connection] = set()
        self.watcher: Connection | None = None
        self.heartbeat = heartbeat
        self.fresh = self.more = False  # there is output to push, there are jobs to start
        self.said_to = dict.fromkeys(("stdout", "stderr"), 0)  # pushed to the present watcher
        self.beat_at, self.push_at, self.pump_at = now() + heartbeat, NEVER, 0.0
        memory = memory or memory_of("MemTotal")
        super().__init__(home, memory=memory, **options)

    def run(self, listener: socket.socket) -> None:
        """Serve until told to stop; after that nothing of this VM runs any more."""
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.on_signal)
        listener.setblocking(False)
        self.attend(listener.fileno(), lambda _: self.welcome(listener))
        try:
            while not self.stopping:
                self.turn()
        finally:
            self.kill_everything()
            self.ledger.commit()
            self.limits.cgroups.leave()

    def on_signal(self, number: int, _frame: Any) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stopping = True

    def turn(self) -> None:
        """Wait for something to happen, and do all that follows from it."""
        timeout = min(max(0.0, self.next_deadline() - now()), 3600.0)
        for fd, event in self.poll.poll(timeout):
            if fd in self.handlers:
                self.handlers[fd](event)
        self.reap()
        self.tick()
        self.beat()
        began = now()
        self.more = False
        while self.start_some() and not self.more:
            self.more = now() - began > TURN_S
        self.commit()
        self.push()

    def next_deadline(self) -> float:
        if self.more:
            return 0.0
        followed = self.fresh and (self.watcher or any(c.follows for c in self.connections))
        jobs = min((job.deadline for job in self.pids.values() if job), default=NEVER)
        if self.preparation:
            jobs = min(jobs, self.preparation.deadline)
        jobs = min(jobs, self.check_deadline(), self.left_alone_at())
        return min(self.beat_at, self.push_at, jobs, self.pump_at if followed else NEVER)

    def beat(self) -> None:
        if now() >= self.beat_at:
            self.beat_at = now() + self.heartbeat
            self.take_log()
            if not self.vanished() and self.watcher and not self.watcher.slow:
                self.watcher.send(dumps({"push": "beat", **self.load()}))

    def load(self) -> dict[str, Any]:
        disk = os.statvfs(self.home_fd)
        running = sum(1 for job in self.pids.values() if job)
        return {
            "load": os.getloadavg(),
            "running": running,
            "queued": len(self.jobs) - running,
            "mem_free": memory_of("MemAvailable"),
            "disk_free": disk.f_bavail * disk.f_frsize,
            "uptime": now(),
            "cores": len(os.sched_getaffinity(0)),
            "moved_files": self.moved_files,
            "moved_bytes": self.moved_bytes,
            "n": self.ledger.n,
            **({"dead_man": self.left_alone_at() - now()} if self.dead_man else {}),
        }

    # ---- connections and pushes

    def welcome(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection = Connection(listener.accept()[0], self.poll, self.handle, self.forget)
            self.handlers[connection.fd] = connection.ready
            self.connections.add(connection)

    def forget(self, connection: Connection) -> None:
        del self.handlers[connection.fd]
        self.connections.discard(connection)
        self.asked_to_prepare.discard(connection)
        if self.watcher is connection:
            self.watcher, self.push_at = None, NEVER

    def connections_open(self) -> set[Connection]:
        return self.connections

    def on_entry(self, text: str) -> None:
        if self.watcher:
            self.watcher.backlog.append(text)

    def on_start(self, job: Job) -> None:
        if job.follow and self.watcher:
            self.watcher.follows[job.a] = (job, [0, 0])

    def on_output(self) -> None:
        self.fresh = True

    def on_said(self) -> None:
        self.fresh = True

    def on_state(self, job: Job) -> None:
        if self.watcher:
            self.watcher.send(dumps({"push": "state", "a": job.a, "suspended": job.suspended}))

    def on_prepared(self, result: dict[str, Any]) -> None:
        for connection in self.asked_to_prepare | ({self.watcher} if self.watcher else set()):
            connection.send(dumps({"push": "prepared", **result}))
        self.asked_to_prepare.clear()

    def push(self) -> None:
        """Push to the watcher what is due, to the followers what is new; write to all."""
        current = now()
        if self.fresh and current >= self.pump_at:
            self.fresh, self.pump_at = False, current + FOLLOW_S
            for connection in self.connections:
                self.pump(connection)
            self.pump_said()
        watcher = self.watcher
        if watcher and watcher.backlog:
            if watcher.slow:
                self.push_at = NEVER
            elif current >= self.push_at or len(watcher.backlog) >= BATCH or not self.jobs:
                entries, size = [], 0
                while watcher.backlog and size < CHUNK:
                    entries.append(watcher.backlog.popleft())
                    size += len(entries[-1])
                text = '{"push":"entries","now":%.6f,"entries":[%s]}'
                watcher.send(text % (current, ",".join(entries)))
                self.push_at = current if watcher.backlog else NEVER
            elif self.push_at == NEVER:
                self.push_at = current + BATCH_S
        else:
            self.push_at = NEVER
        for connection in [c for c in self.connections if c.out]:
            connection.flush()

    def pump(self, connection: Connection) -> None:
        """Push the output a connection follows, as far as it reads."""
        for a, (job, offsets) in list(connection.follows.items()):
            for i, (name, stream) in enumerate((("stdout", job.out), ("stderr", job.err))):
                while stream and not connection.slow:
                    at, data = stream.read(offsets[i], CHUNK)
                    if not data:
                        break
                    chunk = {"a": a, "s": name, "at": at, "d": b64(data)}
                    if at > offsets[i]:
                        chunk["cut"] = offsets[i]  # what came from there on is gone
                    connection.send(dumps({"push": "output", **chunk}))
                    offsets[i] = at + len(data)
            if connection.slow:
                self.fresh = True
            elif job.state == "exited":
                del connection.follows[a]

    def pump_said(self) -> None:
        """Push to the watcher what the VM itself said, as far as it reads."""
        for name, ring in self.said.items():
            while self.watcher and not self.watcher.slow:
                at, data = ring.read(self.said_to[name], CHUNK)
                if not data:
                    break
                self.watcher.send(dumps({"push": "said", "s": name, "at": at, "d": b64(data)}))
                self.said_to[name] = at + len(data)
            if self.watcher and self.watcher.slow:
                self.fresh = True

    # ---- requests

    def handle(self, connection: Connection, line: bytes) -> None:
        """Answer one request. One that is refused has changed nothing."""
        ask: Any = None
        self.heard_at = now()
        try:
            ask = json.loads(line)
            verb = getattr(self, "do_" + ask["do"], None)
            if verb is None:
                raise ValueError("unknown request")
            result = verb(connection, ask)
            if result is LATER:
                return
            reply = {"ok": True, **(result or {})}
        except NoFile as error:
            reply = {"ok": False, "code": "NOFILE", "error": str(error)}
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            reply = {"ok": False, "code": "BAD", "error": repr(error)}
        if not isinstance(ask, dict) or "id" in ask or not reply["ok"]:
            number = ask.get("id") if isinstance(ask, dict) else None
            connection.send(dumps({"re": number, **reply}))

    def do_hello(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{watch, since}: describe the VM. A watcher is pushed all entries after `since`."""
        since, entries = int(ask.get("since") or 0), self.ledger.entries
        if ask.get("watch"):
            if self.watcher and self.watcher is not connection:
                self.watcher.send('{"push":"unwatched"}')
                self.watcher.backlog.clear()
                self.watcher.follows.clear()
            self.watcher, self.push_at = connection, 0.0
            self.said_to = dict(self.said_acked)
            connection.backlog = collections.deque(text for n, text in entries if n > since)
            for job in self.jobs.values():
                if job.follow and job.pid:
                    connection.follows.setdefault(job.a, (job, [0, 0]))
            self.fresh = True
        disk = os.statvfs(self.home_fd)
        return {
            "version": VERSION,
            "python": ".".join(map(str, sys.version_info[:3])),
            "pid": os.getpid(),
            "slots": self.slots,
            "memory_bytes": self.memory,
            "machine_memory_bytes": memory_of("MemTotal"),
            "cores": len(os.sched_getaffinity(0)),
            "gpus": self.limits.gpus,
            "cgroup": self.limits.cgroups.kind,
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "disk_bytes": disk.f_blocks * disk.f_frsize,
            "architecture": os.uname().machine,
            "cpu_model": cpu_model(),
            "features": self.features,
            "boot_id": self.boot,
            "journal": self.ledger.n,
            "first_n": entries[0][0] if entries else self.ledger.n + 1,
            "now": now(),
        }

    def do_start(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{floor, jobs}: take attempts on. One that is known starts nothing again."""
        jobs, states, ledger = [Job(spec) for spec in ask["jobs"]], {}, self.ledger
        floor = max(ledger.floor, int(ask["floor"]))
        for job in jobs:
            old = job.a < floor or job.e < ledger.epochs.get(job.j, [0])[0]
            if job.a not in self.jobs and not ledger.state(job.a) and not old:
                self.accept(job, floor)
            present = self.jobs.get(job.a)
            states[str(job.a)] = present.state if present else ledger.state(job.a) or "stale"
        return {"states": states}

    def do_cancel(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a: ids, grace: seconds}: end them; each ends with an exit entry, as any other."""
        ids, grace = [int(a) for a in ask["a"]], float(ask.get("grace", 5.0))
        for a in ids:
            if a in self.jobs:
                self.terminate(self.jobs[a], "CANCELLED", grace)
        return {"unknown": [a for a in ids if a not in self.jobs and not self.ledger.state(a)]}

    def do_recall(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a: ids}: take back what has not begun; those never start here."""
        ids = [a for a in dict.fromkeys(ask["a"]) if a in self.jobs and not self.jobs[a].held]
        for a in ids:
            self.jobs.pop(a).state = "recalled"
            self.ledger.add(t="drop", a=a)
        return {"recalled": ids}

    def do_status(self, _connection: Connection, _ask: dict[str, Any]) -> dict[str, Any]:
        """{}: which attempts are where."""
        jobs = self.jobs.values()
        return {
            **self.load(),
            "queued": [job.a for job in jobs if not job.pid],
            "running": [[job.a, job.pid] for job in jobs if job.pid],
            "suspended": [job.a for job in jobs if job.suspended],
            "exited": list(self.ledger.done),
        }

    def do_sources(self, _connection: Connection, _ask: dict[str, Any]) -> dict[str, Any]:
        """{}: the paths still to be copied into sandboxes; see `remuda.workers.onvm.host`."""
        waiting = (job for job in self.jobs.values() if not job.pid)
        return {"sources": sorted({source for job in waiting for _, source, _ in job.ins})}

    def do_free(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{a: ids}: delete what exited attempts left; nothing of them can start any more."""
        ids = [int(a) for a in ask["a"] if int(a) not in self.jobs]
        for a in ids:
            if a not in self.ledger.stale:
                self.ledger.add(t="drop", a=a)
        self.remove(self.boxes.free(ids))

    def do_follow(self, connection: Connection, ask: dict[str, Any]) -> None:
        """{a}: push the output of an attempt to this connection, from its start on."""
        job = self.jobs.get(int(ask["a"]))
        if job is None:
            raise NoFile(f"attempt {ask['a']} is not running")
        connection.follows[job.a] = (job, [0, 0])
        self.fresh = True

    def do_ack(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{n}: the entries up to n are recorded."""
        self.ledger.acknowledge(int(ask["n"]))

    def do_stop(self, _connection: Connection, _ask: dict[str, Any]) -> None:
        """{}: kill everything and end."""
        self.stopping = True
        self.kill_everything()
