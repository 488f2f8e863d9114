"""The VMs that could take work, their rows locked, and what each has to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from remuda.constraints import hardware_of
from remuda.models.database import rows
from remuda.models.rooms import TAKES_LONG, VmRoom
from remuda.models.states import NO_BACKEND

# What is kept for a lease takes no jobs.
_SERVES = """v.state = 'RUNNING' AND NOT v.draining AND v.release_due_at IS NULL AND NOT EXISTS (
        SELECT FROM lease_requests q WHERE q.vm_id = v.id AND q.lease_id IS NULL AND NOT q.refused
          AND q.expires_at > now())"""

# The VMs of a pool that may have room for another job, as far as slots tell: free, or in a queue.
_HAVE_ROOM = f"""
    SELECT v.slots - a.used AS free FROM vms v CROSS JOIN LATERAL (
      SELECT coalesce(sum(cores), 0) AS used, count(*) FILTER (WHERE state = 'PLACED') AS backlog,
             coalesce(sum(cores * coalesce(expected_wall_s, 3600))
               FILTER (WHERE state = 'PLACED'), 0) AS backlog_s,
             coalesce(sum(cores) FILTER (WHERE {TAKES_LONG}), 0) AS kept
      FROM attempts WHERE vm_id = v.id AND state IN ('PLACED', 'STARTED')) AS a
    WHERE v.pool_id = {{pool}} AND {_SERVES} AND (a.used < v.slots
      OR a.backlog < :max_ahead AND a.backlog_s < :horizon * (v.slots - a.kept))
"""

_ROOMS = f"""
    SELECT p.id, (SELECT sum(greatest(r.free, 0)) FROM ({_HAVE_ROOM.format(pool="p.id")}) AS r)::int AS free
    FROM unnest(CAST(:pools AS bigint[])) AS p(id)
"""

_TAKE_ONE = text(
    "SELECT pg_try_advisory_xact_lock(125536, CAST(CAST(:pool AS bigint) % 2147483647 AS int))"
)

# CASE: what is full is not locked, as somebody may come who saw it get room.
_TAKE = f"""
    SELECT p.id FROM unnest(CAST(:pools AS bigint[])) AS p(id)
    WHERE CASE WHEN EXISTS ({_HAVE_ROOM.format(pool="p.id")})
               THEN pg_try_advisory_xact_lock(125536, (p.id % 2147483647)::int) ELSE false END
"""

_LOCK_VMS = f"""
    SELECT v.id, v.pool_id, v.slots, v.memory_bytes, v.gpus, v.architecture, v.facts, p.isolation,
           v.bound_owner_id, v.bound_sandbox, p.max_jobs_per_vm
    FROM vms v JOIN pools p ON p.id = v.pool_id
    WHERE {_SERVES} AND p.backend <> '{NO_BACKEND}' AND v.pool_id = ANY(:pools)
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


def free_slots(
    connection: Connection, pools: Sequence[int], *, max_ahead: int, horizon_s: float
) -> dict[int, int]:
    """Return the free slots of those of the pools that may have room, if only in queues, in that order."""
    found = rows(connection, _ROOMS, pools=list(pools), max_ahead=max_ahead, horizon=horizon_s)
    return {row["id"]: row["free"] for row in found if row["free"] is not None}


def take_pool(connection: Connection, pool: int) -> bool:
    """Take a pool until the transaction ends, unless another dispatcher has it in hand."""
    return bool(connection.scalar(_TAKE_ONE, {"pool": pool}))


def take_pools(
    connection: Connection, pools: Sequence[int], *, max_ahead: int, horizon_s: float
) -> list[int]:
    """Take and return those of the pools that have room and that no other dispatcher has in hand.

    They are its until the transaction ends.
    """
    found = rows(connection, _TAKE, pools=list(pools), max_ahead=max_ahead, horizon=horizon_s)
    return [row["id"] for row in found]


def lock_vms(
    connection: Connection, pools: Sequence[int], *, horizon_s: float
) -> tuple[VmRoom, ...]:
    """Lock and return the running VMs of the pools that nobody else has in hand."""
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
