"""Handing attempts over to Slurm: those that ask for the same become one array.

An sbatch of which no answer came is looked for by its comment before it is repeated.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from typing import Any

from remuda.workers.onvm import slurmcalls, slurmfiles
from remuda.workers.onvm.job import Job
from remuda.workers.onvm.processes import now
from remuda.workers.onvm.slurmcalls import Call
from remuda.workers.onvm.slurmfiles import FileStream
from remuda.workers.onvm.slurmfollow import LOOK_S, RETRY_S, Batch
from remuda.workers.onvm.slurmjudge import SETTLE_S, Judging

AT_ONCE = 2  # calls of sbatch; meanwhile what comes gathers into larger arrays


def say(text: str) -> None:
    """Write to the runner's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)


class Sending(Judging):
    """A runner whose jobs are Slurm's: the part that submits them."""

    def start_some(self) -> bool:
        tried = super().start_some()
        if self.outbox and not self.sending():
            self.submit()
        return tried

    def spawn(self, job: Job) -> None:
        """Make the sandbox; the rest is done for many at once."""
        if job.why:
            return None if self.vanished() else self.end(job, job.why, message=job.message)
        try:
            job.folder = job.folder or self.boxes.make(job.a)
            self.open_streams(job)
        except OSError as error:
            if self.vanished():
                return None
            return self.end(job, "STAGING", message=f"{error.strerror}: {self.boxes.path:.200}")
        self.outbox.append(job)
        return None

    def open_streams(self, job: Any) -> None:
        path = self.boxes.of(job.a)
        job.out = FileStream(path + ".out", job.limit)
        job.err = None if job.join else FileStream(path + ".err", job.limit)

    def vanished_now(self) -> bool:
        return not os.path.isdir(self.boxes.path)

    # ---- sbatch

    def sending(self) -> bool:
        return sum(batch.state == "sending" for batch in self.batches.values()) >= AT_ONCE

    def submit(self) -> None:
        """Make arrays of what waits, and have the first ones submitted."""
        shapes: dict[Any, list[Job]] = {}
        for job in self.outbox:
            if job.why:
                self.end(job, job.why, message=job.message)
            elif job.state == "queued":
                shapes.setdefault(slurmcalls.shape(job), []).append(job)
        self.outbox = []
        for jobs in shapes.values():
            for i in range(0, len(jobs), self.options.array_max):
                self.new_batch(jobs[i : i + self.options.array_max])

    def new_batch(self, jobs: list[Job]) -> None:
        token = uuid.uuid4().hex[:16]
        texts, specs = [], []
        for job in jobs:
            texts.append(self.shared.script(job, self.variables(job)))
            specs.append(job.spec)
        try:
            self.shared.new_batch(token, specs, texts)
        except OSError as error:
            for job in jobs:
                self.end(job, "STAGING", message=f"{error.strerror}: {self.shared.path:.200}")
            return
        self.adopt_batch(Batch(token, dict(enumerate(jobs)), [job.a for job in jobs]))

    def variables(self, job: Job) -> dict[str, str]:
        ids = {"JOB_ID": job.j, "ATTEMPT_ID": job.a, "EPOCH": job.e, "CORES": job.cores}
        own = {"REMUDA_" + name: str(value) for name, value in ids.items()}
        shared = {"REMUDA_VM": self.name, "REMUDA_RESOURCES": self.environ["REMUDA_RESOURCES"]}
        return {**job.env, **own, **shared}

    def adopt_batch(self, batch: Batch) -> None:
        self.batches[batch.token] = batch
        for index, job in batch.jobs.items():
            self.at[job.a] = (batch, index)
        self.look_at = min(self.look_at, now() + LOOK_S)

    def send(self, batch: Batch) -> None:
        """Submit an array, but for those of it that began or ended already."""
        live = list(batch)
        left = {index: job for index, job in live if not job.pid}
        if not live:
            return self.drop(batch)
        if not left:  # all of it began: it did arrive
            return self.delay(batch, "unsure")
        indices = slurmcalls.ranges(list(left)) if batch.is_array else ""
        folder = f"{self.shared.path}/b-{batch.token}"
        a = batch.attempts
        comment = f"{batch.token} attempts {a[0]}-{a[-1]}"
        words = slurmcalls.sbatch(
            left[max(left)], indices, name=self.shared.name, comment=comment, folder=folder
        )
        batch.state, batch.tries = "sending", batch.tries + 1
        call = self.call(
            [*words, *self.options.flags, folder + "/run"], lambda call: self.sent(batch, call)
        )
        if call is None:
            self.delay(batch, "new")
        return None

    def sent(self, batch: Batch, call: Call) -> None:
        """See what sbatch said."""
        text = call.out.strip().rpartition("\n")[2].split(";")[0]
        if call.status == 0 and text.isdigit():
            self.accepted(batch, int(text))
        elif slurmcalls.passing(call.said, call.status):
            say(f"sbatch: {call.said or call.status}; it will be tried again")
            self.delay(batch, "new" if "connect failure" in call.said else "unsure")
        elif "array" in call.said.lower() and batch.is_array:
            self.options.array_max = max(1, len(batch.jobs) // 2)
            left = [job for _, job in batch]
            self.drop(batch)
            self.outbox += left
        else:
            for _, job in batch:
                self.end(job, job.why or "SUBMISSION", message=call.said)
            self.drop(batch)

    def accepted(self, batch: Batch, slurm_id: int) -> None:
        batch.id, batch.state, batch.since = slurm_id, "sent", now()
        try:
            slurmfiles.write(f"{self.shared.path}/b-{batch.token}/id", str(slurm_id))
        except OSError:
            pass  # its comment will find it
        for index, job in batch.jobs.items():
            if job.a not in self.jobs or job.why:  # cancelled meanwhile
                self.cancel_later(f"{slurm_id}_{index}" if batch.is_array else str(slurm_id))

    def delay(self, batch: Batch, state: str) -> None:
        """Try again later: at once it would fail again."""
        pause = min(RETRY_S[1], RETRY_S[0] * 2 ** min(batch.tries, 10))
        batch.state, batch.since, batch.at = state, now(), now() + pause
        self.poll_at = min(self.poll_at, batch.since + SETTLE_S)

    def drop(self, batch: Batch) -> None:
        """Forget an array of which nothing can run any more."""
        self.batches.pop(batch.token, None)
        for job in batch.jobs.values():
            if self.at.get(job.a, (None,))[0] is batch:
                del self.at[job.a]
        ended = [a for a in batch.attempts if a not in self.jobs]
        self.remove(self.shared.forget(batch.token, ended))
