"""What the dispatcher sees and what it does: a snapshot under locks, and its application.

Both run in one transaction. Dispatchers share the work by pools, of which each is in the hand of one
(an advisory lock). The row locks of the VMs protect their slots (no one else places on, drains or
closes them meanwhile). Quotas and arrays with a limit are locked where their jobs could be placed, and
only then: who holds one alone places jobs under it. Owners with a limit of VMs are locked first of
all, before the VMs, as whoever leases does. Jobs are looked at as they are; those that are
chosen are locked, if they still wait. Whatever SKIP LOCKED skips, another has in hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from remuda.fairness import FairShares
from remuda.models import budgets, vm_quotas
from remuda.models.database import rows
from remuda.models.free_vms import lock_vms
from remuda.models.quotas import QuotaRoom
from remuda.models.rooms import VmRoom
from remuda.models.sql import READY, sql_list
from remuda.models.states import OPEN_POOL
from remuda.models.waiting import WaitingJobs
from remuda.owned_vms import OwnedVms
from remuda.pending import PendingJob

Release = tuple[float | None, int, int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be placed where, at the database's `now`.

    `array_room`: how many more jobs of the arrays that have a limit may be on machines; `quota`: how
    many more slots owners may have, `owned`: how many more VMs. `cut`: the (pool, owner) of which
    there may be more jobs, which come after those that are here (pool 0: of jobs that may go to
    several). `releases`: of VMs with jobs that wait for room, (seconds until it ends if known, slots,
    memory, GPUs) of each attempt. `stopped`: the (owner, pool) whose budget there is used up.
    `skipped_free`, `skipped_ahead`: jobs that could have free slots, or be placed ahead, were left to
    others, who just place jobs under the same quota or limit of VMs, or of the same array.
    """

    now: datetime
    jobs: tuple[PendingJob, ...]
    vms: tuple[VmRoom, ...]
    array_room: Mapping[int, int] = field(default_factory=dict)
    quota: QuotaRoom = field(default_factory=QuotaRoom)
    shares: FairShares = field(default_factory=FairShares)
    cut: frozenset[tuple[int, int]] = frozenset()
    releases: Mapping[int, Sequence[Release]] = field(default_factory=dict)
    skipped_free: bool = False
    skipped_ahead: bool = False
    owned: OwnedVms = field(default_factory=OwnedVms)
    stopped: frozenset[tuple[int, int]] = frozenset()


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
_NOW = text(f"""
    SELECT now(), EXISTS (SELECT FROM quotas WHERE max_slots IS NOT NULL), {vm_quotas.ANY},
           {budgets.ANY_STOPPED}, set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true),
           set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
""")

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

# No other dispatcher can have them in hand, but for those that may go to several pools; they may have
# been cancelled, held or ended.
_CLAIM = text(f"""
    SELECT j.id FROM jobs j WHERE j.id = ANY(:jobs) AND CASE WHEN {READY} THEN true ELSE false END
    FOR NO KEY UPDATE OF j SKIP LOCKED
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
    """Lock the VMs that could take work; return them and up to `most` jobs a pool and owner.

    Only of `pools`, if given: all that jobs wait for who may go to one of them. Of the jobs only
    those that fit somewhere: into free slots, or in a queue of up to `max_ahead` if they are known to
    take at most `horizon_s` seconds; and that are not late. Others that have waited for longer than
    `reserve_after_s` seconds, and would fit a VM, are here too. Unless told to `wait`, jobs under
    quotas and of arrays that another dispatcher holds are left to it.
    """
    wanted = waiting_pools(connection) if pools is None else pools
    now, limited, vms_limited, any_stopped, *_ = connection.execute(_NOW).one()
    stopped = frozenset(budgets.stopped(connection, wanted)) if any_stopped else frozenset()
    owned = vm_quotas.lock(connection, wanted, wait=wait) if vms_limited else OwnedVms()
    vms = lock_vms(connection, wanted, horizon_s=horizon_s)
    waiting = WaitingJobs(
        connection,
        vms,
        limited=limited,
        owned=owned,
        stopped=stopped,
        wait=wait,
        half_life_s=half_life_s,
        max_ahead=max_ahead,
        horizon_s=horizon_s,
        reserve_after_s=reserve_after_s,
        most=most,
    ).find()
    jobs = waiting.jobs
    if vms_limited:
        # What came since the locks were taken, of whom they are not held, is for the next.
        late = vm_quotas.late(connection, {job.owner_id for job in jobs}, wanted, owned)
        jobs = tuple(job for job in jobs if job.owner_id not in late)
    found = [job for job in jobs if job.reserves]
    return Snapshot(
        now,
        jobs,
        vms,
        waiting.array_room,
        waiting.quota,
        waiting.shares,
        waiting.cut,
        _releases(connection, vms) if found else {},
        waiting.skipped_free or owned.skipped,
        waiting.skipped_ahead,
        owned,
        stopped,
    )


def _releases(connection: Connection, vms: Sequence[VmRoom]) -> dict[int, list[Release]]:
    found: dict[int, list[Release]] = {}
    for row in rows(connection, _RELEASES, vms=[vm.id for vm in vms]):
        release = (row["in_s"], row["cores"], row["memory_bytes"], row["gpus"])
        found.setdefault(row["vm_id"], []).append(release)
    return found


def apply_placements(
    connection: Connection, snapshot: Snapshot, placements: Sequence[tuple[int, int]]
) -> list[Placed]:
    """Turn (job id, VM id) pairs, all of the snapshot, into attempts in that order.

    Jobs that do not wait any more, or that somebody else has in hand, are passed over.
    """
    if not placements:
        return []
    mine = set(connection.scalars(_CLAIM, {"jobs": [job for job, _ in placements]}).all())
    placements = [(job, vm) for job, vm in placements if job in mine]
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
    placed = [Placed(*row) for row in made.all()]
    limited = {vm.id for vm in snapshot.vms if vm.ends_after_jobs} & {p.vm_id for p in placed}
    if limited:
        connection.execute(_USED_UP, {"vms": sorted(limited)})
    return placed


def _bind(
    connection: Connection, snapshot: Snapshot, placements: Sequence[tuple[PendingJob, int]]
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
