"""Where a contract suite runs: a backend, one VM of it, and a watcher that remembers everything."""

from __future__ import annotations

import base64
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from remuda.testing.commands import Act, Commands, ShellCommands
from remuda.workers.backends.base import Backend, StartJob, VmAddress
from remuda.workers.channel import Channel
from remuda.workers.onvm.processes import describe_process

__all__ = ["Place", "Site", "wait_until"]

T = TypeVar("T")
_ids = itertools.count(1)  # attempts: never the same again, so tests may share a VM


def wait_until(condition: Callable[[], T], what: str, *, patience_s: float = 20.0) -> T:
    """Return the first true value of the condition; AssertionError, naming it, if it takes long."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {patience_s:g} s: {what}"
        time.sleep(0.002)
    return value


def kill_here(channel: Channel) -> None:
    """Kill the runner of a VM that is on this machine; returns when it is dead."""
    pid = channel.hello["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: describe_process(pid) is None, f"process {pid} is dead")


@dataclass
class Place:
    """A backend and a running VM of it, with two slots and at least 256 MiB for jobs.

    `terminate` removes the VM for good. `kill_runner` kills its runner as nothing can prevent, and
    returns when it is dead. `commands` writes what jobs do. `patience_s`: what the slowest of it all
    may take.
    """

    backend: Backend
    vm: VmAddress
    terminate: Callable[[], None]
    kill_runner: Callable[[Channel], None] = kill_here
    commands: Commands = field(default_factory=ShellCommands)
    patience_s: float = 20.0


class Site:
    """A place as a test uses it: jobs with numbers of their own, and all that was pushed."""

    def __init__(self, place: Place) -> None:
        """Watch from the VM's newest entry on."""
        self.place, self.backend, self.vm = place, place.backend, place.vm
        self.entries: dict[int, dict[str, Any]] = {}
        self.pushed: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self.jobs: list[int] = []
        first = self.backend.connect(self.vm)
        self.since = int(first.hello["journal"])
        first.close()

    def connect(self, *, since: int | None = None) -> Channel:
        """Become the VM's watcher."""
        self.closed.clear()
        return self.backend.connect(
            self.vm,
            watch=True,
            since=self.since if since is None else since,
            on_push=self._heard,
            on_close=lambda _: self.closed.set(),
        )

    def _heard(self, channel: Channel, message: dict[str, Any]) -> None:
        self.pushed.append(message)
        self.entries.update({entry["n"]: entry for entry in message.get("entries", ())})

    def job(self, act: Act | None = None, /, **fields: Any) -> StartJob:
        """Return a new attempt of a new job, unless the fields say otherwise, that does an act."""
        number = next(_ids)
        self.jobs.append(number)
        words = self.place.commands.write(act or Act())
        fields = {"job_id": number, "epoch": 1, "command": words, **fields}
        return StartJob(attempt_id=number, **fields)

    def words(self, act: Act) -> tuple[str, ...]:
        """Return a command that does this."""
        return self.place.commands.write(act)

    def submit(self, channel: Channel, *jobs: StartJob) -> dict[int, str]:
        """Have them started."""
        floor = min(self.jobs)
        return self.backend.submit_jobs(channel, self.vm, jobs, floor=floor)

    def run(self, channel: Channel, act: Act | None = None, /, **fields: Any) -> dict[str, Any]:
        """Run one to its end and return the exit entry."""
        job = self.job(act, **fields)
        self.submit(channel, job)
        return self.exit(job)

    def exit(self, job: StartJob) -> dict[str, Any]:
        """Wait for the exit entry."""
        return self._entry("exit", job)

    def start(self, job: StartJob) -> dict[str, Any]:
        """Wait for the start entry."""
        return self._entry("start", job)

    def starts(self, job: StartJob) -> int:
        """Return how often it was started, as far as was heard."""
        return sum(self._is(entry, "start", job) for entry in list(self.entries.values()))

    def _is(self, entry: dict[str, Any], kind: str, job: StartJob) -> bool:
        return (entry["t"], entry["a"]) == (kind, job.attempt_id)

    def _entry(self, kind: str, job: StartJob) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [e for e in list(self.entries.values()) if self._is(e, kind, job)]

        return self.wait(found, f"the {kind} of attempt {job.attempt_id}")[0]

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """Wait as long as this place may take."""
        return wait_until(condition, what, patience_s=self.place.patience_s)

    def tidy(self) -> None:
        """Leave nothing running and nothing behind."""
        channel = self.connect()
        try:
            known = set(self.backend.cancel_jobs(channel, self.vm, self.jobs, grace_s=0))
            status = channel.request("status")
            live = {*status["queued"], *(a for a, _ in status["running"])} & set(self.jobs)
            self.wait(lambda: not live - self._ended(), f"attempts {live - known} end")
            self.backend.free(channel, self.vm, self.jobs)
        finally:
            channel.close()

    def _ended(self) -> set[int]:
        return {entry["a"] for entry in list(self.entries.values()) if entry["t"] == "exit"}


def output(entry: dict[str, Any], key: str = "o") -> bytes:
    """Return an output that came with an exit entry: "o" or "er"."""
    return base64.b64decode(entry.get(key, ""))
