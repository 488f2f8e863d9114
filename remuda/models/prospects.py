"""What stands before a waiting job in a pool, and how fast the pool serves: for explanations only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.models import quotas, usage, vm_quotas
from remuda.models.database import rows
from remuda.models.sql import READY

_BOOTS = 20  # of the pool's latest VMs tell how long the next one takes

# Who waits for the pool with jobs of at least this priority; of the same priority and owner only older
# jobs. `unknown`: slots of jobs about whose length nothing is known.
_BEFORE = f"""
    SELECT j.owner_id, o.name, j.priority > :priority AS higher, count(*)::int AS jobs,
           sum(j.cores)::int AS slots, coalesce(sum(j.cores * w.wall_s), 0)::float8 AS slot_s,
           coalesce(sum(j.cores) FILTER (WHERE w.wall_s IS NULL), 0)::int AS unknown
    FROM jobs j JOIN owners o ON o.id = j.owner_id LEFT JOIN arrays a ON a.id = j.array_id
    CROSS JOIN LATERAL (SELECT CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END
                          AS wall_s) AS w
    WHERE {READY} AND (j.not_before IS NULL OR j.not_before <= now())
      AND (j.pool_ids IS NULL AND j.pool_id = :pool
           OR j.pool_ids IS NOT NULL AND j.pool_ids @> ARRAY[CAST(:pool AS bigint)])
      AND (j.priority > :priority OR j.priority = :priority
             AND (j.owner_id <> :owner OR j.id < :id))
    GROUP BY 1, 2, 3 ORDER BY 1, 3
"""

_POOL = f"""
    SELECT (SELECT coalesce(sum(v.slots), 0) FROM vms v WHERE v.pool_id = :pool
              AND v.state = 'RUNNING' AND NOT v.draining)::int AS slots,
           r.left_slot_s, r.unknown,
           (SELECT count(*) FROM vms v WHERE v.pool_id = :pool AND v.state IN
              ('NEW', 'SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING'))::int AS booting,
           (SELECT extract(epoch FROM now() - min(v.created_at)) FROM vms v
            WHERE v.pool_id = :pool AND v.state IN
              ('NEW', 'SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING'))::float8 AS booting_s,
           (SELECT avg(extract(epoch FROM b.running_at - b.created_at)) FROM (
              SELECT v.running_at, v.created_at FROM vms v
              WHERE v.pool_id = :pool AND v.running_at IS NOT NULL
              ORDER BY v.id DESC LIMIT {_BOOTS}) AS b)::float8 AS boot_s
    FROM (
      SELECT coalesce(sum(t.cores * greatest(0, t.expected_wall_s
               - coalesce(extract(epoch FROM now() - t.started_at), 0))), 0)::float8 AS left_slot_s,
             coalesce(sum(t.cores) FILTER (WHERE t.expected_wall_s IS NULL), 0)::int AS unknown
      FROM vms v JOIN attempts t ON t.vm_id = v.id AND t.state IN ('PLACED', 'STARTED')
      WHERE v.pool_id = :pool) AS r
"""

_QUOTAS = """
    SELECT q.owner_id, o.name, q.pool_id, p.name AS pool, q.max_slots FROM quotas q
    JOIN owners o ON o.id = q.owner_id LEFT JOIN pools p ON p.id = q.pool_id
    WHERE q.max_slots IS NOT NULL AND q.owner_id IN (
      SELECT unnest(ARRAY[id, group_id]) FROM owners WHERE id = :owner)
      AND (q.pool_id IS NULL OR q.pool_id = ANY(:pools))
"""

_NAMES = "SELECT id, name FROM pools WHERE id = ANY(:pools)"


def before(
    connection: Connection, job: Mapping[str, Any], pool_id: int, *, half_life_s: float
) -> dict[str, Any]:
    """Return who goes before the job in the pool, whose turn it is, and what the pool has.

    `own` and `others`: waiting work in front of it: of its owner, and of owners (with `level`, use in
    slot-seconds for a weight of 1); `higher`: work of higher priority, whosesoever.
    """
    values = {
        "pool": pool_id,
        "priority": job["priority"],
        "owner": job["owner_id"],
        "id": job["id"],
    }
    found = rows(connection, _BEFORE, **values)
    shares = usage.shares(connection, half_life_s=half_life_s)
    mine = job["owner_id"]

    def part(owner: int) -> dict[str, float]:
        group = shares.group_of.get(owner)
        same = group is not None and group == shares.group_of.get(mine)
        share = shares.owners[owner] if group is None or same else shares.groups[group]
        return {"weight": share.weight, "level": share.usage_s / share.weight}

    others = [
        {**row, **part(row["owner_id"])}
        for row in found
        if not row["higher"] and row["owner_id"] != mine
    ]
    own_group = shares.group_of.get(mine)
    alone = own_group is None or any(
        shares.group_of.get(other["owner_id"]) == own_group for other in others
    )
    share = shares.owners[mine] if alone or own_group is None else shares.groups[own_group]
    return {
        "higher": [row for row in found if row["higher"]],
        "own": [row for row in found if not row["higher"] and row["owner_id"] == mine],
        "others": others,
        "weight": share.weight,
        "level": share.usage_s / share.weight,
        "used_slot_s": shares.owners[mine].usage_s,
        **rows(connection, _POOL, pool=pool_id)[0],
    }


def full_quotas(
    connection: Connection, job: Mapping[str, Any], pool_ids: list[int]
) -> list[dict[str, Any]]:
    """Return the quotas (of its owner or group) that leave the job too few slots, with `left`."""
    found = rows(connection, _QUOTAS, owner=job["owner_id"], pools=pool_ids)
    if not found:
        return []
    left = quotas.rooms(connection).left
    told = [{**row, "left": max(0, left[row["owner_id"], row["pool_id"]])} for row in found]
    return [row for row in told if row["left"] < job["cores"]]


def full_vm_limits(
    connection: Connection, owner_id: int, pool_ids: list[int]
) -> list[dict[str, Any]]:
    """Return the limits of VMs that leave the owner none more, if that is so in all the pools.

    Each with the `name` of the owner or group, the `pool` (None: all), `most`, and what it is called
    (`word`).
    """
    owned = vm_quotas.of(connection, [owner_id], pool_ids)
    if any(owned.more(owner_id, pool) != 0 for pool in pool_ids):
        return []
    limits, _ = vm_quotas.limits(connection, [owner_id], pool_ids)
    told: dict[tuple[int, int | None], dict[str, Any]] = {}
    names = {row["id"]: row["name"] for row in rows(connection, _NAMES, pools=pool_ids)}
    for pool in pool_ids:
        for party, left in owned.lefts(owner_id, pool).items():
            limit = limits[party]
            whose = {"name": limit.name, "is_group": limit.is_group}
            if left == 0 and owned.left.get((party, None), 1) <= 0:
                told[party, None] = {**whose, "pool": None, "most": limit.most, "word": "max_vms"}
            elif left == 0:
                word = "max_vms" if pool in limit.own else "max_vms_per_owner"
                here = {"pool": names[pool], "most": limit.pools[pool], "word": word}
                told[party, pool] = {**whose, **here}
    return list(told.values())
