"""The work that waits for a pool's VMs, by shape: what sizing grows for.

A job that several pools may take is the demand of one of them: the first, in its order, that is open,
could ever take it, and can grow now; if none can grow, the first that could ever take it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from remuda.constraints import Hardware, hardware_of, unmet
from remuda.models import quotas
from remuda.models.array_limits import array_rooms
from remuda.models.base import sql_list
from remuda.models.database import rows
from remuda.models.jobs import READY
from remuda.models.states import OPEN_POOL, PoolState

MOST_SHAPES = 200  # of more, the rest counts by its slots alone
_KINDS = 50  # of a pool's latest VMs tell what the next one will be like


@dataclass(frozen=True, slots=True)
class Shape:
    """`count` waiting jobs or leases that ask for the same; `owner_id`: whose, where the pool isolates."""

    count: int
    cores: int
    memory_bytes: int = 0
    gpus: int = 0
    architecture: str | None = None
    constraints: dict[str, Any] | None = None
    owner_id: int | None = None
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a VM of the pool has at most, and whether the pool can grow. Memory None: not known.

    `kinds`: the hardware of its latest VMs; none: none was measured yet.
    """

    id: int
    slots: int
    memory_bytes: int | None
    gpus: int
    kinds: tuple[Hardware, ...]
    open: bool
    can_grow: bool

    def could_take(
        self,
        *,
        cores: int,
        memory_bytes: int,
        gpus: int,
        architecture: str | None,
        constraints: Mapping[str, Any] | None,
    ) -> bool:
        """Return whether a new VM of the pool would do for such a job, as far as is known."""
        return (
            cores <= self.slots
            and (self.memory_bytes is None or memory_bytes <= self.memory_bytes)
            and gpus <= self.gpus
            and (
                not self.kinds
                or any(
                    not unmet(kind, architecture=architecture, constraints=constraints)
                    for kind in self.kinds
                )
            )
        )


_SHAPE = (
    "cores, memory_bytes, gpus, architecture, constraints, owner_id, sandbox, pool_ids, array_id"
)

# Grouped by what sizing can tell apart: whose a job is only where the pool isolates or a quota limits
# its owner, its array only where that has a limit.
_SHAPES = f"""
    WITH ready AS (
      SELECT j.cores, coalesce(j.memory_bytes, 0) AS memory_bytes, j.gpus, j.architecture,
             j.constraints,
             CASE WHEN :by_owner OR j.owner_id = ANY(:with_quota) THEN j.owner_id END AS owner_id,
             CASE WHEN :by_sandbox THEN j.sandbox ELSE '' END AS sandbox, j.pool_ids,
             CASE WHEN j.array_id = ANY(:limited) THEN j.array_id END AS array_id
      FROM jobs j WHERE {READY} AND (j.not_before IS NULL OR j.not_before <= now())
        AND j.pool_id = :pool AND j.pool_ids IS NULL AND j.owner_id <> ALL(:stopped)
      UNION ALL
      SELECT j.cores, coalesce(j.memory_bytes, 0), j.gpus, j.architecture,
             j.constraints, CASE WHEN :by_owner OR j.owner_id = ANY(:with_quota) THEN j.owner_id END,
             CASE WHEN :by_sandbox THEN j.sandbox ELSE '' END, j.pool_ids,
             CASE WHEN j.array_id = ANY(:limited) THEN j.array_id END
      FROM jobs j WHERE {READY} AND (j.not_before IS NULL OR j.not_before <= now())
        AND j.pool_ids IS NOT NULL AND j.pool_ids @> ARRAY[CAST(:pool AS bigint)]
        AND j.owner_id <> ALL(:stopped)
    ), shapes AS (
      SELECT count(*) AS count, {_SHAPE} FROM ready
      WHERE cores <= :slots AND memory_bytes <= coalesce(:memory_bytes, 9223372036854775807)
        AND gpus <= :gpus
      GROUP BY {_SHAPE}
    )
    SELECT *, sum(count * cores) OVER () AS all_slots FROM shapes
    ORDER BY count DESC, {_SHAPE} LIMIT {MOST_SHAPES}
"""

_LIMITED = "SELECT id, max_running FROM arrays WHERE max_running IS NOT NULL AND ended < size"

# Owners whose budget is used up: nothing of theirs is placed, so nothing is needed for it.
_STOPPED = "SELECT id FROM owners WHERE budget_stop IS NOT NULL"

# Leases that are waited for, and would be given, if there were a VM more.
_WISHES = """
    SELECT coalesce(slots, :slots) AS cores, coalesce(slots, 1) AS least, owner_id, sandbox,
           pool_ids, count(*) AS count
    FROM lease_requests
    WHERE pool_ids @> ARRAY[CAST(:pool AS bigint)] AND coalesce(slots, 1) <= :slots
      AND lease_id IS NULL AND grows AND NOT refused AND expires_at > now()
      AND owner_id <> ALL(:stopped)
    GROUP BY 1, 2, 3, 4, 5 ORDER BY min(id)
"""

_LIMITS = f"""
    SELECT p.id, p.provider, p.slots_per_vm, p.memory_bytes_per_vm, p.gpus_per_vm,
           p.budget_stop IS NULL AND p.state IN ({sql_list((*OPEN_POOL, PoolState.FAILURE))}) AS open,
           p.state <> 'FAILURE' AND coalesce(p.paused_until <= now(), true)
             AND (SELECT coalesce(sum(v.slots), 0) FROM vms v WHERE v.pool_id = p.id
                    AND v.state NOT IN ('HALTED', 'STOPPING', 'STALLED', 'ERROR')) + p.slots_per_vm
               <= CASE WHEN p.policy_name IS NOT NULL THEN p.policy_maximum_slots
                       WHEN p.is_elastic THEN p.elastic_maximum_slots
                       ELSE p.instance_count * p.slots_per_vm END AS can_grow
    FROM pools p WHERE p.id = ANY(:pools)
"""

_MEASURED = f"""
    SELECT v.pool_id, v.architecture, v.slots, v.memory_bytes, v.gpus, v.facts
    FROM unnest(CAST(:pools AS bigint[])) AS p(id) CROSS JOIN LATERAL (
      SELECT * FROM vms WHERE pool_id = p.id AND architecture IS NOT NULL
      ORDER BY id DESC LIMIT {_KINDS}) v
"""


def limits_of(connection: Connection, pool_ids: Sequence[int]) -> dict[int, PoolLimits]:
    """Return what new VMs of the pools would be like."""
    kinds: dict[int, dict[Hardware, None]] = {}
    for row in rows(connection, _MEASURED, pools=list(pool_ids)):
        kinds.setdefault(row["pool_id"], {})[hardware_of(row)] = None
    found = {}
    for row in rows(connection, _LIMITS, pools=list(pool_ids)):
        known = tuple(kinds.get(row["id"], ()))
        memories = [kind.memory_bytes for kind in known if kind.memory_bytes is not None]
        found[row["id"]] = PoolLimits(
            id=row["id"],
            slots=row["slots_per_vm"],
            memory_bytes=row["memory_bytes_per_vm"] or max(memories, default=None),
            # VMs of the local provider are all alike: what was measured holds.
            gpus=max(kind.gpus for kind in known)
            if known and row["provider"] == "local"
            else max([row["gpus_per_vm"] or 0, *(kind.gpus for kind in known)]),
            kinds=known,
            open=row["open"],
            can_grow=row["can_grow"],
        )
    return found


def demand_of(
    connection: Connection, pool: Mapping[str, Any], *, full: Collection[int] = ()
) -> tuple[int, list[Shape]]:
    """Return the slots that are waited for in a pool (its row), and the shapes they come in.

    `full`: pools that can have no VM more, for a limit they share with others.
    """
    pool_id, isolation = pool["id"], pool["isolation"]
    limits = limits_of(connection, [pool_id])
    mine = limits[pool_id]
    limited = {row["id"]: row["max_running"] for row in rows(connection, _LIMITED)}
    array_room = array_rooms(connection, limited)
    stopped = [row["id"] for row in rows(connection, _STOPPED)]
    quota = quotas.rooms(connection)
    by_owner = isolation != "shared"
    found = rows(
        connection,
        _SHAPES,
        pool=pool_id,
        by_owner=by_owner,
        with_quota=list(quota.members),
        by_sandbox=isolation in ("sandbox", "single_use"),
        limited=list(limited),
        slots=mine.slots,
        memory_bytes=mine.memory_bytes,
        gpus=mine.gpus,
        stopped=stopped,
    )
    wishes = rows(connection, _WISHES, pool=pool_id, slots=mine.slots, stopped=stopped)
    others = {i for row in (*found, *wishes) for i in row["pool_ids"] or ()} - limits.keys()
    limits |= limits_of(connection, sorted(others)) if others else {}
    for at_limit in limits.keys() & set(full):
        limits[at_limit] = replace(limits[at_limit], can_grow=False)
    mine = limits[pool_id]
    slots = int(found[0]["all_slots"]) if found else 0
    shapes: list[Shape] = []
    for row in found:
        wanted = {name: row[name] for name in _FIELDS}
        count = row["count"] if _is_here(mine, row["pool_ids"], limits, wanted) else 0
        if row["array_id"] is not None:
            count = max(0, min(count, array_room[row["array_id"]]))
            array_room[row["array_id"]] -= count
        if row["owner_id"] is not None:
            count = quota.take(row["owner_id"], pool_id, count=count, cores=row["cores"])
        slots -= (row["count"] - count) * row["cores"]
        if count:
            whose = {"owner_id": row["owner_id"] if by_owner else None, "sandbox": row["sandbox"]}
            shapes.append(Shape(count=count, **wanted, **whose))
    for row in wishes:
        wanted = {**dict.fromkeys(_FIELDS), "cores": row["least"], "memory_bytes": 0, "gpus": 0}
        if _is_here(mine, row["pool_ids"], limits, wanted):
            slots += row["count"] * row["cores"]
            whose = {"owner_id": row["owner_id"], "sandbox": row["sandbox"]}
            shapes.append(Shape(count=row["count"], cores=row["cores"], **whose))
    return slots, shapes


_FIELDS = ("cores", "memory_bytes", "gpus", "architecture", "constraints")


def _is_here(
    mine: PoolLimits,
    pool_ids: Sequence[int] | None,
    limits: Mapping[int, PoolLimits],
    wanted: Mapping[str, Any],
) -> bool:
    """Return whether such a job is demand of `mine`."""
    able = [
        limits[i]
        for i in pool_ids or (mine.id,)
        if i in limits and (limits[i].open or i == mine.id) and limits[i].could_take(**wanted)
    ]
    chosen = next((pool for pool in able if pool.can_grow), able[0] if able else None)
    return chosen is mine
