"""Everything that writes jobs at once, on a real PostgreSQL: nothing fails for good, nothing breaks."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from psycopg import errors as pg_errors
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext

from remuda import After, Client, JobSpec
from remuda.models import calls, cancel, collect, deadlines, dependencies
from remuda.models.database import make_engine, rows, transact
from remuda.models.dispatch import apply_placements, take_snapshot
from remuda.models.exits import lock_journal
from remuda.models.states import VmState
from remuda.models.vm_life import lock_vms, move_vm
from remuda.retries import RetryPolicy
from remuda.tasks import decisions, recording
from remuda.tasks.retrying import known_of
from tests.integration.builders import fit, together
from tests.integration.workbench import Workbench
from tests.invariants import broken

T = TypeVar("T")
STRESS_S = 6.0
PATIENCE_S = 60.0
WANTED = ("placed", "ended", "collected", "cancelled", "lost")
VMS, SLOTS = 4, 8
WELL = {"why": "OK", "st": 0}
ENDS: Sequence[dict[str, Any]] = (
    *[WELL] * 5,
    {"why": "NONZERO", "st": 3},
    {"why": "SIGNALLED", "sig": 11},
    {"why": "OK", "st": 0, "f": {"out": 5}},
    {"why": "LOST", "started": True, "msg": "the runner was killed"},
)
ATTEMPTS = """SELECT id, state FROM attempts
              WHERE vm_id = :vm AND state IN ('PLACED', 'STARTED') ORDER BY random() LIMIT 40"""
HELD = "SELECT id FROM jobs WHERE held AND state = 'NEW'"
SOME = "SELECT id FROM jobs WHERE state <> 'TERMINATED' ORDER BY random() LIMIT :most"


class Stress:
    """What workers and clients do, each in a transaction of its own; counts what was tried again."""

    def __init__(self, bench: Workbench, url: str) -> None:
        self.engine: Engine = make_engine(url, pool_size=12)
        event.listen(self.engine, "handle_error", self._failed)
        self.bench = bench
        self.pool = bench.pool(vms=VMS, instance_count=VMS, slots_per_vm=SLOTS)
        self.vms: list[int] = [
            row["id"] for row in self.transact(lambda c: rows(c, "SELECT id FROM vms"))
        ]
        self.done: Counter[str] = Counter()
        self.numbers = itertools.count(1)

    def _failed(self, context: ExceptionContext) -> None:
        if isinstance(context.original_exception, pg_errors.DeadlockDetected):
            self.done["deadlocks"] += 1

    def transact(self, work: Callable[[Connection], T]) -> T:
        return transact(self.engine, work)

    def submit(self, client: Client) -> None:
        """Submit arrays, limited, retried and waiting for each other."""
        sizes = random.randint(5, 25)
        policy = RetryPolicy(max_retries=2, max_total_retries=10, delay_s=0.0)
        first = client.submit_array(
            JobSpec("true", retry=policy), sizes, pool="herd", max_running=random.choice([None, 3])
        )
        array = client.array(first[0])
        second = client.submit_array(
            JobSpec("true", after=After(array, "end", each=True), retry=policy),
            sizes,
            pool="herd",
            max_running=random.choice([None, 2]),
        )
        last = JobSpec("true", name="last", after=[After(client.array(second[0]), "success")])
        any_of = JobSpec("true", after=[After(array, "success", "any"), After("last", "end")])
        client.submit_many([any_of, last], pool="herd")

    def dispatch(self) -> None:
        def work(connection: Connection) -> int:
            snapshot = take_snapshot(connection, max_ahead=8)
            room = dict(snapshot.array_room)
            arrays = {job.id: job.array_id for job in snapshot.jobs}
            chosen = []
            for job, vm in fit(snapshot, max_ahead=8):
                array = arrays[job]
                if array in room:
                    room[array] -= 1
                    if room[array] < 0:
                        continue
                chosen.append((job, vm))
            return len(apply_placements(connection, snapshot, chosen))

        self.done["placed"] += self.transact(work)

    def push(self, vm: int, *, well: bool = False) -> None:
        """Record starts and ends as the VM's runner would push them."""

        def work(connection: Connection) -> recording.Recorded:
            batch = recording.Batch()
            entries = []
            for row in rows(connection, ATTEMPTS, vm=vm):
                number = next(self.numbers)
                entry = {"n": number, "a": row["id"], "t": "start", "at": 1.0}
                if row["state"] == "STARTED" or random.random() < 0.5:
                    how = WELL if well else random.choice(ENDS)
                    entry = {"n": number, "a": row["id"], "t": "exit", "s": 1.0, "x": 2.0, **how}
                entries.append(entry)
            batch.add({"now": 3.0, "entries": entries}, came_at=time.monotonic())
            return recording._record(connection, vm, batch)

        self.done["ended"] += len(self.transact(work).ends)

    def collect(self, vm: int) -> None:
        """Fetch the outputs of what has exited."""

        def work(connection: Connection) -> set[int]:
            if lock_journal(connection, vm) is None:
                return set()
            found = collect.to_collect(connection, vm_id=vm)
            known = known_of(connection, [row["attempt_id"] for row in found])
            outcomes = [decisions.collected(known.get(r["attempt_id"]), r) for r in found]
            return collect.finish(connection, vm, outcomes) if outcomes else set()

        self.done["collected"] += len(self.transact(work))

    def cancel(self) -> None:
        """Cancel some jobs, now and then a whole array."""

        def some(connection: Connection) -> list[int]:
            most = random.choice([1, 5, 30])
            return cancel.request_cancel(
                connection, [row["id"] for row in rows(connection, SOME, most=most)]
            )

        def array_of(connection: Connection) -> list[int]:
            array = connection.scalar(text("SELECT id FROM arrays ORDER BY random() LIMIT 1"))
            return [] if array is None else cancel.cancel_matching(connection, array_id=array)

        self.done["cancelled"] += len(self.transact(random.choice([some, some, array_of])))

    def lose(self) -> None:
        """Let a VM be silent, its attempts lost, and come back."""

        def work(connection: Connection) -> int:
            vm = random.choice(self.vms)
            lock_vms(connection, [vm])
            move_vm(connection, vm, VmState.STALLED)
            lost = recording.lose_attempts(connection, vm, "silent")
            move_vm(connection, vm, VmState.RUNNING, allowed=[VmState.STALLED])
            return lost

        self.done["lost"] += self.transact(work)

    def suspend(self, vm: int) -> None:
        """Suspend and resume what runs."""

        def work(connection: Connection) -> list[int]:
            found = rows(connection, ATTEMPTS, vm=vm)
            flags = {row["id"]: random.random() < 0.3 for row in found}
            return calls.record_suspended(connection, vm, flags)

        self.done["suspended"] += len(self.transact(work))

    def sweep(self) -> None:
        """Do what beat's sweeps do to jobs."""
        self.transact(deadlines.end_overdue)
        self.transact(dependencies.reconcile)
        self.transact(cancel.cancel_requeued)


def test_all_at_once(bench: Workbench, database_url: str) -> None:
    """Eight threads for some seconds: every transaction succeeds, if not at the first try.

    They go on until each kind has been done, however little a busy machine does in that time.
    """
    stress = Stress(bench, database_url)
    began = time.monotonic()
    stop = threading.Event()

    def is_enough() -> bool:
        took_s = time.monotonic() - began
        return took_s > PATIENCE_S or (took_s > STRESS_S and all(map(stress.done.get, WANTED)))

    def repeat(*steps: Callable[[], object]) -> None:
        try:
            while not is_enough() and not stop.is_set():
                for step in steps:
                    step()
        except BaseException:
            stop.set()
            raise

    def pick() -> int:
        return random.choice(stress.vms)

    with bench.client() as client:
        event.listen(client._context._engine, "handle_error", stress._failed)
        together(
            lambda: repeat(lambda: stress.submit(client), lambda: stop.wait(0.05)),
            lambda: repeat(stress.dispatch),
            lambda: repeat(stress.dispatch, stress.sweep),
            lambda: repeat(lambda: stress.push(pick())),
            lambda: repeat(lambda: stress.push(pick())),
            lambda: repeat(lambda: stress.push(pick()), lambda: stress.collect(pick())),
            lambda: repeat(stress.cancel, lambda: stop.wait(0.02)),
            lambda: repeat(stress.lose, lambda: stress.suspend(pick()), lambda: stop.wait(0.02)),
        )
    # What is left ends well, by the same steps.
    deadline = time.monotonic() + 30
    open_jobs = "SELECT count(*) AS open FROM jobs WHERE state <> 'TERMINATED'"
    while stress.transact(lambda c: rows(c, open_jobs))[0]["open"]:
        assert time.monotonic() < deadline, stress.done
        stress.sweep()
        stress.transact(lambda c: calls.let_go(c, list(c.scalars(text(HELD)))))
        stress.dispatch()
        for vm in stress.vms:
            stress.push(vm, well=True)
            stress.collect(vm)
    print(dict(stress.done))
    assert all(map(stress.done.get, WANTED))
    with stress.engine.connect() as connection:
        found = broken(lambda statement: list(map(dict, rows(connection, statement))))
    found = {name: wrong for name, wrong in found.items() if not name.startswith("3: slots")}
    assert found == {}
    stress.engine.dispose()
