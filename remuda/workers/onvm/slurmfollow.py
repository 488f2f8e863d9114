"""Following what Slurm does with the attempts it was handed: claims, statuses, cancelling.

An attempt begins when its Slurm job makes its claim and ends when that leaves its status.
"""

from __future__ import annotations

import collections
from typing import Any

from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.slurmcalls import ALONE, REASONS, Call, Options
from remuda.workers.onvm.slurmfiles import Shared, Status
from remuda.workers.runner import Runner

ANY_MEMORY = 1 << 50  # what a job may ask for is for Slurm to say
LOOK_S = 0.1  # between two looks at the claims and statuses
SOON_S = 1.0  # between two calls of squeue when one cannot wait
VERDICT_S = 15.0  # how long Slurm is waited for to say why it killed a job
RETRY_S = (1.0, 60.0)
CANCEL_AT_ONCE = 500


class Batch:
    """One sbatch: new, then sending, then sent; or unsure, when no answer came."""

    def __init__(
        self, token: str, jobs: dict[int, Job], attempts: list[int], *, slurm_id: int = 0
    ) -> None:
        """Hold what may still run by index, and all that ever was in it."""
        self.token, self.jobs, self.id, self.attempts = token, jobs, slurm_id, attempts
        self.state = "sent" if slurm_id else "new"
        self.at = self.since = 0.0  # when to send it; since when it is sent or unsure
        self.tries = 0

    @property
    def is_array(self) -> bool:
        """Whether its jobs in Slurm have indices."""
        return len(self.attempts) > 1

    def task(self, index: int) -> int:
        """Return the index that Slurm tells of one."""
        return index if self.is_array else ALONE

    def __iter__(self) -> Any:
        """Go through what may still run: index and job."""
        return iter([(i, job) for i, job in self.jobs.items() if job.state != "exited"])


class Following(Runner):
    """A runner whose jobs are Slurm's: the part that follows them."""

    def __init__(self, home: str, *, memory: int, slurm: dict[str, Any], **more: Any) -> None:
        """Take over the home; `slurm`: see Options."""
        self.options, self.shared = Options(slurm), Shared(home)
        self.outbox: list[Job] = []
        self.batches: dict[str, Batch] = {}
        self.at: dict[int, tuple[Batch, int]] = {}  # attempt: its place in an array
        self.ended: dict[int, tuple[Status, float]] = {}  # until when Slurm may say why
        self.missed: dict[int, float] = {}  # since when a job is over, or gone, without a status
        self.doomed: dict[str, float] = {}  # ids to cancel, and when they were last
        self.calls: set[Call] = set()
        self.polling = self.accounting = False
        self.has_accounts = True
        self.look_at = self.poll_at = self.polled_at = self.scancel_at = 0.0
        self.failures = 0
        self.litter: collections.deque[str] = collections.deque()
        more["gpus"], more["cgroups"] = self.options.gpus, False  # Slurm's to give and to limit
        super().__init__(home, memory=memory or ANY_MEMORY, **more)

    @property
    def slurm_env(self) -> dict[str, str]:
        """The environment of Slurm's commands; its jobs are no processes of this machine's VM."""
        return self.options.environment(self.environ)

    def call(self, argv: list[str], done: Any) -> Call | None:
        """Run a command of Slurm's beside the loop; None if not even that can be."""

        def over(call: Call) -> None:
            self.calls.discard(call)
            done(call)

        try:
            call = Call(self, argv, over)
        except OSError:
            return None
        self.calls.add(call)
        return call

    def soon(self) -> None:
        """Ask Slurm before it is time."""
        self.poll_at = min(self.poll_at, max(now(), self.polled_at + SOON_S))

    # ---- claims and statuses

    def look(self) -> None:
        """See who began and who ended."""
        began = now()
        for a, end in self.shared.news():
            job = self.jobs.get(a)
            if job is None or a not in self.at:
                continue
            if end == "c" and not job.pid:
                slurm_id = self.shared.claim(a).id
                if slurm_id:
                    self.started(job, slurm_id)
            elif end == "s" and job.pid and a not in self.ended:
                self.finished(job)
        if any(self.jobs[a].pid for c in self.connections for a in c.follows if a in self.jobs):
            self.on_output()
        self.look_at = now() + max(LOOK_S, 10 * (now() - began))  # at most a tenth of our time

    def started(self, job: Job, slurm_id: int) -> None:
        job.pid, job.state, job.started = slurm_id, "running", now()
        job.deadline = NEVER if job.why else job.due()
        self.entry(t="start", a=job.a, e=job.e, at=job.started, pid=slurm_id)
        self.on_start(job)

    def finished(self, job: Job) -> None:
        """Take in a status; if somebody killed the job, hear first from Slurm who."""
        try:
            status = Status(self.shared, job.a)
        except ValueError as error:
            return self.end(job, "LOST", message=str(error))
        if job.why or not (status.term or status.signal in (9, 15)):
            return self.conclude(job, status, "")
        self.ended[job.a] = (status, now() + VERDICT_S)
        self.soon()
        return None

    def conclude(self, job: Job, status: Status, state: str) -> None:
        """Report an end with the status there is and what Slurm called it."""
        code, number = status.code, status.signal
        why = "OK" if code == 0 else "NONZERO" if number is None else "SIGNALLED"
        message = ""
        if status.part != "command" and why != "OK":
            how = f"exit code {code}" if number is None else f"signal {number}"
            message = f"the {status.part} failed: {how}"
            if status.part == "epilogue" and number is not None:
                why, code, number = "NONZERO", 128 + number, None
        if job.why == "WALLTIME" or (job.why and why != "OK"):
            why, message = job.why, job.message
        elif why != "OK" and state in REASONS:
            why, message = REASONS[state], self.told(job, state)
        job.started = now() - status.wall
        job.usage.add(status)
        self.end(job, why, message=message, code=code, signal=number, usage=job.usage)

    def told(self, job: Job, state: str) -> str:
        if state in ("TIMEOUT", "DEADLINE"):
            return f"exceeded its walltime of {job.wall:g} s"
        if state == "OUT_OF_MEMORY":
            return f"used more than its {job.mem} bytes of memory" if job.mem else "out of memory"
        return f"Slurm job {job.pid or self.at[job.a][0].id}: {state}"

    # ---- ending

    def cancel_later(self, slurm_id: str) -> None:
        """Have scancel called, for many at once."""
        self.doomed.setdefault(slurm_id, 0.0)
        self.scancel_at = min(self.scancel_at, now())

    def scancel(self) -> None:
        """Cancel what is to be cancelled; Slurm sends TERM, and after its KillWait KILL."""
        ids = list(self.doomed)[:CANCEL_AT_ONCE]

        def over(call: Call) -> None:
            said = call.said.lower()
            if call.status == 0 or "invalid job" in said or "already" in said:
                for slurm_id in ids:
                    self.doomed.pop(slurm_id, None)
            self.scancel_at = now() + (RETRY_S[0] if self.doomed and call.status else 0.0)
            self.soon()

        self.scancel_at = NEVER
        if self.call(["scancel", *ids], over) is None:
            self.scancel_at = now() + RETRY_S[0]

    def terminate(self, job: Job, why: str, grace: float) -> None:
        """End a job early: for certain if it has not begun, else by Slurm."""
        if not job.held:
            return self.end(job, why)
        if why == "WALLTIME" and not job.message:
            job.message = f"exceeded its walltime of {job.wall:g} s"
        job.why, job.deadline = job.why or why, NEVER
        if job.a not in self.at:
            return None  # not yet handed over; seen when it would be
        never = not job.pid and self.shared.fence(job.a)
        self.cancel_in_slurm(job)
        return self.end(job, job.why, message=job.message) if never else None

    def cancel_in_slurm(self, job: Job) -> None:
        """Have Slurm's job of an attempt cancelled; one not yet accepted is when it will be."""
        name = self.id_of(job)
        if name:
            self.cancel_later(name)

    def id_of(self, job: Job) -> str:
        """Return what Slurm's commands call the job of an attempt, "" if it has none yet.

        A task of an array has a number of its own too, but not every command takes that.
        """
        batch, index = self.at[job.a]
        name = self.shared.claim(job.a).name if job.pid else ""
        return name or (f"{batch.id}{f'_{index}' if batch.is_array else ''}" if batch.id else "")
