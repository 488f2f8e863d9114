"""Starting a VM's jobs, seeing them end, and leaving nothing of them behind.

Every job runs in its own process group, in a folder of its own; its output comes through pipes. The
process is the parent of its jobs, and by `PR_SET_CHILD_SUBREAPER` of whatever they orphan.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

from remuda.workers.onvm.capture import SPILL, Stream
from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.ledger import Ledger, dumps
from remuda.workers.onvm.processes import (
    boot_id,
    environment,
    launch,
    now,
    signal_process,
    wait_for,
)
from remuda.workers.onvm.sandbox import REMOVE, Boxes, copy_in

KILL_S = 5.0  # between TERM and KILL when the walltime is over
HELD = 32 << 20  # while so many bytes of entries are not acknowledged, every output goes to a file
EXIT_CODES = {errno.ENOENT: 127, errno.EACCES: 126, errno.ENOEXEC: 126, errno.ENOTDIR: 126}


class Executor:
    """The jobs of one VM. Nothing here blocks but `kill_everything`."""

    def __init__(self, home: str, *, slots: int, memory: int, name: str) -> None:
        """Take over the home: what its journal says was not over is reported LOST."""
        self.home, self.slots, self.name = home, slots, name
        self.boxes = Boxes(home + "/jobs")
        self.memory = memory
        self.free_cores, self.free_memory = slots, memory
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[int], Any]] = {}
        self.jobs: dict[int, Job] = {}  # queued and running
        self.queue: collections.deque[Job] = collections.deque()  # may hold some already ended
        self.staged: collections.deque[Job] = collections.deque()
        self.pids: dict[int, Job | None] = {}  # None: a helper of our own
        self.busy: set[int] = set()  # jobs that have an attempt holding slots
        self.stopping = False
        self.home_fd = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.waker, False)
        self.attend(self.wake, lambda _: os.read(self.wake, 1 << 16))
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("REMUDA_")}
        self.children = -1
        with contextlib.suppress(OSError, AttributeError):
            if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0:  # PR_SET_CHILD_SUBREAPER
                path = f"/proc/self/task/{os.getpid()}/children"
                self.children = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.boot = boot_id()
        self.ledger = Ledger(home + "/journal")
        self.recover()

    def on_entry(self, text: str) -> None:
        """Hear of a new entry; for the subclass, like the other two."""

    def on_start(self, job: Job) -> None:
        """Hear of a job that just started."""

    def on_output(self) -> None:
        """Hear that there is more output, or that its end has come."""

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
        for a, (_, epoch, pid) in sorted(ledger.open.items()):
            report = {"t": "exit", "a": a, "e": epoch, "st": None, "sig": None, "why": "LOST"}
            message = "the machine restarted" if rebooted else "the runner was killed"
            self.entry(**report, started=pid != 0, s=None, x=now(), msg=message)
        self.remove(self.boxes.keep(a for a, box in ledger.done.items() if box))
        ledger.commit()

    def accept(self, job: Job, floor: int) -> None:
        """Queue an attempt nobody has seen; an older one of the same job is ended."""
        rival = self.jobs.get(self.ledger.epochs.get(job.j, [0, 0])[1])
        self.ledger.add(t="job", a=job.a, j=job.j, e=job.e, floor=floor)
        self.jobs[job.a] = job
        self.queue.append(job)
        if rival:
            self.terminate(rival, "CANCELLED", 0.0)
        if job.why:
            self.end(job, job.why, message=job.message)
        elif job.cores > self.slots or job.mem > self.memory:
            has = f"{self.slots} slots and {self.memory} bytes of memory"
            self.end(job, "SUBMISSION", message=f"it asks for more than the {has} of this VM")

    def tick(self) -> None:
        """End the jobs whose time is over."""
        current = now()
        for job in [job for job in self.pids.values() if job and job.deadline <= current]:
            if job.why:
                job.deadline = NEVER
                signal_process(job.pid)
            else:
                self.terminate(job, "WALLTIME", KILL_S)

    def start_some(self) -> bool:
        """Start what fits, first come first served; True if something was tried."""
        batch: list[Job] = []
        while self.queue and not self.stopping:
            job = self.queue[0]
            if job.state == "queued":
                fits = job.cores <= self.free_cores and job.mem <= self.free_memory
                if not fits or job.j in self.busy:
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
        """Take the job's slots and memory (1), or give them back (-1)."""
        self.free_cores -= sign * job.cores
        self.free_memory -= sign * job.mem
        job.held = sign > 0
        (self.busy.add if job.held else self.busy.discard)(job.j)

    def stage(self, job: Job) -> None:
        """Make the sandbox and copy the inputs into it; runs in a thread of its own."""
        try:
            job.folder = self.boxes.make(job.a)
            for name, source, mode in job.ins:
                copy_in(job.folder, name, source, mode)
        except (OSError, ValueError) as error:
            job.why, job.message = job.why or "STAGING", f"input: {error}"
        self.staged.append(job)
        with contextlib.suppress(BlockingIOError):
            os.write(self.waker, b"s")

    def spawn(self, job: Job) -> None:
        """Start the job's command, or report why not."""
        if job.why:
            return None if self.vanished() else self.end(job, job.why, message=job.message)
        blame = "STAGING"
        try:
            if not job.folder:
                job.folder = self.boxes.make(job.a) if job.outs else self.boxes.empty()
            os.chdir(job.folder)
            job.out = self.capture(job, ".out")
            job.err = None if job.join else self.capture(job, ".err")
            blame = "SUBMISSION"
            ids = {"JOB_ID": job.j, "ATTEMPT_ID": job.a, "EPOCH": job.e, "CORES": job.cores}
            own = {"REMUDA_" + name: str(value) for name, value in ids.items()}
            env = {**self.environ, **job.env, **own, "REMUDA_VM": self.name}
            env["REMUDA_VM_HOME"] = self.home
            job.started = now()
            job.pid = launch(job.argv, env, job.out.inner, (job.err or job.out).inner)
        except (OSError, ValueError) as error:
            if self.vanished():
                return None
            code = EXIT_CODES.get(getattr(error, "errno", 0)) if blame == "SUBMISSION" else None
            what = getattr(error, "strerror", None) or str(error)
            message = f"{what}: {job.argv[0] if code else job.folder:.200}"
            return self.end(job, "NONZERO" if code else blame, message=message, code=code)
        for stream in (job.out, job.err):
            if stream:
                stream.handed_over()
        job.state, job.deadline = "running", job.started + job.wall
        self.pids[job.pid] = job
        self.entry(t="start", a=job.a, e=job.e, at=job.started, pid=job.pid)
        self.on_start(job)

    def capture(self, job: Job, end: str) -> Stream:
        stream = Stream(self.boxes.of(job.a) + end, job.limit)

        def ready(_event: int) -> None:
            before = stream.total
            if not stream.pull():
                del self.handlers[stream.fd]
                stream.close()
            if stream.total > before:
                self.on_output()

        self.attend(stream.fd, ready)
        return stream

    def reap(self) -> None:
        """See who ended; whatever an ended job left running is killed."""
        ended = False
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            if found is None:
                break
            ended, job = True, self.pids.get(found.si_pid)
            if job:  # first its group: once it is reaped, its number may be anyone's
                with contextlib.suppress(OSError):
                    os.killpg(job.pid, signal.SIGKILL)
            _, status, usage = os.wait4(found.si_pid, 0)
            self.pids.pop(found.si_pid, None)
            if job:
                self.exited(job, status, usage)
        if ended:
            self.sweep()

    def orphans(self) -> list[int]:
        """Return our children that are not ours: descendants of jobs whose parent ended."""
        text = os.pread(self.children, 1 << 20, 0) if self.children >= 0 else b""
        return [pid for pid in map(int, text.split()) if pid not in self.pids]

    def sweep(self) -> None:
        """Kill the orphans of ended jobs, also those that moved to a session of their own."""
        running = {str(job.a).encode() for job in self.pids.values() if job}
        for pid in self.orphans():
            attempt = environment(pid, b"REMUDA_ATTEMPT_ID")
            if not running or (attempt and attempt not in running):
                signal_process(pid)

    def kill_everything(self) -> None:
        """Kill the jobs and all they started; returns when they are gone."""
        for pid in self.pids:
            signal_process(pid)

        def gone() -> bool:
            for pid in self.orphans():
                signal_process(pid)
            try:
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                    pass
            except ChildProcessError:
                return True
            return False

        wait_for(gone, 10.0)

    def exited(self, job: Job, status: int, usage: Any) -> None:
        """Report how a process ended; being told to is the reason only if it mattered."""
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        why = "OK" if code == 0 else "SIGNALLED" if code is None else "NONZERO"
        if job.why == "WALLTIME" or (job.why and code != 0):
            why = job.why
        self.end(job, why, message=job.message, code=code, signal=number, usage=usage)

    def end(self, job: Job, why: str, *, message: str = "", **how: Any) -> None:
        """Report an attempt's end; its slots are free again, its files stay until freed."""
        if job.held:
            self.hold(job, -1)
        job.state = "exited"
        self.jobs.pop(job.a, None)
        for stream in (job.out, job.err):
            if stream:
                self.handlers.pop(stream.fd, None)
                stream.finish(SPILL if self.ledger.held < HELD else 0)
        job.folder, doomed = self.boxes.close(job.a, job.folder)
        self.remove(doomed)
        self.entry(**job.report(why, message, **how))
        self.on_output()

    def remove(self, paths: list[str]) -> None:
        """Have doomed folders and files deleted, in a process of its own."""
        for i in range(0, len(paths), 500):
            with contextlib.suppress(OSError):
                command = ["/bin/sh", "-c", REMOVE, "sh", *paths[i : i + 500]]
                self.pids[launch(command, self.environ, self.null, self.null)] = None

    def terminate(self, job: Job, why: str, grace: float) -> None:
        """End a job early: at once if it has not started; else TERM, and KILL after the grace."""
        if not job.held:
            self.end(job, why)
        elif not job.pid:
            job.why = job.why or why  # being staged; seen when that is over
        elif os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if why == "WALLTIME":
                job.message = f"exceeded its walltime of {job.wall:g} s"
            job.why, job.deadline = (
                job.why or why,
                min(now() + grace, job.deadline if job.why else NEVER),
            )
            signal_process(job.pid, signal.SIGTERM if grace > 0 else signal.SIGKILL)
            signal_process(job.pid, signal.SIGCONT)
        else:
            job.deadline = NEVER
