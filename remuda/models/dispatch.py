"""What the dispatcher sees and what it does: a snapshot under locks, and its application.

Both run in one transaction. The row locks of the VMs protect their slots (no one else places on,
drains or closes them meanwhile); those of the jobs protect their one live attempt. SKIP LOCKED
lets several dispatchers share the work; whatever one skips, the other has in hand. The rows of arrays
with a limit are locked before all else, and waited for: who holds one alone places jobs of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from remuda.constraints import hardware_of
from remuda.fairness import FairShares
from remuda.models import quotas
from remuda.models.base import sql_list
from remuda.models.database import rows
from remuda.models.jobs import READY
from remuda.models.quotas import QuotaRoom
from remuda.models.rooms import TAKES_LONG, VmRoom
from remuda.models.states import NO_BACKEND, OPEN_POOL
from remuda.models.waiting import WaitingJob, WaitingJobs

Release = tuple[float | None, int, int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be placed where, at the database's `now`.

    `array_room`: how many more jobs of the arrays that have a limit may be on machines; `quota`: how
    many more slots owners may have. `cut`: the (pool, owner) of which there may be more jobs, which
    come after those that are here (pool 0: of jobs that may go to several). `releases`: of VMs with
    jobs that wait for room, (seconds until it ends if known, slots, memory, GPUs) of each attempt.
    """

    now: datetime
    jobs: tuple[WaitingJob, ...]
    vms: tuple[VmRoom, ...]
    array_room: Mapping[int, int] = field(default_factory=dict)
    quota: QuotaRoom = field(default_factory=QuotaRoom)
    shares: FairShares = field(default_factory=FairShares)
    cut: frozenset[tuple[int, int]] = frozenset()
    releases: Mapping[int, Sequence[Release]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A new attempt."""

    attempt_id: int
    job_id: int
    vm_id: int


# Pools with jobs that wait for them, or may go to them, too. Not EXISTS: that may be hashed, which reads
# all jobs.
_WANTED = f"""
    p.state IN ({sql_list(OPEN_POOL)}) AND p.budget_stop IS NULL AND coalesce(
      (SELECT true FROM jobs j WHERE j.pool_id = p.id AND {READY} LIMIT 1),
      (SELECT true FROM jobs j WHERE j.pool_ids @> ARRAY[p.id] AND j.pool_ids IS NOT NULL
         AND {READY} LIMIT 1), false)
"""

_WAITING = text(f"SELECT p.id FROM pools p WHERE {_WANTED} ORDER BY p.id")

_SEVERAL = text(f"SELECT EXISTS (SELECT FROM jobs j WHERE {READY} AND j.pool_ids IS NOT NULL)")

# The statements that follow look costly to the planner and are not: compiling them would be, and so
# would planning them anew each time. A plan that is kept may be older than the jobs that wait: it must
# be the one for many, by the indexes made for it.
_NOW = text("""
    SELECT now(), EXISTS (SELECT FROM quotas WHERE max_slots IS NOT NULL),
           set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true),
           set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
""")

_LOCK_ARRAYS = """
    SELECT id, max_running FROM arrays WHERE max_running IS NOT NULL AND ended < size
    ORDER BY id FOR NO KEY UPDATE
"""

_ON_MACHINES = """
    SELECT j.array_id, count(*) AS count FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.state IN ('PLACED', 'STARTED') AND j.array_id = ANY(:arrays) GROUP BY 1
"""

# What is kept for a lease takes no jobs.
_LOCK_VMS = f"""
    SELECT v.id, v.pool_id, v.slots, v.memory_bytes, v.gpus, v.architecture, v.facts, p.isolation,
           v.bound_owner_id, v.bound_sandbox, p.max_jobs_per_vm
    FROM vms v JOIN pools p ON p.id = v.pool_id
    WHERE v.state = 'RUNNING' AND NOT v.draining AND v.release_due_at IS NULL
      AND p.backend <> '{NO_BACKEND}'
      AND v.pool_id = ANY(:pools) AND NOT EXISTS (
        SELECT FROM lease_requests q WHERE q.vm_id = v.id AND q.lease_id IS NULL AND NOT q.refused
          AND q.expires_at > now())
    ORDER BY v.id FOR NO KEY UPDATE OF v SKIP LOCKED
"""

_USED = f"""
    SELECT vm_id, sum(cores)::int AS slots, sum(coalesce(memory_bytes, 0))::bigint AS memory_bytes,
           coalesce(sum(cores * coalesce(expected_wall_s, 3600)) FILTER (WHERE state = 'PLACED'), 0)
             ::float8 AS backlog_s,
           count(*) FILTER (WHERE state = 'PLACED') AS backlog, sum(gpus)::int AS gpus,
           coalesce(sum(cores) FILTER (WHERE {TAKES_LONG}), 0)::int AS kept,
           coalesce(sum(memory_bytes) FILTER (WHERE {TAKES_LONG}), 0)::bigint AS kept_memory
    FROM attempts WHERE vm_id = ANY(:vms) AND state IN ('PLACED', 'STARTED') GROUP BY vm_id
    UNION ALL
    SELECT vm_id, sum(slots)::int, 0, 0, 0, 0, sum(slots)::int, 0 FROM leases
    WHERE vm_id = ANY(:vms) AND NOT for_jobs AND released_at IS NULL GROUP BY vm_id
"""

# What was recalled before it started does not count.
_HAD = """
    SELECT vm_id, count(*) AS count FROM attempts
    WHERE vm_id = ANY(:vms) AND (state <> 'CANCELLED' OR started_at IS NOT NULL) GROUP BY vm_id
"""

_USED_UP = text("""
    UPDATE vms SET draining = true FROM pools p
    WHERE vms.id = ANY(:vms) AND p.id = vms.pool_id AND p.max_jobs_per_vm <= (
      SELECT count(*) FROM attempts a WHERE a.vm_id = vms.id
        AND (a.state <> 'CANCELLED' OR a.started_at IS NOT NULL))
""")

# What the attempts on VMs give back, and when as far as is known: 0 when it should be over by now.
_RELEASES = """
    SELECT t.vm_id, t.cores, coalesce(t.memory_bytes, 0) AS memory_bytes, t.gpus,
           CASE WHEN t.state = 'PLACED' THEN t.expected_wall_s
                WHEN t.expected_wall_s IS NULL AND j.walltime_s IS NULL THEN NULL
                ELSE greatest(0, least(t.expected_wall_s, j.walltime_s)
                  - extract(epoch FROM now() - t.started_at)) END::float8 AS in_s
    FROM attempts t JOIN jobs j ON j.id = t.job_id
    WHERE t.vm_id = ANY(:vms) AND t.state IN ('PLACED', 'STARTED') ORDER BY t.id
"""

_LEASES = text("""
    INSERT INTO leases (vm_id, owner_id, for_jobs, slots)
    SELECT r.vm_id, r.owner_id, true, v.slots
    FROM unnest(CAST(:vms AS bigint[]), CAST(:owners AS bigint[])) AS r(vm_id, owner_id)
    JOIN vms v ON v.id = r.vm_id
    ON CONFLICT (vm_id, owner_id) WHERE for_jobs AND released_at IS NULL DO NOTHING
""")

_APPLY = text("""
    WITH r AS (
      SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r(job_id bigint, vm_id bigint, expected_wall_s float8)
    ), j AS (
      UPDATE jobs SET state = 'SUBMITTED', epoch = epoch + 1, started_at = NULL,
        pool_id = v.pool_id
      FROM r JOIN vms v ON v.id = r.vm_id WHERE jobs.id = r.job_id AND jobs.state = 'NEW'
      RETURNING jobs.id, jobs.owner_id, jobs.epoch, jobs.cores, jobs.memory_bytes, jobs.gpus,
                r.vm_id, r.expected_wall_s
    )
    INSERT INTO attempts (job_id, epoch, vm_id, lease_id, cores, memory_bytes, gpus,
                          expected_wall_s)
    SELECT j.id, j.epoch, j.vm_id, l.id, j.cores, j.memory_bytes, j.gpus, j.expected_wall_s
    FROM j JOIN leases l ON l.vm_id = j.vm_id AND l.owner_id = j.owner_id
      AND l.for_jobs AND l.released_at IS NULL
    ORDER BY array_position(:order, j.id)
    RETURNING id, job_id, vm_id
""")


# From its first job on a VM serves that owner (and sandbox) alone; of a single use, nobody after it.
_BIND = text("""
    UPDATE vms SET bound_owner_id = r.owner_id, bound_sandbox = r.sandbox,
      draining = draining OR p.isolation = 'single_use'
    FROM unnest(CAST(:vms AS bigint[]), CAST(:owners AS bigint[]), CAST(:sandboxes AS text[]))
           AS r(vm_id, owner_id, sandbox), pools p
    WHERE vms.id = r.vm_id AND p.id = vms.pool_id AND p.isolation <> 'shared'
      AND vms.bound_owner_id IS NULL
""")


def waiting_pools(connection: Connection) -> list[int]:
    """Return the open pools that jobs wait for."""
    return list(connection.scalars(_WAITING))


def anything_waiting(connection: Connection) -> bool:
    """Return whether any job waits in an open pool."""
    return bool(waiting_pools(connection))


def any_for_several(connection: Connection) -> bool:
    """Return whether jobs wait that may go to more than one pool."""
    return bool(connection.scalar(_SEVERAL))


def take_snapshot(
    connection: Connection,
    *,
    max_ahead: int,
    horizon_s: float = math.inf,
    most: int = 2000,
    pools: Sequence[int] | None = None,
    half_life_s: float = 86400.0,
    reserve_after_s: float = math.inf,
    wait: bool = True,
) -> Snapshot:
    """Lock the VMs that could take work and up to `most` jobs a pool and owner, and return both.

    Only of `pools`, if given: all that jobs wait for who may go to one of them. Of the jobs only
    those that fit somewhere: into free slots, or in a queue of up to `max_ahead` if they are known to
    take at most `horizon_s` seconds; and that are not late. Others that have waited for longer than
    `reserve_after_s` seconds, and would fit a VM, are here too, not locked. Unless told to `wait`,
    jobs under quotas that another dispatcher holds are left to it.
    """
    wanted = waiting_pools(connection) if pools is None else pools
    now, limited, *_ = connection.execute(_NOW).one()
    array_room = _lock_arrays(connection)
    quota = quotas.lock(connection, wanted, wait=wait) if limited else QuotaRoom()
    vms = _lock_vms(connection, wanted, horizon_s=horizon_s)
    waiting = WaitingJobs(
        connection,
        vms,
        array_room=array_room,
        quota=quota,
        half_life_s=half_life_s,
        max_ahead=max_ahead,
        horizon_s=horizon_s,
        reserve_after_s=reserve_after_s,
        most=most,
    ).lock()
    found = [job for job in waiting.jobs if job.reserves]
    return Snapshot(
        now,
        waiting.jobs,
        vms,
        array_room,
        quota,
        waiting.shares,
        waiting.cut,
        _releases(connection, vms) if found else {},
    )


def _releases(connection: Connection, vms: Sequence[VmRoom]) -> dict[int, list[Release]]:
    found: dict[int, list[Release]] = {}
    for row in rows(connection, _RELEASES, vms=[vm.id for vm in vms]):
        release = (row["in_s"], row["cores"], row["memory_bytes"], row["gpus"])
        found.setdefault(row["vm_id"], []).append(release)
    return found


def array_rooms(connection: Connection, limits: Mapping[int, int]) -> dict[int, int]:
    """Return how many more jobs of each array may be on machines, given its limit."""
    if not limits:
        return {}
    there = {
        row["array_id"]: row["count"] for row in rows(connection, _ON_MACHINES, arrays=list(limits))
    }
    return {array: limit - there.get(array, 0) for array, limit in limits.items()}


def _lock_arrays(connection: Connection) -> dict[int, int]:
    # Two statements: the count sees what the last holder of the locks placed.
    found = rows(connection, _LOCK_ARRAYS)
    return array_rooms(connection, {row["id"]: row["max_running"] for row in found})


def _lock_vms(
    connection: Connection, pools: Sequence[int], *, horizon_s: float
) -> tuple[VmRoom, ...]:
    found = rows(connection, _LOCK_VMS, pools=list(pools))
    ids = [row["id"] for row in found]
    names = ("slots", "memory_bytes", "backlog_s", "backlog", "gpus", "kept", "kept_memory")
    used: dict[int, dict[str, float]] = {i: dict.fromkeys(names, 0) for i in ids}
    for row in rows(connection, _USED, vms=ids, horizon=horizon_s) if ids else ():
        for name in names:
            used[row["vm_id"]][name] += row[name]
    limits = {row["id"]: row["max_jobs_per_vm"] for row in found if row["max_jobs_per_vm"]}
    left = _jobs_left(connection, limits)
    for vm_id, jobs in left.items():  # each takes a slot, none is placed ahead: never too many
        slots = next(row["slots"] for row in found if row["id"] == vm_id)
        most = min(slots, int(used[vm_id]["slots"]) + jobs)
        used[vm_id]["kept"] = max(used[vm_id]["kept"], slots)
        used[vm_id]["slots"] += slots - most
    return tuple(
        VmRoom(
            id=row["id"],
            pool_id=row["pool_id"],
            slots=row["slots"],
            memory_bytes=row["memory_bytes"],
            used_slots=int(used[row["id"]]["slots"]),
            used_memory_bytes=int(used[row["id"]]["memory_bytes"]),
            backlog_s=used[row["id"]]["backlog_s"],
            backlog_count=int(used[row["id"]]["backlog"]),
            gpus=row["gpus"],
            used_gpus=int(used[row["id"]]["gpus"]),
            hardware=hardware_of(row),
            isolation=row["isolation"],
            bound_owner_id=row["bound_owner_id"],
            bound_sandbox=row["bound_sandbox"],
            ends_after_jobs=row["id"] in left,
            ahead_slots=max(0, row["slots"] - int(used[row["id"]]["kept"])),
            ahead_memory_bytes=None
            if row["memory_bytes"] is None
            else max(0, row["memory_bytes"] - int(used[row["id"]]["kept_memory"])),
        )
        for row in found
    )


def _jobs_left(connection: Connection, limits: Mapping[int, int]) -> dict[int, int]:
    """Return how many more jobs the VMs may have that can have only so many."""
    had: dict[int, int] = dict.fromkeys(limits, 0)
    for row in rows(connection, _HAD, vms=list(limits)) if limits else ():
        had[row["vm_id"]] = row["count"]
    return {vm_id: max(0, limit - had[vm_id]) for vm_id, limit in limits.items()}


def apply_placements(
    connection: Connection, snapshot: Snapshot, placements: Sequence[tuple[int, int]]
) -> list[Placed]:
    """Turn (job id, VM id) pairs, all of the snapshot, into attempts in that order."""
    if not placements:
        return []
    jobs = {job.id: job for job in snapshot.jobs}
    _bind(connection, snapshot, [(jobs[job], vm) for job, vm in placements])
    pairs = sorted({(vm, jobs[job].owner_id) for job, vm in placements})
    connection.execute(_LEASES, {"vms": [p[0] for p in pairs], "owners": [p[1] for p in pairs]})
    payload = json.dumps(
        [
            {"job_id": job, "vm_id": vm, "expected_wall_s": jobs[job].expected_wall_s}
            for job, vm in placements
        ]
    )
    made = connection.execute(_APPLY, {"rows": payload, "order": [job for job, _ in placements]})
    placed = [Placed(*row) for row in made]
    limited = {vm.id for vm in snapshot.vms if vm.ends_after_jobs} & {p.vm_id for p in placed}
    if limited:
        connection.execute(_USED_UP, {"vms": sorted(limited)})
    return placed


def _bind(
    connection: Connection, snapshot: Snapshot, placements: Sequence[tuple[WaitingJob, int]]
) -> None:
    """Note whom the VMs of isolating pools serve from now on; their rows are locked."""
    free = {vm.id for vm in snapshot.vms if vm.isolation != "shared" and vm.bound_owner_id is None}
    new = {vm: (job.owner_id, job.sandbox) for job, vm in placements if vm in free}
    if new:
        connection.execute(
            _BIND,
            {
                "vms": list(new),
                "owners": [owner for owner, _ in new.values()],
                "sandboxes": [sandbox for _, sandbox in new.values()],
            },
        )
