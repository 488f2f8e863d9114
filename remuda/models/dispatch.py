"""What the dispatcher sees and what it does: a snapshot under locks, and its application.

Both run in one transaction. The row locks of the VMs protect their slots (no one else places on,
drains or closes them meanwhile); those of the jobs protect their one live attempt. SKIP LOCKED
lets several dispatchers share the work; whatever one skips, the other has in hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.base import sql_list
from remuda.models.database import rows
from remuda.models.states import OPEN_POOL


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job to place, its row locked."""

    id: int
    pool_id: int
    owner_id: int
    array_id: int | None
    priority: int
    submitted_at: datetime
    cores: int
    memory_bytes: int
    expected_wall_s: float | None


@dataclass(frozen=True, slots=True)
class VmRoom:
    """What a VM, its row locked, has to give. `backlog_s`: expected core-seconds not started."""

    id: int
    pool_id: int
    slots: int
    memory_bytes: int | None
    used_slots: int
    used_memory_bytes: int
    backlog_s: float
    backlog_count: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What can be placed where, at the database's `now`."""

    now: datetime
    jobs: tuple[WaitingJob, ...]
    vms: tuple[VmRoom, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A new attempt."""

    attempt_id: int
    job_id: int
    vm_id: int


_UNLIMITED = 2**63 - 1  # the memory of a VM that tells no limit

_WAITING = text(f"""
    SELECT EXISTS (SELECT FROM jobs j JOIN pools p ON p.id = j.pool_id
                   WHERE j.state = 'NEW' AND j.unmet = 0 AND NOT j.held
                     AND p.state IN ({sql_list(OPEN_POOL)}))
""")

_LOCK_VMS = f"""
    SELECT v.id, v.pool_id, v.slots, v.memory_bytes FROM vms v JOIN pools p ON p.id = v.pool_id
    WHERE v.state = 'RUNNING' AND NOT v.draining AND p.state IN ({sql_list(OPEN_POOL)})
      AND EXISTS (SELECT FROM jobs j WHERE j.pool_id = p.id AND j.state = 'NEW'
                    AND j.unmet = 0 AND NOT j.held)
    ORDER BY v.id FOR NO KEY UPDATE OF v SKIP LOCKED
"""

_USED = """
    SELECT vm_id, sum(cores)::int AS slots, sum(coalesce(memory_bytes, 0))::bigint AS memory_bytes,
           coalesce(sum(cores * coalesce(expected_wall_s, 3600)) FILTER (WHERE state = 'PLACED'), 0)
             ::float8 AS backlog_s,
           count(*) FILTER (WHERE state = 'PLACED') AS backlog
    FROM attempts WHERE vm_id = ANY(:vms) AND state IN ('PLACED', 'STARTED') GROUP BY vm_id
    UNION ALL
    SELECT vm_id, sum(slots)::int, 0, 0, 0 FROM leases
    WHERE vm_id = ANY(:vms) AND NOT for_jobs AND released_at IS NULL GROUP BY vm_id
"""

_LOCK_JOBS = """
    SELECT j.id, j.pool_id, j.owner_id, j.array_id, j.priority, j.submitted_at, j.cores,
           coalesce(j.memory_bytes, 0) AS memory_bytes,
           CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END AS expected_wall_s
    FROM jobs j JOIN owners o ON o.id = j.owner_id LEFT JOIN arrays a ON a.id = j.array_id
    WHERE j.state = 'NEW' AND j.unmet = 0 AND NOT j.held AND j.pool_id = :pool
      AND (j.not_before IS NULL OR j.not_before <= now())
      -- What fits nowhere now does not count against the limit, or it would hide what does.
      AND EXISTS (SELECT FROM unnest(CAST(:room_slots AS int[]), CAST(:room_memory AS bigint[]),
                                     CAST(:room_ahead AS boolean[])) AS r(slots, memory, ahead)
                  WHERE j.cores <= r.slots AND coalesce(j.memory_bytes, 0) <= r.memory
                    AND (NOT r.ahead OR CASE WHEN j.array_id IS NULL THEN o.mean_wall_s
                                        ELSE a.mean_wall_s END <= :horizon))
    ORDER BY j.priority DESC, j.id LIMIT :most FOR NO KEY UPDATE OF j SKIP LOCKED
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
      UPDATE jobs SET state = 'SUBMITTED', epoch = epoch + 1, started_at = NULL
      FROM r WHERE jobs.id = r.job_id AND jobs.state = 'NEW'
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


def anything_waiting(connection: Connection) -> bool:
    """Return whether any job waits in an open pool."""
    return bool(connection.scalar(_WAITING))


def take_snapshot(
    connection: Connection, *, max_ahead: int, horizon_s: float = math.inf, most: int = 2000
) -> Snapshot:
    """Lock the VMs that could take work and up to `most` jobs a pool, and return both.

    Of the jobs only those that fit somewhere: into free slots, or in a queue of up to `max_ahead`
    if they are known to take at most `horizon_s` seconds.
    """
    now = connection.scalar(text("SELECT now()"))
    found = rows(connection, _LOCK_VMS)
    ids = [row["id"] for row in found]
    used: dict[int, list[float]] = {i: [0, 0, 0, 0] for i in ids}
    for row in rows(connection, _USED, vms=ids) if ids else ():
        entry = used[row["vm_id"]]
        for place, name in enumerate(("slots", "memory_bytes", "backlog_s", "backlog")):
            entry[place] += row[name]
    vms = tuple(
        VmRoom(
            id=row["id"],
            pool_id=row["pool_id"],
            slots=row["slots"],
            memory_bytes=row["memory_bytes"],
            used_slots=int(used[row["id"]][0]),
            used_memory_bytes=int(used[row["id"]][1]),
            backlog_s=used[row["id"]][2],
            backlog_count=int(used[row["id"]][3]),
        )
        for row in found
    )
    jobs: list[WaitingJob] = []
    for pool in {vm.pool_id for vm in vms}:
        here = [vm for vm in vms if vm.pool_id == pool]
        room = sum(
            max(0, vm.slots - vm.used_slots) + max(0, max_ahead - vm.backlog_count) for vm in here
        )
        if room:
            jobs += [
                WaitingJob(**row)
                for row in rows(
                    connection,
                    _LOCK_JOBS,
                    pool=pool,
                    **_rooms(here, max_ahead),
                    horizon=horizon_s,
                    most=min(room, most),
                )
            ]
    return Snapshot(now, tuple(jobs), vms)


def _rooms(vms: Sequence[VmRoom], max_ahead: int) -> dict[str, list[Any]]:
    """Return the largest rooms there are, as columns: for each number of slots the most memory."""
    most: dict[tuple[int, bool], int] = {}
    for vm in vms:
        rooms = [(vm.slots - vm.used_slots, vm.used_memory_bytes, False)]
        if vm.backlog_count < max_ahead:
            rooms.append((vm.slots, 0, True))
        for slots, used, ahead in rooms:
            memory = _UNLIMITED if vm.memory_bytes is None else vm.memory_bytes - used
            if slots > 0 and memory >= 0:
                most[slots, ahead] = max(memory, most.get((slots, ahead), 0))
    return {
        "room_slots": [slots for slots, _ in most],
        "room_memory": list(most.values()),
        "room_ahead": [ahead for _, ahead in most],
    }


def apply_placements(
    connection: Connection, snapshot: Snapshot, placements: Sequence[tuple[int, int]]
) -> list[Placed]:
    """Turn (job id, VM id) pairs, all of the snapshot, into attempts in that order."""
    if not placements:
        return []
    jobs = {job.id: job for job in snapshot.jobs}
    pairs = sorted({(vm, jobs[job].owner_id) for job, vm in placements})
    connection.execute(_LEASES, {"vms": [p[0] for p in pairs], "owners": [p[1] for p in pairs]})
    payload = json.dumps(
        [
            {"job_id": job, "vm_id": vm, "expected_wall_s": jobs[job].expected_wall_s}
            for job, vm in placements
        ]
    )
    made = connection.execute(_APPLY, {"rows": payload, "order": [job for job, _ in placements]})
    return [Placed(*row) for row in made]
