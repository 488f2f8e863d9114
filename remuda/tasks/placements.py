"""From waiting jobs to attempts: some pools at a time, of which no other dispatcher has any in hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from remuda.config import Settings
from remuda.models import dispatch as models
from remuda.models import free_vms, usage
from remuda.workers import placement

T = TypeVar("T")
_ROUNDS = 20
_SLOTS_AT_ONCE = 200  # free ones, of as many pools: more than that is another transaction
_FOLD_EVERY_S = 1.0


class Transact(Protocol):
    """Runs some work in a transaction of its own, and returns its result."""

    def __call__(self, work: Callable[[Connection], T], /) -> T:
        """See `remuda.models.database.transact`."""


def placements(transact: Transact, settings: Settings) -> Iterator[list[models.Placed]]:
    """Place what can be placed, and yield what each transaction placed after its commit.

    Pools that another dispatcher has in hand are left to it. Jobs are, too, under quotas and of arrays
    that it holds; for those there is room left for, their pools are gone through again, waiting.
    """
    parts: list[list[int]] | None = None
    shared = False
    again: list[list[int]] = []
    for wait in (False, True):
        while parts is None or parts:
            pools = parts[0] if parts else None
            for _ in range(_ROUNDS):
                once = transact(partial(_place_once, settings=settings, pools=pools, wait=wait))
                yield once.placed
                shared = shared or once.shared
                pools = once.pools
                parts = once.parts if parts is None else parts
                if not once.again:
                    break
            again += [once.pools] if once.skipped else []
            parts = (parts or [])[1:]
        parts, again = again, []
    if shared:
        half_life_s = settings.usage_half_life_s
        transact(lambda c: usage.fold(c, half_life_s=half_life_s, every_s=_FOLD_EVERY_S))


@dataclass(slots=True)
class _Once:
    """What was placed in the `pools`; whether another look may place more. `parts`: all, if asked for.

    `shared`: several owners' jobs wait; `skipped`: some for which there is room were left to another
    dispatcher.
    """

    pools: list[int]
    parts: list[list[int]]
    placed: list[models.Placed] = field(default_factory=list)
    again: bool = False
    shared: bool = False
    skipped: bool = False


def _parts(connection: Connection, settings: Settings) -> list[list[int]]:
    """Return which of the pools that jobs wait for, and that have room, to see together.

    Few, to share the work: as many as have some slots free, and each dispatcher begins somewhere else.
    While jobs wait for the first of several pools that has room, all are seen together.
    """
    pools = models.waiting_pools(connection)
    if len(pools) < 2:
        return [pools] if pools else []
    free = free_vms.free_slots(
        connection,
        pools,
        max_ahead=settings.placement_max_ahead,
        horizon_s=settings.placement_horizon_s,
    )
    if models.any_for_several(connection):
        return [list(free)] if free else []
    first = random.randrange(max(1, len(free)))
    parts: list[list[int]] = []
    left = 0
    for pool in [*list(free)[first:], *list(free)[:first]]:
        if left <= 0:
            parts.append([])
            left = _SLOTS_AT_ONCE
        parts[-1].append(pool)
        left -= free[pool]
    return parts


def _place_once(
    connection: Connection, *, settings: Settings, pools: list[int] | None, wait: bool
) -> _Once:
    """Place what is seen in one snapshot of those of the pools that no other dispatcher has in hand.

    None: of the first part of all.
    """
    max_ahead, horizon_s = settings.placement_max_ahead, settings.placement_horizon_s
    parts = _parts(connection, settings) if pools is None else [pools]
    taken: list[int] = []
    if pools is None and parts and len(parts[0]) == 1:  # the look at it tells soon if there is room
        taken = parts[0] if free_vms.take_pool(connection, parts[0][0]) else []
    elif parts:
        taken = free_vms.take_pools(connection, parts[0], max_ahead=max_ahead, horizon_s=horizon_s)
    once = _Once(taken, parts)
    if not taken:
        return once
    snapshot = models.take_snapshot(
        connection,
        max_ahead=max_ahead,
        horizon_s=horizon_s,
        pools=taken,
        half_life_s=settings.usage_half_life_s,
        reserve_after_s=settings.placement_reserve_after_s,
        wait=wait,
    )
    decided = placement.place(for_placement(snapshot, horizon_s, max_ahead), snapshot.now)
    pairs = [(p.job_id, p.vm_id) for p in decided]
    once.placed = models.apply_placements(connection, snapshot, pairs)
    room = _is_room_left(snapshot, decided)
    once.again = (
        room and bool(once.placed) and (bool(snapshot.cut) or len(once.placed) < len(pairs))
    )
    once.shared = bool(snapshot.shares.owners)
    once.skipped = (snapshot.skipped_free and room) or snapshot.skipped_ahead
    return once


def _is_room_left(snapshot: models.Snapshot, decided: Sequence[placement.Placement]) -> bool:
    """Return whether a VM has free slots that none of the jobs seen could use."""
    left = {vm.id: vm.slots - vm.used_slots for vm in snapshot.vms}
    cores = {job.id: job.cores for job in snapshot.jobs}
    for placed in decided:
        left[placed.vm_id] -= left[placed.vm_id] if placed.ahead else cores[placed.job_id]
    return any(slots > 0 for slots in left.values())


def for_placement(
    snapshot: models.Snapshot, horizon_s: float, max_ahead: int
) -> placement.PlacementSnapshot:
    """Return a snapshot as the decider sees it."""
    return placement.PlacementSnapshot(
        jobs=snapshot.jobs,
        vms=tuple(
            placement.VmCapacity(
                id=vm.id,
                pool_id=vm.pool_id,
                slots=vm.slots,
                memory_bytes=vm.memory_bytes,
                free_slots=max(0, vm.slots - vm.used_slots),
                free_memory_bytes=None
                if vm.memory_bytes is None
                else max(0, vm.memory_bytes - vm.used_memory_bytes),
                backlog_s=vm.backlog_s,
                backlog_count=vm.backlog_count,
                free_gpus=max(0, vm.gpus - vm.used_gpus),
                hardware=vm.hardware,
                isolation=vm.isolation,
                bound_owner_id=vm.bound_owner_id,
                bound_sandbox=vm.bound_sandbox,
                ahead_slots=vm.ahead_slots,
                ahead_memory_bytes=vm.ahead_memory_bytes,
                releases=tuple(
                    placement.Release(*release) for release in snapshot.releases.get(vm.id, ())
                ),
            )
            for vm in snapshot.vms
        ),
        horizon_s=horizon_s,
        max_ahead=max_ahead,
        array_room=snapshot.array_room,
        shares=snapshot.shares,
        quota_room=snapshot.quota.left,
        group_of=snapshot.quota.group_of,
        cut=snapshot.cut,
        owned=snapshot.owned,
        stopped=snapshot.stopped,
    )
