"""Owners, pools, VMs and jobs in the states the tests need, made by the models' own functions."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text

from remuda.models import collect, exits, lease_requests, pool_life
from remuda.models.database import Listener, rows
from remuda.models.dispatch import Placed, Snapshot, apply_placements, take_snapshot
from remuda.models.exits import Outcome
from remuda.models.states import VmState, edges
from remuda.models.submit import NewJob, NewSpec, insert_jobs, owner_id
from remuda.models.vm_life import insert_vms, move_vm

T = TypeVar("T")
OWNER = "alice"
BIRTH = {"job": "NEW", "attempt": "PLACED", "vm": "NEW", "image": "NEW", "pool": "UNSUBMITTED"}
TABLES = {kind: f"{kind}s" for kind in BIRTH}


def make_pool(
    connection: Connection, name: str = "herd", *, submitted: bool = True, **fields: Any
) -> int:
    """Return the id of a new pool of the local provider, SUBMITTED unless told otherwise."""
    pool = pool_life.insert_pool(
        connection,
        name,
        owner=OWNER,
        provider="local",
        backend="local",
        fields={"slots_per_vm": 2, **fields},
    )
    if submitted:
        pool_life.submit_pool(connection, pool)
    return pool


def make_vms(
    connection: Connection, pool: int, count: int = 1, *, state: VmState = VmState.RUNNING
) -> list[int]:
    """Return the ids of new VMs of the pool: NEW, SUBMITTED or RUNNING."""
    made = insert_vms(connection, pool, count)
    for vm in made:
        if state is not VmState.NEW:
            move_vm(connection, vm, VmState.SUBMITTED, fields={"provider_id": f"local-{vm}"})
        if state is VmState.RUNNING:
            move_vm(connection, vm, VmState.RUNNING, allowed=[VmState.SUBMITTED])
    return made


def reach_vm(connection: Connection, vm: int, target: VmState) -> None:
    """Bring a NEW VM to `target` by legal steps."""
    ways: dict[VmState, list[VmState]] = {
        VmState.NEW: [],
        VmState.SUBMITTED: [VmState.SUBMITTED],
        VmState.WAIT_SSH_CONTEXT: [VmState.SUBMITTED, VmState.WAIT_SSH_CONTEXT],
        VmState.CONTEXTUALIZING: [
            VmState.SUBMITTED,
            VmState.WAIT_SSH_CONTEXT,
            VmState.CONTEXTUALIZING,
        ],
        VmState.RUNNING: [VmState.SUBMITTED, VmState.RUNNING],
        VmState.STALLED: [VmState.SUBMITTED, VmState.RUNNING, VmState.STALLED],
        VmState.STOPPING: [VmState.STOPPING],
        VmState.ERROR: [VmState.ERROR],
        VmState.HALTED: [VmState.STOPPING, VmState.HALTED],
    }
    connection.execute(text("UPDATE vms SET provider_id = 'p' WHERE id = :vm"), {"vm": vm})
    for step in ways[target]:
        move_vm(connection, vm, step)


def make_jobs(
    connection: Connection, pool: int, count: int = 1, *, owner: str = OWNER, **fields: Any
) -> list[int]:
    """Return the ids of new jobs that share one spec."""
    return insert_jobs(
        connection,
        [NewSpec(command=["/bin/true"])],
        [NewJob(spec=0, **fields) for _ in range(count)],
        pool_id=pool,
        owner=owner_id(connection, owner),
    )


def make_wish(connection: Connection, *pools: int, owner: str = "bob", **fields: Any) -> int:
    """Return the id of a new request for a lease."""
    wanted = lease_requests.Wanted(pool_ids=pools, owner=owner, **fields)
    return lease_requests.insert(connection, wanted, owner=owner_id(connection, owner))


def fit(snapshot: Snapshot, *, max_ahead: int = 0) -> list[tuple[int, int]]:
    """Return a first fit of the snapshot's jobs, as (job, VM); a stand-in for the real decider."""
    slots = {vm.id: vm.slots - vm.used_slots for vm in snapshot.vms}
    ahead = {vm.id: max_ahead - vm.backlog_count for vm in snapshot.vms}
    pairs = []
    for job in (job for job in snapshot.jobs if not job.reserves):
        for vm in snapshot.vms:
            if vm.pool_id not in (job.pool_ids or [job.pool_id]) or job.cores > vm.slots:
                continue
            if slots[vm.id] < job.cores and ahead[vm.id] <= 0:
                continue
            ahead[vm.id] -= slots[vm.id] < job.cores
            slots[vm.id] -= job.cores
            pairs.append((job.id, vm.id))
            break
    return pairs


def dispatch(connection: Connection, *, max_ahead: int = 0) -> list[Placed]:
    """Place whatever fits and return the new attempts."""
    snapshot = take_snapshot(connection, max_ahead=max_ahead)
    return apply_placements(connection, snapshot, fit(snapshot, max_ahead=max_ahead))


def born(connection: Connection, kind: str) -> int:
    """Return the id of a new job, attempt, vm, image or pool in its first state."""
    pool = make_pool(connection, submitted=False)
    if kind == "pool":
        return pool
    if kind == "image":
        return int(row(connection, "pools", pool)["image_id"])
    [vm] = make_vms(connection, pool, state=VmState.NEW)
    if kind == "vm":
        return vm
    [job] = make_jobs(connection, pool)
    if kind == "job":
        return job
    lease = connection.scalar(
        text(
            """INSERT INTO leases (vm_id, owner_id, for_jobs, slots)
               SELECT :vm, id, true, 1 FROM owners RETURNING id"""
        ),
        {"vm": vm},
    )
    made = connection.scalar(
        text(
            """INSERT INTO attempts (job_id, epoch, vm_id, lease_id, cores)
               VALUES (:job, 1, :vm, :lease, 1) RETURNING id"""
        ),
        {"job": job, "vm": vm, "lease": lease},
    )
    return int(made)


def running_job(connection: Connection, pool: int, **fields: Any) -> tuple[int, Placed]:
    """Return a new job and its STARTED attempt; the pool needs a VM with room."""
    [job] = make_jobs(connection, pool, **fields)
    [placed] = [p for p in dispatch(connection) if p.job_id == job]
    exits.record_starts(connection, placed.vm_id, {placed.attempt_id: 0.5})
    return job, placed


def ended(attempt_id: int, **fields: Any) -> Outcome:
    """Return the outcome of an attempt that ran for a second and ended well, unless told."""
    return Outcome(
        **{
            "attempt_id": attempt_id,
            "state": "COLLECTED",
            "job_state": "TERMINATED",
            "reason": "OK",
            "exit_code": 0,
            "started_age_s": 1.5,
            "ended_age_s": 0.5,
            **fields,
        }
    )


def lost(attempt_id: int, **fields: Any) -> Outcome:
    """Return the outcome of an attempt lost with its VM, its job to be placed anew."""
    return Outcome(
        **{
            "attempt_id": attempt_id,
            "state": "LOST",
            "job_state": "NEW",
            "reason": "LOST",
            "loss": True,
            **fields,
        }
    )


def record(connection: Connection, vm: int, *outcomes: Outcome, **more: Any) -> set[int]:
    """Record ends on a VM as the watcher does, under its lock."""
    exits.lock_journal(connection, vm)
    return exits.record_ends(connection, vm, outcomes, **more)


def finish(connection: Connection, vm: int, *outcomes: Outcome, **more: Any) -> set[int]:
    """Finish EXITED attempts of a VM as get_results does, under its lock."""
    exits.lock_journal(connection, vm)
    return collect.finish(connection, vm, outcomes, **more)


def row(connection: Connection, table: str, key: int) -> dict[str, Any]:
    """Return the row of `table` with that id."""
    [found] = rows(connection, f"SELECT * FROM {table} WHERE id = :id", id=key)
    return dict(found)


def state(connection: Connection, kind: str, key: int) -> str:
    """Return the state of a job, attempt, vm, image or pool."""
    return str(row(connection, TABLES[kind], key)["state"])


def path(connection: Connection, kind: str, key: int) -> str:
    """Return the states a subject went through by its events, in words."""
    found = rows(
        connection,
        """SELECT from_state, to_state FROM events WHERE kind = :kind AND subject_id = :id
           ORDER BY id""",
        kind=kind,
        id=key,
    )
    for before, after in itertools.pairwise(found):
        assert after["from_state"] == before["to_state"], f"{kind} {key}: broken chain {found}"
    return " ".join(event["to_state"] for event in found)


def assert_chains(connection: Connection) -> None:
    """Check that every subject's events lead by legal steps from its birth to its state."""
    legal = set(edges())
    for kind, table in TABLES.items():
        found = rows(
            connection,
            f"""SELECT s.id, s.state, e.from_state, e.to_state,
                       lag(e.to_state) OVER w AS before, lead(e.id) OVER w IS NULL AS is_last
                FROM {table} s LEFT JOIN events e ON e.kind = :kind AND e.subject_id = s.id
                WINDOW w AS (PARTITION BY s.id ORDER BY e.id)""",
            kind=kind,
        )
        for event in found:
            told = f"{kind} {dict(event)}"
            assert event["from_state"] == event["before"], told
            if event["from_state"] is None:
                assert event["to_state"] == BIRTH[kind], told
            else:
                assert (kind, event["from_state"], event["to_state"]) in legal, told
            assert not event["is_last"] or event["to_state"] == event["state"], told


def assert_sound(connection: Connection) -> None:
    """Check what holds between any two transactions: chains, one live attempt, no overbooking."""
    assert_chains(connection)
    live = "('PLACED', 'STARTED', 'EXITED')"
    for what, query in {
        "jobs on a machine without exactly one live attempt of their epoch": f"""
            SELECT j.id FROM jobs j WHERE (j.state NOT IN ('NEW', 'TERMINATED')) <> (1 = (
              SELECT count(*) FROM attempts a
              WHERE a.job_id = j.id AND a.epoch = j.epoch AND a.state IN {live}))""",
        "live attempts of an older epoch": f"""
            SELECT a.id FROM attempts a JOIN jobs j ON j.id = a.job_id
            WHERE a.state IN {live} AND a.epoch <> j.epoch""",
        "VMs with more running than slots": """
            SELECT v.id FROM vms v WHERE v.slots <
              (SELECT coalesce(sum(cores), 0) FROM attempts
               WHERE vm_id = v.id AND state = 'STARTED')
              + (SELECT coalesce(sum(slots), 0) FROM leases
                 WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL)""",
        "live attempts on VMs that are gone": f"""
            SELECT a.id FROM attempts a JOIN vms v ON v.id = a.vm_id
            WHERE a.state IN {live} AND v.state = 'HALTED'""",
        "live attempts without their lease": f"""
            SELECT a.id FROM attempts a JOIN leases l ON l.id = a.lease_id
            WHERE a.state IN {live} AND l.released_at IS NOT NULL""",
        "job leases that nothing holds": f"""
            SELECT l.id FROM leases l WHERE l.for_jobs AND l.released_at IS NULL
              AND NOT EXISTS (SELECT FROM attempts a WHERE a.lease_id = l.id
                              AND a.state IN {live})""",
        "states with the wrong times": """
            SELECT id FROM jobs WHERE state = 'RUNNING' AND started_at IS NULL
               OR state IN ('NEW', 'SUBMITTED') AND started_at IS NOT NULL""",
    }.items():
        assert not rows(connection, query), what


def together(*functions: Callable[[], T]) -> list[T]:
    """Run the functions in as many threads, started at one moment; return their results."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], T]) -> T:
        barrier.wait(timeout=20)
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return [f.result(timeout=60) for f in [threads.submit(run, f) for f in functions]]


def wait_for_a_lock(engine: Engine) -> None:
    """Return when another connection to the database waits for a lock."""
    deadline = time.monotonic() + 20
    with engine.connect() as observer:
        while not rows(
            observer,
            """SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
               AND datname = current_database()""",
        ):
            observer.rollback()
            assert time.monotonic() < deadline, "nobody waits for a lock"


def heard(listener: Listener, action: Callable[[], object]) -> list[tuple[str, str]]:
    """Return the notifications that `action`'s transaction sent, as (channel, payload)."""
    action()
    mark = "builders-mark"
    listener._connection.execute(f"SELECT pg_notify('remuda_wake', '{mark}')")
    found: list[tuple[str, str]] = []
    while ("remuda_wake", mark) not in found:
        more = listener.wait(10.0)
        assert more, "the listener heard nothing, not even its own mark"
        found += more
    return [note for note in found if note[1] != mark]


def age(connection: Connection, table: str, keys: Sequence[int], column: str, by_s: float) -> None:
    """Let the time in `column` of those rows be `by_s` seconds longer ago."""
    connection.execute(
        text(
            f"""UPDATE {table} SET {column} = {column} - make_interval(secs => :by)
                WHERE id = ANY(:ids)"""
        ),
        {"by": by_s, "ids": list(keys)},
    )
