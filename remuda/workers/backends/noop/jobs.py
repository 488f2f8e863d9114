"""The jobs of a simulated VM: taking them on, their time, their ends. Mirrors `onvm.executor`."""

from __future__ import annotations

import collections
import os
import signal
import uuid
from typing import Any

from remuda.workers.backends.noop.faults import Faults
from remuda.workers.backends.noop.job import SimulatedJob
from remuda.workers.backends.noop.loop import Loop
from remuda.workers.backends.noop.script import Script, read_script
from remuda.workers.onvm.ledger import GAP, Ledger, dumps
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.sandbox import inside

__all__ = ["JobTable"]

KILL_S = 5.0  # between TERM and KILL when the walltime is over
HARMLESS = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT}
STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class MemoryLedger(Ledger):
    """The ledger of the real runner, without its file."""

    def __init__(self) -> None:
        """Know nothing."""
        super().__init__(os.devnull)

    def begin(self, boot: str, session: int) -> None:
        """Start a new life of the runner."""
        self.n += GAP if self.n else 0
        self.boot, self.session = boot, session

    def add(self, **line: Any) -> str:
        """Make a change; returns its line."""
        text = dumps(line)
        self._apply(line, text)
        return text


class JobTable:
    """Queued, running and ended attempts, started first come first served."""

    def __init__(self, loop: Loop, *, name: str, slots: int, memory: int, faults: Faults) -> None:
        """Begin with nothing."""
        self.loop, self.name, self.faults = loop, name, faults
        self.slots, self.memory, self.gpus = slots, memory, 0
        self.free_cores, self.free_memory = slots, memory
        self.boot = uuid.uuid4().hex
        self.alive, self.starts = True, 1
        self.jobs: dict[int, SimulatedJob] = {}  # queued and running
        self.ended: dict[int, SimulatedJob] = {}  # until they are freed
        self.light: collections.deque[tuple[int, int]] = collections.deque()  # see `acknowledge`
        self.queue: collections.deque[SimulatedJob] = collections.deque()
        self.busy: set[int] = set()
        self.moved_files = self.moved_bytes = 0
        self.ledger = MemoryLedger()
        self.ledger.begin(self.boot, 0)

    # ---- for the subclass

    def on_entry(self, text: str) -> None:
        """Hear of a new entry."""

    def on_start(self, job: SimulatedJob) -> None:
        """Hear of a job that just started."""

    def on_prepared(self, key: str, result: dict[str, Any]) -> None:
        """Hear that a preparation is over."""

    def settle(self) -> None:
        """Have everybody told."""

    # ---- the runner's own life

    def kill(self) -> None:
        """Die as by SIGKILL: what ran runs no more, what the ledger says stays."""
        self.alive = False
        for job in self.jobs.values():
            self._stop_timers(job)
        self.hang_up()

    def hang_up(self) -> None:
        """Break every channel; for the subclass."""

    def revive(self) -> None:
        """Live again, if dead; what was not over is reported LOST."""
        if self.alive:
            return
        self.alive, self.starts = True, self.starts + 1
        cut_short = dict(self.jobs)
        self.jobs.clear()
        self.queue.clear()
        self.busy.clear()
        self.free_cores, self.free_memory = self.slots, self.memory
        self.ledger.begin(self.boot, 0)
        for a, (_, epoch, pid) in sorted(self.ledger.open.items()):
            report = {"t": "exit", "a": a, "e": epoch, "st": None, "sig": None, "why": "LOST"}
            report.update(started=pid != 0, s=None, x=now(), msg="the runner was killed")
            self.entry(**report, **self.left_of(cut_short.get(a)))

    def left_of(self, job: SimulatedJob | None) -> dict[str, Any]:
        """Return what an entry tells of the output of a job whose runner was killed; keep that."""
        written = job.written() if job and job.started_at is not None else {}
        if job and written.get("box"):
            self.ended[job.a] = job
        return written

    # ---- taking on

    def take_on(self, jobs: list[SimulatedJob], asked_floor: int) -> dict[str, str]:
        """Take attempts on; one that is known starts nothing again."""
        states, ledger = {}, self.ledger
        floor = max(ledger.floor, asked_floor)
        for job in jobs:
            old = job.a < floor or job.e < ledger.epochs.get(job.j, [0])[0]
            if job.a not in self.jobs and not ledger.state(job.a) and not old:
                self.accept(job, floor)
            present = self.jobs.get(job.a)
            states[str(job.a)] = present.state if present else ledger.state(job.a) or "stale"
        return states

    def accept(self, job: SimulatedJob, floor: int) -> None:
        """Queue an attempt nobody has seen; an older one of the same job is ended."""
        rival = self.jobs.get(self.ledger.epochs.get(job.j, [0, 0])[1])
        self.ledger.add(t="job", a=job.a, j=job.j, e=job.e, floor=floor)
        self.jobs[job.a] = job
        self.queue.append(job)
        if rival:
            self.terminate(rival, "CANCELLED", 0.0)
        if job.why:
            self.end(job, job.why, job.message)
        elif job.cores > self.slots or job.mem > self.memory or job.gpus > self.gpus:
            self.end(job, "SUBMISSION", "it asks for more than this VM has")

    def start_some(self) -> None:
        """Start what fits, first come first served."""
        while self.queue and self.alive:
            job = self.queue[0]
            if job.state == "queued":
                fits = job.cores <= self.free_cores and job.mem <= self.free_memory
                if not fits or job.j in self.busy:
                    return
                self.hold(job, 1)
                self.ledger.add(t="intent", a=job.a)
                job.stage(self.faults.staging)
                self.moved_files += len(job.inputs)
                self.moved_bytes += sum(len(job.files[inside(name)].data) for name in job.inputs)
                if job.why:
                    self.end(job, job.why, job.message)
                else:
                    self.begin(job)
            self.queue.popleft()

    def hold(self, job: SimulatedJob, sign: int) -> None:
        """Take the job's slots and memory (1), or give them back (-1)."""
        self.free_cores -= sign * job.cores
        self.free_memory -= sign * job.mem
        job.held = sign > 0
        (self.busy.add if job.held else self.busy.discard)(job.j)

    # ---- running

    def begin(self, job: SimulatedJob) -> None:
        """Start its first process."""
        job.started_at, job.state = now(), "running"
        ids = {"JOB_ID": job.j, "ATTEMPT_ID": job.a, "EPOCH": job.e, "CORES": job.cores}
        job.env.update({f"REMUDA_{name}": str(value) for name, value in ids.items()})
        job.env["REMUDA_VM"] = self.name
        self.entry(t="start", a=job.a, e=job.e, at=job.started_at, pid=1 << 22)
        self.on_start(job)
        if job.wall is not None:
            job.clock = self.loop.after(job.wall, lambda: self.out_of_time(job))
        self.run(job, "pro" if job.words["pro"] else "c")

    def run(self, job: SimulatedJob, phase: str) -> None:
        """Start one of its processes."""
        job.phase = phase
        script = job.script
        try:
            job.act(script)
        except (KeyError, ValueError) as error:
            script = Script(exit_code=1)
            job.err += f"noop: {error!r}\n".encode()
        if script.sleep_s > 0:
            job.timer = self.loop.after(script.sleep_s, lambda: self.process_over(job, script))
        else:
            self.process_over(job, script, settled=False)

    def process_over(self, job: SimulatedJob, script: Script, *, settled: bool = True) -> None:
        """See one of its processes end by itself; the next one starts, or the job has ended."""
        fate = script.signal or (signal.SIGKILL if script.oom else None)
        code = None if fate else script.exit_code
        self.went(job, code, int(fate) if fate else None, oom=script.oom)
        if settled:
            self.settle()

    def went(
        self, job: SimulatedJob, code: int | None, fate: int | None, *, oom: bool = False
    ) -> None:
        """Go on after a process that ended in this way."""
        how = f"{'signal' if fate else 'exit code'} {fate or code}"
        phase, failed = job.phase, code != 0
        if job.timer:
            job.timer.cancel()
            job.timer = None
        if phase == "pro" and failed:
            job.message = job.message or f"the prologue failed: {how}"
        if phase != "epi":
            job.ended_as = (code, fate)
            if oom:
                job.why = job.why or "OUT_OF_MEMORY"
        elif failed and job.ended_as == (0, None) and not job.why:
            job.ended_as, job.message = (code, fate), f"the epilogue failed: {how}"
        if phase == "pro" and not failed and not job.why:
            return self.run(job, "c")
        if phase == "c" and job.words["epi"] and not (job.why and oom is False):
            job.env["REMUDA_EXIT_CODE"] = "" if code is None else str(code)
            job.env["REMUDA_SIGNAL"] = "" if fate is None else str(fate)
            return self.run(job, "epi")
        code, fate = job.ended_as
        why = "OK" if code == 0 else "SIGNALLED" if code is None else "NONZERO"
        if job.why == "WALLTIME" or (job.why and code != 0):
            why = job.why
        self.end(job, why, job.message)

    def end(self, job: SimulatedJob, why: str, message: str) -> None:
        """Report an attempt's end; its slots are free again, its files stay until freed."""
        self._stop_timers(job)
        if job.held:
            self.hold(job, -1)
        job.state, job.suspended_at = "exited", None
        self.jobs.pop(job.a, None)
        self.ended[job.a] = job
        report = job.report(why, message)
        files = report.get("f", {})
        self.moved_files += len(files)
        self.moved_bytes += sum(files.values()) + report.get("os", 0) + report.get("es", 0)
        self.entry(**report)
        if not report.get("box"):
            self.light.append((self.ledger.n, job.a))

    def acknowledge(self, n: int) -> None:
        """Forget the entries up to n, and what went with them whole."""
        self.ledger.acknowledge(n)
        while self.light and self.light[0][0] <= self.ledger.acked:
            self.ended.pop(self.light.popleft()[1], None)

    def entry(self, **fields: Any) -> None:
        """Add a numbered entry."""
        self.on_entry(self.ledger.add(n=self.ledger.n + 1, **fields))

    def terminate(self, job: SimulatedJob, why: str, grace: float) -> None:
        """End a job early: at once if it has not started; else TERM, and KILL after the grace."""
        if not job.held:
            return self.end(job, why, "")
        if why == "WALLTIME":
            job.message = f"exceeded its walltime of {job.wall:g} s"
        job.why = job.why or why
        self.resume(job)
        self._cancel_clock(job)
        if grace > 0 and job.script.ignore_term:
            job.clock = self.loop.after(grace, lambda: self.killed(job, signal.SIGKILL))
        else:
            self.went(job, None, signal.SIGTERM if grace > 0 else signal.SIGKILL)

    def killed(self, job: SimulatedJob, number: int) -> None:
        """End the process that runs by a signal, in a turn of the loop of its own."""
        if job.state == "running" and self.alive:
            self.went(job, None, number)
            self.settle()

    def out_of_time(self, job: SimulatedJob) -> None:
        """End a job whose walltime is over."""
        if job.state == "running" and self.alive:
            self.terminate(job, "WALLTIME", KILL_S)
            self.settle()

    # ---- signals, and time that stands still

    def running(self, a: int) -> SimulatedJob:
        """Return a running attempt; ValueError if it does not run."""
        job = self.jobs.get(a)
        if job is None or job.state != "running":
            raise ValueError(f"attempt {a} is not running")
        return job

    def deliver(self, job: SimulatedJob, number: signal.Signals) -> None:
        """Do to the job what this signal does to a process that has no handler."""
        if number in STOPS:
            self.suspend(job)
        elif number == signal.SIGCONT:
            self.resume(job)
        elif number not in HARMLESS and not (number == signal.SIGTERM and job.script.ignore_term):
            self.went(job, None, int(number))

    def suspend(self, job: SimulatedJob) -> None:
        """Stop its time; harmless when it stands still."""
        if job.suspended_at is None:
            job.suspended_at = now()
            job.left_s = job.timer.at - job.suspended_at if job.timer else 0.0
            for timer in (job.timer, job.clock):
                if timer:
                    timer.cancel()

    def resume(self, job: SimulatedJob) -> None:
        """Let its time go on; harmless when it does."""
        if job.suspended_at is None:
            return
        pause, job.suspended_at = now() - job.suspended_at, None
        job.stopped_s += pause
        if job.timer:
            script = job.script
            job.timer = self.loop.after(job.left_s, lambda: self.process_over(job, script))
        self._set_clock(job)

    def stopped_s(self, job: SimulatedJob) -> float:
        """Return how long it has stood still in all."""
        since = now() - job.suspended_at if job.suspended_at is not None else 0.0
        return job.stopped_s + since

    def extend(self, job: SimulatedJob, wall: float) -> None:
        """Give it so much time from its start, not counting suspension."""
        job.wall = wall
        if job.suspended_at is None and not job.why:
            self._set_clock(job)

    def _set_clock(self, job: SimulatedJob) -> None:
        self._cancel_clock(job)
        if job.wall is not None and job.started_at is not None:
            left = job.started_at + job.stopped_s + job.wall - now()
            job.clock = self.loop.after(max(0.0, left), lambda: self.out_of_time(job))

    def _cancel_clock(self, job: SimulatedJob) -> None:
        if job.clock:
            job.clock.cancel()
            job.clock = None

    def _stop_timers(self, job: SimulatedJob) -> None:
        self._cancel_clock(job)
        if job.timer:
            job.timer.cancel()
            job.timer = None

    # ---- preparation

    def prepare(
        self, key: str, words: list[str], env: dict[str, str], timeout_s: float | None
    ) -> None:
        """Run a preparation command; `on_prepared` hears how it went."""
        result = self.outcome(words, env, timeout_s)
        sleep_s = read_script(words).sleep_s
        wait_s = min(sleep_s, timeout_s) if timeout_s is not None else sleep_s
        self.loop.after(wait_s, lambda: self.on_prepared(key, result))

    @staticmethod
    def outcome(words: list[str], env: dict[str, str], timeout_s: float | None) -> dict[str, Any]:
        """Return how a command that is no job ends."""
        script = read_script(words)
        late = timeout_s is not None and script.sleep_s > timeout_s
        text = script.stdout + "".join(f"{n}={env.get(n, '')}\n" for n in script.variables)
        fate = int(signal.SIGKILL) if late else script.signal
        return {
            "st": None if fate else script.exit_code,
            "sig": fate,
            "out": text + script.stderr,
            "timed_out": late,
        }
