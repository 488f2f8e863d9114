"""The attempts of a VM: taken on, queued, their sandboxes and outputs, and their reported ends.

How they run is for the subclass to say: as processes of this machine (executor.py), or elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from remuda.workers.onvm import marks
from remuda.workers.onvm.capture import SPILL, Stream
from remuda.workers.onvm.job import Job
from remuda.workers.onvm.ledger import Ledger, dumps
from remuda.workers.onvm.limits import Limits
from remuda.workers.onvm.processes import boot_id, launch, now
from remuda.workers.onvm.sandbox import REMOVE, Boxes, copy_in
from remuda.workers.onvm.tape import Tape, left_of

HELD = 32 << 20  # while so many bytes of entries are not acknowledged, every output goes to a file


class Attempts(ABC):
    """The attempts of one VM, from the request that brought each to its exit entry."""

    def __init__(
        self,
        home: str,
        *,
        slots: int,
        memory: int,
        name: str,
        gpus: int | None = None,
        cgroups: bool = True,
    ) -> None:
        """Take over the home: what its journal says was not over is reported LOST."""
        self.home, self.slots, self.name = home, slots, name
        self.boxes = Boxes(home + "/jobs")
        self.memory = memory
        self.free_cores, self.free_memory = slots, memory
        self.limits = Limits(home, gpus=gpus, cgroups=cgroups)
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[int], Any]] = {}
        self.jobs: dict[int, Job] = {}  # queued and running
        self.queue: collections.deque[Job] = collections.deque()  # may hold some already ended
        self.staged: collections.deque[Job] = collections.deque()
        self.pids: dict[int, Job | None] = {}  # None: a helper of our own
        self.busy: set[int] = set()  # jobs that have an attempt holding slots
        self.moved_files = self.moved_bytes = 0  # into sandboxes and out of them
        self.cuttings: list[str] = []  # to be deleted once the journal is written
        self.stopping = False
        self.home_fd = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.waker, False)
        self.attend(self.wake, lambda _: os.read(self.wake, 1 << 16))
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("REMUDA_")}
        self.boot = boot_id()
        self.ledger, self.tape = Ledger(home + "/journal"), Tape(home + "/tape")
        self.recover()

    @abstractmethod
    def on_entry(self, text: str) -> None:
        """Hear of a new entry."""

    @abstractmethod
    def on_start(self, job: Job) -> None:
        """Hear of a job that just started."""

    @abstractmethod
    def on_output(self) -> None:
        """Hear that there is more output, or that its end has come."""

    @abstractmethod
    def on_state(self, job: Job) -> None:
        """Hear that a job was suspended, or goes on."""

    @abstractmethod
    def spawn(self, job: Job) -> None:
        """Start a job that has its slots, or report why not."""

    @abstractmethod
    def terminate(self, job: Job, why: str, grace: float) -> None:
        """End a job early: at once if it has not started; else TERM, and KILL after the grace."""

    def attend(self, fd: int, handler: Callable[[int], Any]) -> None:
        """Have the handler called with the event whenever something can be read from fd."""
        self.handlers[fd] = handler
        self.poll.register(fd, select.EPOLLIN)

    def entry(self, **fields: Any) -> None:
        """Add a numbered entry to the journal."""
        self.on_entry(self.ledger.add(n=self.ledger.n + 1, **fields))

    def recover(self) -> None:
        """Report LOST what a killed runner left open; clear away what belongs to nobody."""
        ledger, rebooted = self.ledger, self.ledger.boot not in ("", self.boot)
        if rebooted:  # the clock began anew: as far as we know these ended just now
            for i, (n, text) in enumerate(ledger.entries):
                entry = json.loads(text)
                for key in ("at", "s", "x"):
                    if entry.get(key) is not None:
                        entry[key] = now()
                ledger.entries[i] = (n, dumps(entry))
        ledger.begin(self.boot, os.getsid(0))
        adopted = self.adopt()
        for a, (_, epoch, pid) in sorted(ledger.open.items()):
            if a in adopted:
                continue
            report = {"t": "exit", "a": a, "e": epoch, "st": None, "sig": None, "why": "LOST"}
            message = "the machine restarted" if rebooted else "the runner was killed"
            report.update(started=pid != 0, s=None, x=now(), msg=message)
            self.entry(**report, **left_of(self.boxes.of(a), a, self.tape))
        done = [a for a, box in ledger.done.items() if box]
        if not ledger.commit():
            self.tape.begin()
        self.remove(self.boxes.keep([*adopted, *done]))

    def adopt(self) -> set[int]:
        """Return the open attempts that outlived the last runner; processes never do."""
        return set()

    def impossible(self, job: Job) -> str:
        """Return why this VM can never run the job, or nothing."""
        if job.cores > self.slots or job.mem > self.memory:
            has = f"{self.slots} slots and {self.memory} bytes of memory"
            return f"it asks for more than the {has} of this VM"
        return self.limits.refusal(job)

    def accept(self, job: Job, floor: int) -> None:
        """Queue an attempt nobody has seen; an older one of the same job is ended."""
        rival = self.jobs.get(self.ledger.epochs.get(job.j, [0, 0])[1])
        self.ledger.add(t="job", a=job.a, j=job.j, e=job.e, floor=floor)
        self.jobs[job.a] = job
        self.queue.append(job)
        if rival:
            self.terminate(rival, "CANCELLED", 0.0)
        if not job.why:
            job.message = self.impossible(job)
            job.why = "SUBMISSION" if job.message else ""
        if job.why:
            self.end(job, job.why, message=job.message)

    def start_some(self) -> bool:
        """Start what fits, first come first served; True if something was tried."""
        batch: list[Job] = []
        while self.queue and not self.stopping:
            job = self.queue[0]
            if job.state == "queued":
                fits = job.cores <= self.free_cores and job.mem <= self.free_memory
                if not fits or job.j in self.busy or not self.limits.fit(job):
                    break
                self.hold(job, 1)
                try:
                    if job.ins:
                        threading.Thread(target=self.stage, args=(job,), daemon=True).start()
                    else:
                        batch.append(job)
                except RuntimeError as error:
                    job.why, job.message = "STAGING", str(error)
                    batch.append(job)
            self.queue.popleft()
        while self.staged and not self.stopping:
            batch.append(self.staged.popleft())
            self.moved_files += batch[-1].brought_files
            self.moved_bytes += batch[-1].brought_bytes
        for job in batch:
            self.ledger.add(t="intent", a=job.a)
        problem = self.ledger.commit() if batch else ""
        for job in batch:
            if problem and not job.why:
                job.why, job.message = "STAGING", "cannot write the journal: " + problem
            self.spawn(job)
        return bool(batch)

    def vanished(self) -> bool:
        """Stop if the VM was deleted under our feet; what it ran is lost, not failed."""
        if os.fstat(self.home_fd).st_nlink == 0 or not os.path.isdir(self.boxes.path):
            self.stopping = True
        return self.stopping

    def hold(self, job: Job, sign: int) -> None:
        """Take the job's slots, memory and the like (1), or give them back (-1)."""
        self.free_cores -= sign * job.cores
        self.free_memory -= sign * job.mem
        job.held = sign > 0
        (self.limits.take if job.held else self.limits.give_back)(job)
        (self.busy.add if job.held else self.busy.discard)(job.j)

    def stage(self, job: Job) -> None:
        """Make the sandbox and copy the inputs into it; runs in a thread of its own."""
        try:
            job.folder = self.boxes.make(job.a)
            for name, source, mode in job.ins:
                job.brought_bytes += copy_in(job.folder, name, source, mode)
                job.brought_files += 1
        except (OSError, ValueError) as error:
            job.why, job.message = job.why or "STAGING", f"input: {error}"
        self.staged.append(job)
        with contextlib.suppress(BlockingIOError):
            os.write(self.waker, b"s")

    def capture(self, job: Job, end: str) -> Stream:
        stream = Stream(self.boxes.of(job.a) + end, job.limit)

        def ready(_event: int) -> None:
            before = stream.total
            if not stream.pull():
                del self.handlers[stream.fd]
                stream.close()
            if stream.total > before:
                self.tape.fresh[stream] = (job.a, end == ".err")
                self.on_output()

        self.attend(stream.fd, ready)
        return stream

    def end(self, job: Job, why: str, *, message: str = "", **how: Any) -> None:
        """Report an attempt's end; its slots are free again, its files stay until freed."""
        if job.held:
            self.hold(job, -1)
        job.state = "exited"
        self.jobs.pop(job.a, None)
        self.limits.close(job)
        for stream in (job.out, job.err):
            if stream:
                self.handlers.pop(stream.fd, None)
                stream.finish(SPILL if self.ledger.held < HELD else 0)
                self.cuttings += stream.litter
                self.tape.forget(stream)
        job.folder, doomed = self.boxes.close(job.a, job.folder)
        self.remove(doomed)
        report = job.report(why, message, **how)
        files = report.get("f", {})
        self.moved_files += len(files)
        self.moved_bytes += sum(files.values()) + report.get("os", 0) + report.get("es", 0)
        self.entry(**report)
        self.on_output()

    def commit(self) -> None:
        """Write down what must not be forgotten; before anybody hears of it."""
        self.tape.commit()
        if not self.ledger.commit() and self.cuttings:
            cuttings, self.cuttings = self.cuttings, []
            self.remove(self.boxes.doom(cuttings))

    def remove(self, paths: list[str]) -> None:
        """Have doomed folders and files deleted, in a process of its own."""
        mark = marks.mark(self.home)
        for i in range(0, len(paths), 500):
            with contextlib.suppress(OSError):
                command = ["/bin/sh", "-c", REMOVE, "sh", *paths[i : i + 500]]
                self.pids[launch(command, self.environ, self.null, self.null, mark=mark)] = None
