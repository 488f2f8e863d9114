"""What Slurm says of the attempts it was handed: squeue, and sacct where that knows nothing.

squeue, asked for all at once, tells of those that were killed and so left no status; sacct of
those squeue has forgotten. Who is unknown to both is waited for, then lost.
"""

from __future__ import annotations

import os

from remuda.workers.onvm.job import Job
from remuda.workers.onvm.processes import now, slurp
from remuda.workers.onvm.slurmcalls import (
    NEVER_RUNS,
    OVER,
    REASONS,
    ROW,
    Call,
    Row,
    rows_of_sacct,
    rows_of_squeue,
)
from remuda.workers.onvm.slurmfollow import RETRY_S, SOON_S, Batch, Following

SETTLE_S = 5.0  # after which an sbatch that is over is in squeue, or was not accepted


class Judging(Following):
    """A runner whose jobs are Slurm's: the part that asks Slurm about them."""

    def accepted(self, batch: Batch, slurm_id: int) -> None:
        """Hear that Slurm has an array; for the subclass, like the next."""

    def drop(self, batch: Batch) -> None:
        """Forget an array of which nothing can run any more."""

    # ---- squeue

    def poll_slurm(self) -> None:
        """Ask squeue for every job of this home."""
        self.poll_at = now() + self.options.poll_s
        words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
        words += [f"--name={self.shared.name}", "--format=" + ROW]
        self.polling = self.call(words, self.polled) is not None

    def polled(self, call: Call) -> None:
        """Compare what squeue says with what we know."""
        self.polling, self.polled_at = False, now()
        if call.status:
            self.failures += 1
            pause = min(RETRY_S[1], RETRY_S[0] * 2 ** min(self.failures, 10))
            self.poll_at = now() + max(pause, self.options.poll_s)
            return
        self.failures = 0
        rows: dict[str, list[Row]] = {}
        for row in rows_of_squeue(call.out):
            rows.setdefault(row.comment.split(" ")[0], []).append(row)
        for batch in list(self.batches.values()):
            mine = rows.get(batch.token, [])
            if batch.state == "unsure" and mine:
                self.accepted(batch, mine[0].array)
            elif batch.state == "unsure" and call.began >= batch.since + SETTLE_S:
                self.not_found(batch)
            if batch.state == "sent" and call.began > batch.since:
                self.compare(batch, mine)
        self.give_up_waiting()
        if self.missed and self.has_accounts and not self.accounting:
            self.ask_accounts()

    def not_found(self, batch: Batch) -> None:
        """An sbatch without an answer never arrived, or all of it that began is over."""
        live = list(batch)
        if all(job.pid for _, job in live):
            for _, job in live:
                self.missed.setdefault(job.a, now())
        if not live or not all(job.pid for _, job in live):
            batch.state = "new"

    def compare(self, batch: Batch, rows: list[Row]) -> None:
        """See in which state the jobs of an array are."""
        known: dict[int, Row] = {}
        for row in rows:  # of two of the same index (sent twice) the live one
            if row.task not in known or row.state not in OVER:
                known[row.task] = row
        by_id = {row.raw: row for row in rows}
        live = False
        for index, job in batch:
            live = True
            found = by_id.get(job.pid) or known.get(batch.task(index))
            if found is None:
                self.missed.setdefault(job.a, now())
            elif found.state in OVER:
                self.heard_over(job, found)
            elif found.state == "PENDING" and found.reason in NEVER_RUNS:
                job.why = job.why or "SUBMISSION"
                job.message = job.message or f"Slurm will not run it: {found.reason}"
                self.terminate(job, job.why, 0.0)
            else:
                self.missed.pop(job.a, None)
                if job.why and found.state != "COMPLETING":
                    self.cancel_in_slurm(job)  # it did not take effect
        if not live and all(row.state in OVER for row in rows):
            self.drop(batch)

    # ---- sacct

    def ask_accounts(self) -> None:
        """Ask sacct for those that squeue does not tell of."""
        ids = sorted({str(self.jobs[a].pid or self.at[a][0].id) for a in self.missed})
        words = ["sacct", "--noheader", "--parsable2", "--allocations"]
        words += ["--format=JobID,JobIDRaw,State,ExitCode", "--jobs=" + ",".join(ids)]
        self.accounting = self.call(words, self.accounted) is not None

    def accounted(self, call: Call) -> None:
        """End those of which the accounts know the end."""
        self.accounting = False
        if call.status:  # 127: there is no sacct; else the accounting may only be away for a while
            self.has_accounts = call.status != 127 and "disabled" not in call.said.lower()
            return
        rows = rows_of_sacct(call.out)
        by_id = {row.raw: row for row in rows}
        by_place = {(row.array, row.task): row for row in rows}
        for a in list(self.missed):
            if a in self.at and a in self.missed:
                batch, index = self.at[a]
                found = by_id.get(self.jobs[a].pid) or by_place.get((batch.id, batch.task(index)))
                if found is not None and found.state in OVER:
                    self.heard_over(self.jobs[a], found)

    def give_up_waiting(self) -> None:
        """End those that nobody has told of in time."""
        grace = self.options.account_grace_s if self.has_accounts else self.options.file_grace_s
        for a, since in list(self.missed.items()):
            job = self.jobs.get(a)
            if job is None or a not in self.at:
                del self.missed[a]
            elif now() - since > grace:
                batch, index = self.at[a]
                self.gone(job, Row(job.pid, batch.id, index, "GONE", ""))

    # ---- judging

    def heard_over(self, job: Job, row: Row) -> None:
        """Slurm says that a job has ended."""
        if job.a in self.ended:
            return self.conclude(job, self.ended[job.a][0], row.state)
        since = self.missed.setdefault(job.a, now())
        self.look_at = 0.0
        if not job.pid and self.shared.claim(job.a).id:
            return self.soon()
        natural = row.state in ("COMPLETED", "FAILED") and not job.why
        grace = 0.0 if not job.pid else self.options.file_grace_s if natural else SOON_S
        if now() - since < grace:
            return self.soon()  # its status may be on its way through the shared filesystem
        return self.gone(job, row)

    def gone(self, job: Job, row: Row) -> None:
        """End a job that is over and has left no status."""
        if not job.pid and not self.shared.fence(job.a):
            return None  # it has begun after all
        reason = REASONS.get(row.state, "LOST")
        killed = 9 if job.pid and row.state in ("CANCELLED", "TIMEOUT") else None
        message = self.told(job, row.state)
        if job.why and row.state not in ("NODE_FAIL", "BOOT_FAIL"):
            reason, message = job.why, job.message
        elif row.state in ("FAILED", "COMPLETED"):
            message += f", exit code {row.reason}" if ":" in row.reason else f" ({row.reason})"
            if not job.pid:
                message += "; is the VM's home on a filesystem that the compute nodes share?"
            message = f"{message} {self.log_of(job)}".strip()
        return self.end(job, reason, message=message, signal=killed)

    def log_of(self, job: Job) -> str:
        """Return the end of what Slurm itself had to say."""
        path = f"{self.shared.path}/b-{self.at[job.a][0].token}/log"
        return " ".join(slurp(path)[-500:].decode(errors="replace").split())
