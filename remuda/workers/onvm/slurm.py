"""The runner of a Slurm cluster: it runs on a login node and hands its attempts to Slurm.

All a controller sees is the ordinary runner. Attempts that come together and ask for the same
become one array. What is true is in HOME/slurm (see slurmfiles.py); an sbatch of which no answer
came is looked for by its comment before it is repeated, and an attempt's claim can be made only
once: nothing starts twice. Slurm's jobs survive the runner, and the next one goes on with them.
"""

from __future__ import annotations

import collections
import json
import os
import time
from typing import Any

from remuda.workers.onvm import slurmcalls, slurmfiles
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.ledger import dumps
from remuda.workers.onvm.processes import find_command, now
from remuda.workers.onvm.slurmcalls import Call, Options
from remuda.workers.onvm.slurmfollow import LOOK_S, Batch
from remuda.workers.onvm.slurmsend import Sending


class SlurmRunner(Sending):
    """A runner whose jobs are Slurm's."""

    def __init__(
        self, home: str, *, memory: int = 0, slurm: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """Take over the home; `slurm`: see Options."""
        self.told_to_end = self.signalling = False
        self.signals: collections.deque[tuple[str, str]] = collections.deque()
        path = Options(slurm or {}).environment(dict(os.environ)).get("PATH") or os.defpath
        try:
            find_command("sbatch", path)
        except OSError:
            raise RuntimeError(f"there is no sbatch in {path}; name its folder: bin") from None
        super().__init__(home, memory=memory, slurm=slurm or {}, **more)

    # ---- the loop

    def next_deadline(self) -> float:
        times = [super().next_deadline()]
        if self.batches:
            times += [self.look_at, NEVER if self.polling else self.poll_at]
        times += [batch.at for batch in self.batches.values() if batch.state == "new"]
        times += [job.deadline for job in self.jobs.values()]
        times += [call.deadline for call in self.calls]
        times += [self.scancel_at] if self.doomed else []
        return min(times)

    def tick(self) -> None:
        """Do all that is due."""
        current = now()
        for job in [job for job in self.jobs.values() if job.deadline <= current]:
            self.terminate(job, "WALLTIME", 0.0)
        for call in [call for call in self.calls if call.deadline <= current]:
            call.expire()
        if self.batches and self.look_at <= current:
            self.look()
        if self.outbox and not self.sending():
            self.submit()
        for batch in [b for b in self.batches.values() if b.state == "new" and b.at <= current]:
            self.send(batch)
        if self.batches and self.poll_at <= current and not self.polling:
            self.poll_slurm()
        if self.doomed and self.scancel_at <= current:
            self.scancel()
        if not self.ledger.waiting:  # what the journal has need not be read again
            while self.litter:
                slurmfiles.unlink(self.litter.popleft())

    def load(self) -> dict[str, Any]:
        """Count as running what Slurm has started."""
        running = sum(1 for job in self.jobs.values() if job.pid)
        return {**super().load(), "running": running, "queued": len(self.jobs) - running}

    def accept(self, job: Job, floor: int) -> None:
        """Queue an attempt; what it wants of a node is not this machine's to give."""
        job.pin, job.gpus = False, 0
        super().accept(job, floor)

    # ---- ending

    def end(self, job: Job, why: str, *, message: str = "", **how: Any) -> None:
        """Report an end; an empty sandbox without outputs is no sandbox."""
        self.missed.pop(job.a, None)
        self.ended.pop(job.a, None)
        if job.folder and not job.outs:
            try:
                os.rmdir(job.folder)
                job.folder = ""
            except OSError:
                pass  # there is something in it
        super().end(job, why, message=message, **how)
        for stream in (job.out, job.err):
            if stream and not stream.file:
                self.litter.append(stream.path)

    def do_stop(self, connection: Connection, ask: dict[str, Any]) -> None:
        """{}: cancel everything and end."""
        self.told_to_end = True
        super().do_stop(connection, ask)

    def kill_everything(self) -> None:
        """End the jobs if the VM ends; if only the runner does, they are Slurm's to keep."""
        if self.told_to_end or os.path.exists(self.home + "/stopped") or self.vanished_now():
            slurmcalls.end_all(self.shared.name, self.options, self.environ, wait_s=0.0)
        super().kill_everything()

    def terminate(self, job: Job, why: str, grace: float) -> None:
        """End a job early; one that is suspended has to go on to hear of it."""
        if job.suspended and job.pid:
            self.thaw(job)
            self.resumed(job)
        super().terminate(job, why, grace)

    def scancel(self) -> None:
        """Cancel what is to be cancelled, after the signals that were sent before."""
        if self.signalling:
            self.scancel_at = now() + LOOK_S
        else:
            super().scancel()

    # ---- the next runner

    def adopt(self) -> set[int]:
        """Go on with what the last runner left with Slurm; returns those attempts."""
        adopted: set[int] = set()
        for token, slurm_id, specs in self.shared.batches():
            jobs = {}
            for index, spec in enumerate(specs):
                job = Job(spec)
                job.pin, job.gpus = False, 0
                if job.a not in self.ledger.open or job.a in adopted:
                    continue
                jobs[index] = job
                adopted.add(job.a)
                self.jobs[job.a] = job
                job.folder = self.boxes.of(job.a)
                self.open_streams(job)
                self.hold(job, 1)
                if self.ledger.open[job.a][2] > 0:
                    self.take_up(job)
            batch = Batch(token, jobs, [int(spec["a"]) for spec in specs], slurm_id=slurm_id)
            if not slurm_id:
                batch.state, batch.since = "unsure", now()
            self.adopt_batch(batch)
        for a, item in self.ledger.open.items():
            if a not in adopted and item[2] < 0:
                item[2] = 0  # it was to be handed over, and never was
        self.remove(self.shared.leftovers())
        return adopted

    def take_up(self, job: Job) -> None:
        """Go on with a job that runs."""
        claim = self.shared.claim(job.a)
        job.pid = claim.id or self.ledger.open[job.a][2]
        age = max(0.0, time.time() - claim.at) if claim.at else 0.0
        job.state, job.started = "running", now() - age
        job.deadline = job.due()

    # ---- requests

    def handle(self, connection: Connection, line: bytes) -> None:
        """Answer one request, `extend` when Slurm has answered."""
        try:
            ask = json.loads(line)
            extend = isinstance(ask, dict) and ask.get("do") == "extend"
            refused = self.extend(connection, ask) if extend else ""
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            extend, refused = True, repr(error)
        if not extend:
            super().handle(connection, line)
        elif refused:
            number = ask.get("id") if isinstance(ask, dict) else None
            reply = {"re": number, "ok": False, "code": "BAD", "error": refused}
            connection.send(dumps(reply))

    def extend(self, connection: Connection, ask: dict[str, Any]) -> str:
        """{a, wall}: let it run so long; answers, or returns why that cannot be."""
        job, wall = self.jobs.get(int(ask["a"])), float(ask["wall"])
        if job is None or not wall > 0 or job.why:
            return f"attempt {ask['a']} is neither queued nor running, or the walltime is not > 0"

        def answer(call: Call | None) -> None:
            reply: dict[str, Any] = {"re": ask.get("id"), "ok": call is None or not call.status}
            if reply["ok"]:
                job.wall = wall
                if job.pid:
                    job.deadline = job.due()
            else:
                reply.update(code="BAD", error=f"Slurm does not extend it: {call and call.said}")
            connection.send(dumps(reply))

        minutes = slurmcalls.minutes(wall) if wall != NEVER else 0
        if job.a not in self.at:
            job.spec["wall"] = wall
        elif job.wall != NEVER and minutes > slurmcalls.minutes(job.wall):
            if not self.id_of(job):
                return "it is being submitted; try again"
            words = ["scontrol", "update", "JobId=" + self.id_of(job)]
            started = self.call([*words, f"TimeLimit={minutes}"], answer)
            return "" if started else "scontrol cannot be started"
        answer(None)
        return ""

    def do_recall(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{a: ids}: take back also what waits in Slurm's queue."""
        recalled, pending = super().do_recall(connection, ask)["recalled"], []
        for a in dict.fromkeys(ask["a"]):
            job = self.jobs.get(a)
            if job is None or a not in self.at or job.pid or not self.shared.fence(a):
                continue
            self.cancel_in_slurm(job)
            self.hold(job, -1)
            self.jobs.pop(a).state = "recalled"
            self.missed.pop(a, None)
            self.ledger.add(t="drop", a=a)
            pending.append(a)
        self.remove(self.boxes.free(pending))
        return {"recalled": recalled + pending}

    def do_signal(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{a, signal}: signal all processes of a running attempt."""
        job, number = self.jobs[int(ask["a"])], int(ask["signal"])
        if not job.pid or not 0 < number < 65:
            raise ValueError("not running")
        self.signal_job(job, str(number))

    def freeze(self, job: Job) -> None:
        """Stop all processes of a job; Slurm's own walltime goes on."""
        self.signal_job(job, "STOP")

    def thaw(self, job: Job) -> None:
        """Let all processes of a job run."""
        self.signal_job(job, "CONT")

    def signal_job(self, job: Job, name: str) -> None:
        """Signal every process of a job, after what was sent before; if it is over, no matter."""
        self.signals.append((self.id_of(job), name))
        self.next_signal()

    def next_signal(self) -> None:
        """Send the signals one after the other: STOP and CONT must not overtake each other."""
        if self.signals and not self.signalling:
            slurm_id, name = self.signals.popleft()

            def over(_: Call) -> None:
                self.signalling = False
                self.next_signal()

            words = ["scancel", "--full", "--signal=" + name, slurm_id]
            self.signalling = self.call(words, over) is not None
