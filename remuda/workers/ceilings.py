"""How many slots more a pool may have under limits it shares: a pure function of who uses what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from remuda.workers.pool_snapshot import Ceiling

__all__ = ["PoolUse", "tightest"]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool's slots: `used` of machines that are not gone, `alive` at work or soon, `floor` wanted."""

    id: int
    used: int
    alive: int
    floor: int
    group: str | None = None


def tightest(
    pool_id: int,
    uses: Sequence[PoolUse],
    *,
    most: int | None,
    of_groups: Mapping[str, int],
) -> Ceiling | None:
    """Return the limit that leaves the pool least room; None: it is under none.

    `most`: over all pools, `of_groups`: over those of a group. What others lack of their floors is
    kept for them, but for a pool below its own floor.
    """
    mine = next(use for use in uses if use.id == pool_id)
    found = []
    if mine.group is not None and mine.group in of_groups:
        limit = of_groups[mine.group]
        group = [use for use in uses if use.group == mine.group]
        found.append(Ceiling(f"the cap of group {mine.group}", limit, _room(mine, group, limit)))
    if most is not None:
        found.append(Ceiling("the global cap", most, _room(mine, uses, most)))
    return min(found, key=lambda ceiling: ceiling.room, default=None)


def _room(mine: PoolUse, uses: Iterable[PoolUse], limit: int) -> int:
    left = limit - sum(use.used for use in uses)
    kept = sum(max(0, use.floor - use.alive) for use in uses if use.id != mine.id)
    return max(left - kept, min(left, mine.floor - mine.alive), 0)
