"""Who makes room for others' work: as few as it takes, flex only, and for good."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from remuda.workers.ceilings import Limit, PoolUse, limits_over, shortfall, tightest
from remuda.workers.preemption import FlexVm, Wish, preempt


def use(number: int, used: int, **more: object) -> PoolUse:
    return PoolUse(**{"id": number, "used": used, "alive": used, "floor": 0, **more})  # type: ignore[arg-type]


def chosen(wish: Wish, flex: list[FlexVm], uses: list[PoolUse], limit: int | None) -> set[int]:
    return set(preempt([wish], flex, uses, most=limit, of_groups={}))


def test_those_go_on_which_least_is_lost() -> None:
    flex = [
        FlexVm(1, 2, 1, lost_s=50.0),
        FlexVm(2, 2, 1, lost_s=5.0),
        FlexVm(3, 2, 1, lost_s=0.0),
        FlexVm(4, 2, 1, running=False),
    ]
    uses = [use(1, 0), use(2, 4, flex=True)]
    for vms, expected in (
        (1, {4}),
        (2, {4, 3}),
        (3, {4, 3, 2}),
        (4, {1, 2, 3, 4}),
        (9, {1, 2, 3, 4}),
    ):
        assert chosen(Wish(1, vms, 1), flex, uses, 4) == expected


def test_room_that_is_there_or_comes_takes_nobodys_place() -> None:
    flex = [FlexVm(1, 2, 2)]
    assert chosen(Wish(1, 1, 2), flex, [use(1, 0), use(2, 2, flex=True)], 4) == set()
    leaving = use(2, 4, flex=True, leaving=2)
    assert chosen(Wish(1, 1, 2), flex, [use(1, 0), leaving], 4) == set()
    assert chosen(Wish(1, 1, 2), flex, [use(1, 0), use(2, 4, flex=True)], 4) == {1}


def test_what_would_not_do_is_left_alone() -> None:
    flex = [FlexVm(1, 2, 2)]
    assert chosen(Wish(1, 1, 4), flex, [use(1, 0), use(2, 4, flex=True)], 4) == set()
    assert chosen(Wish(1, 3, 2), flex, [use(1, 0), use(2, 4, flex=True)], 4) == {1}


def test_none_is_taken_that_another_makes_superfluous() -> None:
    flex = [FlexVm(1, 2, 1, lost_s=1.0), FlexVm(2, 2, 4, lost_s=9.0)]
    assert chosen(Wish(1, 1, 4), flex, [use(1, 0), use(2, 5, flex=True)], 5) == {2}


def test_a_group_and_all_are_both_heeded() -> None:
    uses = [use(1, 0, group="a"), use(2, 4, group="a", flex=True), use(3, 6, flex=True)]
    flex = [FlexVm(n, 3, 1) for n in range(1, 7)] + [FlexVm(n, 2, 1, lost_s=9.0) for n in (7, 8, 9)]
    gone = preempt([Wish(1, 3, 1)], flex, uses, most=10, of_groups={"a": 5})
    # Two of the group, which have more to lose, for its cap; one of any for all.
    assert sum(vm in (7, 8, 9) for vm in gone) == 2
    assert len(gone) == 3


def test_floors_of_flex_pools_are_no_claim_against_others() -> None:
    uses = [use(1, 0), use(2, 4, flex=True, floor=4)]
    limit = Limit("all", 4, tuple(uses))
    assert shortfall(1, limit, wanted=2) == 2
    gone = [uses[0], replace(uses[1], used=2, alive=2)]
    room = tightest(1, gone, most=4, of_groups={})
    assert room is not None
    assert room.room == 2
    waits = tightest(2, [replace(gone[0], short=2), gone[1]], most=4, of_groups={})
    assert waits is not None
    assert (waits.room, waits.kept) == (0, 2)


def test_of_a_shelf_as_many_go_as_hosts_are_missing() -> None:
    hosts = frozenset({"a", "b", "c"})
    flex = [
        FlexVm(1, 2, 8, host="a", lost_s=9.0),
        FlexVm(2, 2, 8, host="b"),
        FlexVm(3, 2, 8, host="z"),
    ]
    uses = [use(1, 0), use(2, 24, flex=True)]
    assert chosen(Wish(1, 1, 2, hosts), flex, uses, None) == {2}
    assert chosen(Wish(1, 3, 2, hosts), flex, uses, None) == {1, 2}
    assert chosen(Wish(1, 2, 2, hosts, coming=1), flex, uses, None) == {2}
    assert chosen(Wish(1, 2, 2, hosts, coming=2), flex, uses, None) == set()


vms = st.lists(
    st.tuples(st.integers(1, 4), st.floats(0, 100), st.booleans()), min_size=0, max_size=12
)


@given(
    flex=vms,
    others=st.integers(0, 10),
    limit=st.integers(0, 40),
    leaving=st.integers(0, 5),
    wanted=st.tuples(st.integers(1, 6), st.integers(1, 4)),
)
def test_never_more_than_is_needed(
    flex: list[tuple[int, float, bool]],
    others: int,
    limit: int,
    leaving: int,
    wanted: tuple[int, int],
) -> None:
    there = [
        FlexVm(n, 2, slots, running=running, lost_s=lost if running else 0.0)
        for n, (slots, lost, running) in enumerate(flex)
    ]
    used = sum(vm.slots for vm in there)
    uses = [use(1, others), use(2, used + leaving, flex=True, leaving=leaving)]
    wish = Wish(1, *wanted)
    gone = chosen(wish, there, uses, limit)
    free = limit - others - used
    freed = sum(vm.slots for vm in there if vm.id in gone)
    needed = wish.vms * wish.slots_per_vm
    if free >= needed:
        assert not gone  # there is room, or will be in a moment
    got = max(0, free + freed) // wish.slots_per_vm
    assert min(got, wish.vms) >= min(max(0, free + used) // wish.slots_per_vm, wish.vms)
    for vm in there:  # without any one of them it would have room for fewer VMs
        if vm.id in gone:
            less = max(0, free + freed - vm.slots) // wish.slots_per_vm
            assert less < min(got, wish.vms)


@dataclass
class Herd:
    """Pools under one limit that grow as they may; what is preempted is gone a step later."""

    limit: int
    demand: dict[int, int]  # VMs of one slot that each pool's work needs
    flex: set[int]
    vms: dict[int, int] = field(default_factory=dict)  # by VM its pool
    leaving: set[int] = field(default_factory=set)
    count: int = 0

    def uses(self, short: dict[int, int]) -> list[PoolUse]:
        return [
            PoolUse(
                pool,
                used=sum(at == pool for at in self.vms.values()),
                alive=sum(at == pool for vm, at in self.vms.items() if vm not in self.leaving),
                floor=0,
                flex=pool in self.flex,
                short=short.get(pool, 0),
                leaving=sum(at == pool for vm, at in self.vms.items() if vm in self.leaving),
            )
            for pool in self.demand
        ]

    def step(self, short: dict[int, int]) -> tuple[dict[int, int], set[int]]:
        for vm in self.leaving:
            del self.vms[vm]
        self.leaving = set()
        for pool in self.demand:
            found = self.uses(short)
            mine = next(use for use in found if use.id == pool)
            ceiling = tightest(pool, found, most=self.limit, of_groups={})
            assert ceiling is not None
            missing = self.demand[pool] - mine.alive
            for _ in range(max(0, min(missing, ceiling.room))):
                self.count += 1
                self.vms[self.count] = pool
            rest = max(0, missing - ceiling.room)
            short[pool] = 0 if pool in self.flex else rest
        assert len(self.vms) <= self.limit
        there = [FlexVm(vm, pool, 1) for vm, pool in self.vms.items() if pool in self.flex]
        wishes = [Wish(pool, n, 1) for pool, n in short.items() if n]
        gone = set(preempt(wishes, there, self.uses(short), most=self.limit, of_groups={}))
        assert all(self.vms[vm] in self.flex for vm in gone)
        self.leaving = gone
        return short, gone


@given(
    limit=st.integers(0, 20),
    demand=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=5),
    later=st.lists(st.integers(0, 12), min_size=5, max_size=5),
)
def test_it_settles_and_stays(limit: int, demand: list[tuple[int, bool]], later: list[int]) -> None:
    """Flex pools fill what is left; when others' work comes they make room once, and no more."""
    flex = {n for n, (_, is_flex) in enumerate(demand) if is_flex}
    herd = Herd(limit, {n: want if n in flex else 0 for n, (want, _) in enumerate(demand)}, flex)
    short: dict[int, int] = {}
    for _ in range(3):
        short, gone = herd.step(short)
        assert not gone  # nobody's work waits but flex pools'
    herd.demand = {n: herd.demand[n] if n in flex else later[n] for n in herd.demand}
    taken = 0
    before = sum(pool in flex for pool in herd.vms.values())
    for _ in range(4):
        short, gone = herd.step(short)
        taken += len(gone)
    others = sum(want for n, want in herd.demand.items() if n not in flex)
    assert sum(pool not in flex for pool in herd.vms.values()) == min(others, limit)
    assert taken == max(0, before + min(others, limit) - limit)  # and not one more
    settled = dict(herd.vms)
    for _ in range(3):
        short, gone = herd.step(short)
        assert not gone
    assert herd.vms == settled


def test_limits_are_told_apart() -> None:
    uses = [use(1, 1, group="a"), use(2, 1, group="b"), use(3, 1)]
    found = limits_over(1, uses, most=9, of_groups={"a": 5, "b": 2})
    assert [(limit.name, limit.most, len(limit.uses)) for limit in found] == [
        ("the cap of group a", 5, 1),
        ("the global cap", 9, 3),
    ]
    assert limits_over(3, uses, most=None, of_groups={"a": 5}) == []
