"""How many slots more a pool may have under limits it shares: a pure function of who uses what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remuda.workers.pool_snapshot import Ceiling

__all__ = ["Limit", "PoolUse", "limits_over", "shortfall", "tightest"]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool's slots: `used` of machines that are not gone, `alive` at work or soon, `floor` wanted.

    `flex`: what it has may be preempted, and what others want goes first. `short`: what its work
    needs and only others keep from it. `leaving`: of `used`, what will be free in a moment.
    """

    id: int
    used: int
    alive: int
    floor: int
    group: str | None = None
    flex: bool = False
    short: int = 0
    leaving: int = 0

    @property
    def lacks(self) -> int:
        """Return how many slots it is below its floor."""
        return max(0, self.floor - self.alive)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of slots and the pools under it."""

    name: str
    most: int
    uses: tuple[PoolUse, ...]


def limits_over(
    pool_id: int,
    uses: Sequence[PoolUse],
    *,
    most: int | None,
    of_groups: Mapping[str, int],
) -> list[Limit]:
    """Return the limits a pool is under, that of its group first.

    `most`: over all pools, `of_groups`: over those of a group.
    """
    mine = _of(pool_id, uses)
    found = []
    if mine.group is not None and mine.group in of_groups:
        group = tuple(use for use in uses if use.group == mine.group)
        found.append(Limit(f"the cap of group {mine.group}", of_groups[mine.group], group))
    if most is not None:
        found.append(Limit("the global cap", most, tuple(uses)))
    return found


def tightest(
    pool_id: int,
    uses: Sequence[PoolUse],
    *,
    most: int | None,
    of_groups: Mapping[str, int],
) -> Ceiling | None:
    """Return the limit that leaves the pool least room; None: it is under none.

    What others lack of their floors is kept for them, but for a pool below its own floor. From a
    flex pool also what others wait for is kept, and for it nothing is kept from those.
    """
    mine = _of(pool_id, uses)
    found = [
        Ceiling(limit.name, limit.most, *_room(mine, limit))
        for limit in limits_over(pool_id, uses, most=most, of_groups=of_groups)
    ]
    return min(found, key=lambda ceiling: ceiling.room, default=None)


def shortfall(pool_id: int, limit: Limit, *, wanted: int) -> int:
    """Return how many slots must come free before a pool that is not flex has room for `wanted` more.

    What leaves counts as free.
    """
    mine = _of(pool_id, limit.uses)
    left = limit.most - sum(use.used - use.leaving for use in limit.uses)
    missing = wanted - (left - _kept(mine, limit.uses))
    if wanted <= mine.lacks:
        missing = min(missing, wanted - left)
    return max(0, missing)


def _of(pool_id: int, uses: Iterable[PoolUse]) -> PoolUse:
    return next(use for use in uses if use.id == pool_id)


def _kept(mine: PoolUse, uses: Iterable[PoolUse]) -> int:
    """Return what is kept for the floors of others of its kind."""
    return sum(use.lacks for use in uses if use.id != mine.id and use.flex == mine.flex)


def _room(mine: PoolUse, limit: Limit) -> tuple[int, int]:
    """Return the room there is, and how much of it is kept for pools that are not flex."""
    left = limit.most - sum(use.used for use in limit.uses)
    first = 0
    if mine.flex:
        first = sum(max(use.short, use.lacks) for use in limit.uses if not use.flex)
    left -= first
    kept = _kept(mine, limit.uses)
    return max(left - kept, min(left, mine.floor - mine.alive), 0), first
