"""Limits over several pools: what room each pool has, floors kept for the others."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from remuda.workers.ceilings import PoolUse, tightest
from remuda.workers.pool_snapshot import Ceiling


def room(pool: int, uses: list[PoolUse], limit: int) -> int:
    found = tightest(pool, uses, most=limit, of_groups={})
    assert found is not None
    return found.room


def test_no_limit_no_ceiling() -> None:
    assert tightest(1, [PoolUse(1, 4, 4, 0, "a")], most=None, of_groups={"b": 1}) is None


def test_the_tightest_limit_counts() -> None:
    uses = [PoolUse(1, 4, 4, 0, "cloud"), PoolUse(2, 3, 2, 0, "cloud"), PoolUse(3, 9, 9, 0)]
    assert tightest(1, uses, most=20, of_groups={"cloud": 8}) == Ceiling(
        "the cap of group cloud", 8, 1
    )
    assert tightest(1, uses, most=16, of_groups={"cloud": 8}) == Ceiling("the global cap", 16, 0)
    assert tightest(3, uses, most=20, of_groups={"cloud": 8}) == Ceiling("the global cap", 20, 4)


def test_a_lowered_limit_leaves_no_room_and_takes_nothing() -> None:
    assert room(1, [PoolUse(1, 9, 9, 0)], 5) == 0


def test_floors_of_others_are_kept_for_them() -> None:
    uses = [PoolUse(1, 4, 4, 0), PoolUse(2, 0, 0, 3)]
    assert room(1, uses, 10) == 3
    assert room(2, uses, 10) == 6
    both = [replace(uses[0], used=0, alive=0, floor=8), uses[1]]
    assert room(1, both, 10) == 8  # its own floor before theirs
    assert room(2, both, 10) == 3


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    st.integers(0, 30),
)
def test_growing_in_turn_never_passes_the_limit(pools: list[tuple[int, int]], limit: int) -> None:
    """Whatever each takes of the room it is told, one after the other."""
    uses = [PoolUse(n, 0, 0, floor) for n, (_, floor) in enumerate(pools)]
    for n, (wish, _) in enumerate(pools):
        more = min(wish, room(n, uses, limit))
        uses[n] = replace(uses[n], used=more, alive=more)
        assert sum(use.used for use in uses) <= limit
