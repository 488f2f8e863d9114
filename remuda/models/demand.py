"""The work that waits for a pool's VMs, by shape: what sizing grows for.

A job that several pools may take is the demand of one of them: the first, in its order, that is open,
could ever take it, and can grow now, for its owner, too; if none can, the first that could ever take it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from remuda.constraints import Hardware, hardware_of, unmet
from remuda.models import budgets, quotas, vm_quotas
from remuda.models.array_limits import array_rooms
from remuda.models.budgets import STOP
from remuda.models.database import rows
from remuda.models.sql import READY, sql_list
from remuda.models.states import OPEN_POOL, PoolState
from remuda.models.waiting_shapes import Look, waiting_shapes
from remuda.owned_vms import OwnedVms, Party

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


_LIMITED = "SELECT id, max_running FROM arrays WHERE max_running IS NOT NULL AND ended < size"

# Owners whose budget is used up: nothing of theirs is placed, so nothing is needed for it.
_STOPPED = f"SELECT o.id FROM owners o WHERE {STOP} IS NOT NULL"

# Leases that are waited for, and would be given, if there were a VM more.
_WISHES = """
    SELECT p.id AS pool_id, coalesce(q.slots, p.slots) AS cores, coalesce(q.slots, 1) AS least,
           q.owner_id, q.sandbox, q.pool_ids, count(*) AS count
    FROM unnest(CAST(:pools AS bigint[]), CAST(:slots AS int[])) AS p(id, slots)
    JOIN lease_requests q ON q.pool_ids @> ARRAY[p.id] AND coalesce(q.slots, 1) <= p.slots
      AND q.lease_id IS NULL AND q.grows AND NOT q.refused AND q.expires_at > now()
      AND q.owner_id <> ALL(:stopped)
    GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY p.id, min(q.id)
"""

# Where limits matter beside those of the pools that are looked at: jobs wait that may go there, too.
_OTHERS = f"""
    SELECT id FROM pools WHERE state IN ({sql_list((*OPEN_POOL, PoolState.FAILURE))})
      AND (SELECT EXISTS (SELECT FROM jobs j WHERE {READY} AND j.pool_ids IS NOT NULL))
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
    SELECT DISTINCT v.pool_id, v.architecture, v.slots, v.memory_bytes, v.gpus, v.facts
    FROM unnest(CAST(:pools AS bigint[])) AS p(id) CROSS JOIN LATERAL (
      SELECT pool_id, architecture, slots, memory_bytes, gpus, facts FROM vms
      WHERE pool_id = p.id AND architecture IS NOT NULL
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


def demands_of(
    connection: Connection,
    pools: Sequence[Mapping[str, Any]],
    *,
    limits: Mapping[int, PoolLimits] | None = None,
    full: Collection[int] = (),
) -> dict[int, tuple[int, list[Shape]]]:
    """Return by pool (rows of them) the slots that are waited for, and the shapes they come in.

    `limits`: of these pools, if they are known. `full`: pools that can have no VM more, for a limit
    they share with others.
    """
    ids = [pool["id"] for pool in pools]
    known = dict(limits_of(connection, ids) if limits is None else limits)
    limited = {row["id"]: row["max_running"] for row in rows(connection, _LIMITED)}
    array_room = array_rooms(connection, limited)
    stopped = [row["id"] for row in rows(connection, _STOPPED)]
    there: dict[int, set[int]] = {}  # of owners the pools in which nothing of theirs is placed
    for owner, pool_id in budgets.stopped(connection):
        there.setdefault(owner, set()).add(pool_id)
    quota = quotas.rooms(connection)
    wishes: dict[int, list[Mapping[str, Any]]] = {key: [] for key in ids}
    slots = [known[key].slots for key in ids]
    for row in rows(connection, _WISHES, pools=ids, slots=slots, stopped=stopped):
        wishes[row["pool_id"]].append(row)
    of_several = [row for some in wishes.values() for row in some if len(row["pool_ids"]) > 1]
    wide = {row["id"] for row in rows(connection, _OTHERS)}.union(
        ids, *(row["pool_ids"] for row in of_several)
    )
    owned = vm_quotas.rooms(
        connection, sorted(wide), besides={row["owner_id"] for row in of_several}
    )
    found = waiting_shapes(
        connection,
        [_look(pool, known[pool["id"]]) for pool in pools],
        with_quota=[*quota.members, *owned.owners(), *there],
        limited=limited,
        stopped=stopped,
    )
    seen = [row for some in (found, wishes) for each in some.values() for row in each]
    others = {key for row in seen for key in row["pool_ids"] or ()} - known.keys()
    known |= limits_of(connection, sorted(others)) if others else {}
    for at_limit in known.keys() & set(full):
        known[at_limit] = replace(known[at_limit], can_grow=False)

    def at_limit_for(row: Mapping[str, Any], cores: int) -> set[int]:
        """Return the pools in which limits leave its owner too few slots, or no VM more."""
        owner = row["owner_id"]
        if owner is None or row["pool_ids"] is None:
            return set()
        left = {pool_id: quota.of(owner, pool_id) for pool_id in row["pool_ids"]}
        return {
            pool_id
            for pool_id, slots in left.items()
            if owned.more(owner, pool_id) == 0 or (slots is not None and slots < cores)
        }

    return {
        # What limits leave, each pool might have.
        key: _demand(
            known,
            pool,
            found[key],
            wishes[key],
            array_room=dict(array_room),
            quota=replace(quota, left=dict(quota.left)),
            owned=owned,
            stopped=there,
            at_limit_for=at_limit_for,
        )
        for key, pool in zip(ids, pools, strict=True)
    }


def demand_of(connection: Connection, pool: Mapping[str, Any]) -> tuple[int, list[Shape]]:
    """Return the slots that are waited for in one pool, and the shapes they come in."""
    return demands_of(connection, [pool])[pool["id"]]


def _look(pool: Mapping[str, Any], limits: PoolLimits) -> Look:
    return Look(
        pool["id"],
        limits.slots,
        limits.memory_bytes,
        limits.gpus,
        by_owner=pool["isolation"] != "shared",
        by_sandbox=pool["isolation"] in ("sandbox", "single_use"),
    )


def _demand(
    limits: Mapping[int, PoolLimits],
    pool: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    wishes: Sequence[Mapping[str, Any]],
    *,
    array_room: dict[int, int],
    quota: quotas.QuotaRoom,
    owned: OwnedVms,
    stopped: Mapping[int, Collection[int]],
    at_limit_for: Callable[[Mapping[str, Any], int], Collection[int]],
) -> tuple[int, list[Shape]]:
    mine = limits[pool["id"]]
    by_owner = pool["isolation"] != "shared"
    slots = int(found[0]["all_slots"]) if found else 0
    shapes: list[Shape] = []
    new: dict[Party, int] = {}  # slots of the VMs that limits still let owners and groups have
    for row in found:
        wanted = {name: row[name] for name in _FIELDS}
        without, full = stopped.get(row["owner_id"], ()), at_limit_for(row, row["cores"])
        is_here = _is_here(mine, row["pool_ids"], limits, wanted, without=without, full=full)
        count = row["count"] if is_here else 0
        if row["array_id"] is not None:
            count = max(0, min(count, array_room[row["array_id"]]))
            array_room[row["array_id"]] -= count
        if row["owner_id"] is not None:
            lefts = owned.lefts(row["owner_id"], mine.id)
            for party, more in lefts.items():
                count = min(count, new.setdefault(party, more * mine.slots) // row["cores"])
            for party in lefts:
                new[party] -= count * row["cores"]
            count = quota.take(row["owner_id"], mine.id, count=count, cores=row["cores"])
        slots -= (row["count"] - count) * row["cores"]
        if count:
            whose = {"owner_id": row["owner_id"] if by_owner else None, "sandbox": row["sandbox"]}
            shapes.append(Shape(count=count, **wanted, **whose))
    for row in wishes:
        wanted = {**dict.fromkeys(_FIELDS), "cores": row["least"], "memory_bytes": 0, "gpus": 0}
        without, full = stopped.get(row["owner_id"], ()), at_limit_for(row, 0)
        if _is_here(mine, row["pool_ids"], limits, wanted, without=without, full=full):
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
    *,
    without: Collection[int],
    full: Collection[int],
) -> bool:
    """Return whether such a job is demand of `mine`.

    It may go to no pool of `without`, and its owner may have no more in those that are `full`.
    """
    able = [
        limits[i]
        for i in pool_ids or (mine.id,)
        if i in limits
        and i not in without
        and (limits[i].open or i == mine.id)
        and limits[i].could_take(**wanted)
    ]
    growing = (pool for pool in able if pool.can_grow and pool.id not in full)
    chosen = next(growing, able[0] if able else None)
    return chosen is mine
