"""Whose turn it is: by priority, then the least use for its weight, then age; deterministic."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.fairness import FairShares, Ledger, Share, allotments, in_fair_order
from remuda.workers.placement import PendingJob, PlacementSnapshot, VmCapacity, place

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(number: int, owner: int = 1, cores: int = 1, **more: object) -> PendingJob:
    made = PendingJob(number, 1, owner, 0, NOW + timedelta(seconds=number), cores, 0, 10.0)
    return made._replace(**more)  # type: ignore[arg-type]


def vm(slots: int, number: int = 1) -> VmCapacity:
    return VmCapacity(number, 1, slots, None, slots, None, 0.0, 0)


def owners_of(jobs: list[PendingJob], shares: FairShares, slots: int) -> Counter[int]:
    found = place(PlacementSnapshot(tuple(jobs), (vm(slots),), 0.0, 0, shares=shares), NOW)
    owner = {each.id: each.owner_id for each in jobs}
    return Counter(owner[placed.job_id] for placed in found)


def simulate(
    weights: Mapping[int, float],
    *,
    group_of: Mapping[int, int] | None = None,
    group_weights: Mapping[int, float] | None = None,
    slots: int = 20,
    until_s: float = 20_000.0,
    half_life_s: float = 2000.0,
    idle_until_s: Mapping[int, float] | None = None,
    seed: int = 1,
) -> tuple[Counter[int], list[tuple[float, Counter[int]]]]:
    """Let owners with endless queues share some slots; return slot-seconds, in all and by window.

    Time is simulated: jobs end in order, each end is followed by a placement, as by the dispatcher.
    Use decays like the database's.
    """
    rng = random.Random(seed)
    rate = math.log(2) / half_life_s
    use: dict[int, float] = dict.fromkeys(weights, 0.0)
    running: list[tuple[float, int, int, float]] = []
    given_s: Counter[int] = Counter()
    windows: list[tuple[float, Counter[int]]] = []
    now, number, free, last = 0.0, 0, slots, 0.0
    window: Counter[int] = Counter()
    while now < until_s:
        faded = math.exp(-rate * (now - last))
        for owner in use:
            on = sum(1 for each in running if each[2] == owner)
            use[owner] = use[owner] * faded + on * (1 - faded) / rate
            window[owner] += round(on * (now - last))
        last = now
        groups: dict[int, float] = defaultdict(float)
        for owner, group in (group_of or {}).items():
            groups[group] += use[owner]
        shares = FairShares(
            {o: Share(w, use[o]) for o, w in weights.items()},
            {g: Share((group_weights or {}).get(g, 1.0), used) for g, used in groups.items()},
            group_of or {},
        )
        waiting = []
        for owner in weights:
            if now >= (idle_until_s or {}).get(owner, 0.0):
                for _ in range(free):
                    number += 1
                    waiting.append(job(number, owner, expected_wall_s=50.0))
        owner_by_id = {each.id: each.owner_id for each in waiting}
        found = place(PlacementSnapshot(tuple(waiting), (vm(free),), 0.0, 0, shares=shares), NOW)
        for placed in found:
            wall_s = rng.uniform(20, 80)
            owner = owner_by_id[placed.job_id]
            heapq.heappush(running, (now + wall_s, placed.job_id, owner, wall_s))
            free -= 1
        end_s, _, owner, wall_s = heapq.heappop(running)
        given_s[owner] += round(wall_s)
        now, free = end_s, free + 1
        if now // 2000 > last // 2000:
            windows.append((now, window))
            window = Counter()
    return given_s, windows


def test_shares_follow_the_weights_over_time() -> None:
    """Owners of weights 1, 2 and 4 get a seventh, two and four, within 3 % of each part."""
    given_s, windows = simulate({1: 1.0, 2: 2.0, 3: 4.0})
    total = sum(given_s.values())
    for owner, part in {1: 1 / 7, 2: 2 / 7, 3: 4 / 7}.items():
        assert given_s[owner] / total == pytest.approx(part, rel=0.03)
    for _, window in windows[1:]:  # and not only in the end
        for owner, part in {1: 1 / 7, 2: 2 / 7, 3: 4 / 7}.items():
            assert window[owner] / sum(window.values()) == pytest.approx(part, rel=0.1)


def test_the_simulation_is_the_same_each_time() -> None:
    assert simulate({1: 1.0, 2: 3.0}, until_s=3000) == simulate({1: 1.0, 2: 3.0}, until_s=3000)


def test_a_group_counts_as_one_owner() -> None:
    """Two in a group of weight 1 share what one alone gets; in it 1:3."""
    given_s, _ = simulate({1: 1.0, 2: 3.0, 3: 1.0}, group_of={1: 9, 2: 9}, group_weights={9: 1.0})
    total = sum(given_s.values())
    for owner, part in {1: 1 / 8, 2: 3 / 8, 3: 1 / 2}.items():
        assert given_s[owner] / total == pytest.approx(part, rel=0.04)


def test_who_comes_late_catches_up_but_the_past_is_forgotten() -> None:
    """One that was idle goes first until use is even; from then on both get the same."""
    _, windows = simulate({1: 1.0, 2: 1.0}, idle_until_s={2: 10_000.0}, half_life_s=1000.0)
    parts = [window[2] / sum(window.values()) for _, window in windows]
    assert parts[3] == 0
    assert parts[5] > 0.55
    assert parts[-1] == pytest.approx(0.5, abs=0.03)


def test_priority_comes_before_fair_share() -> None:
    shares = FairShares({1: Share(1.0, 1e9), 2: Share(100.0, 0.0)})
    jobs = [job(1, 2), job(2, 1, priority=1), job(3, 2, displaced=True)]
    assert [j.id for j in in_fair_order(jobs, Ledger(shares))] == [2, 3, 1]


def test_equal_shares_go_by_age() -> None:
    jobs = [job(5, 2), job(3, 1), job(4, 3)]
    assert [j.id for j in in_fair_order(jobs, Ledger(FairShares()))] == [3, 4, 5]


def test_what_is_given_out_counts_at_once() -> None:
    """In one decision, nobody having used anything: 1:2:4 from the first slot on."""
    shares = FairShares({1: Share(1.0), 2: Share(2.0), 3: Share(4.0)})
    jobs = [job(100 * owner + n, owner) for owner in (1, 2, 3) for n in range(70)]
    assert owners_of(jobs, shares, 70) == {1: 10, 2: 20, 3: 40}


def test_wide_jobs_are_charged_for_their_width() -> None:
    jobs = [job(n, 1, cores=4) for n in range(1, 20)] + [job(n, 2) for n in range(100, 140)]
    assert owners_of(jobs, FairShares(), 40) == {1: 5, 2: 20}


@st.composite
def shares_of(draw: st.DrawFn) -> FairShares:
    amount = st.floats(0, 1e6)
    weight = st.floats(0.1, 100)
    groups = draw(st.dictionaries(st.integers(1, 8), st.sampled_from([21, 22])))
    return FairShares(
        {o: Share(draw(weight), draw(amount)) for o in range(1, 9)},
        {g: Share(draw(weight), draw(amount)) for g in (21, 22)},
        groups,
    )


@given(shares_of(), st.lists(st.tuples(st.integers(1, 8), st.integers(-1, 1)), max_size=40))
def test_every_job_has_its_turn_once(shares: FairShares, given_: list[tuple[int, int]]) -> None:
    jobs = [job(n, owner, priority=priority) for n, (owner, priority) in enumerate(given_)]
    ledger = Ledger(shares)
    seen = []
    for each in in_fair_order(jobs, ledger):
        seen.append(each)
        ledger.charge(each.owner_id, 10.0)
    assert sorted(each.id for each in seen) == list(range(len(jobs)))
    assert [each.priority for each in seen] == sorted((j.priority for j in jobs), reverse=True)
    for owner in {each.owner_id for each in jobs}:  # of one owner the older goes first
        mine = [(-each.priority, each.id) for each in seen if each.owner_id == owner]
        assert mine == sorted(mine)


@given(shares_of(), st.integers(1, 300), st.sets(st.integers(1, 8), min_size=1))
def test_allotments_are_what_the_order_gives(
    shares: FairShares, room: int, owners: set[int]
) -> None:
    """About: each turn is a whole job, so that rounding may shift one or two between any owners."""
    jobs = [job(1000 * owner + n, owner) for owner in owners for n in range(room)]
    ledger = Ledger(shares)
    counts: Counter[int] = Counter()
    for each in in_fair_order(jobs, ledger):
        counts[each.owner_id] += 1
        ledger.charge(each.owner_id, 10.0)
        if counts.total() == room:
            break
    parts = allotments(room, shares, dict.fromkeys(owners, 10.0))
    for owner in owners:
        assert counts[owner] <= parts[owner] + len(owners)


def test_where_known_jobs_run_out_the_rest_is_left() -> None:
    """Of owner 1 there may be more, so nothing of owner 2 goes where one of these might come next."""
    jobs = [job(1, 1), job(2, 1), *(job(n, 2) for n in range(10, 40))]
    shares = FairShares({1: Share(10.0), 2: Share(1.0)})
    whole = PlacementSnapshot(tuple(jobs), (vm(20),), 0.0, 0, shares=shares)
    assert len(place(whole, NOW)) == 20
    found = place(replace(whole, cut=frozenset({(1, 1)})), NOW)
    assert [placed.job_id for placed in found] == [1, 10, 2]


def kept(jobs: list[PendingJob], most: Mapping[int, int]) -> list[PendingJob]:
    """Return the next jobs of each owner: so many, by priority, displaced ones first, then age."""
    ordered = sorted(jobs, key=lambda each: (-each.priority, not each.displaced, each.id))
    left = Counter(most)
    found = []
    for each in ordered:
        if left[each.owner_id] > 0:
            left[each.owner_id] -= 1
            found.append(each)
    return found


@given(
    shares_of(),
    st.lists(
        st.tuples(st.integers(1, 8), st.sampled_from([0, 0, 0, 5]), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.dictionaries(st.integers(1, 8), st.integers(1, 6)),
    st.integers(1, 30),
)
def test_jobs_that_are_not_known_lose_no_turn(
    shares: FairShares,
    waiting: list[tuple[int, int, bool]],
    most: dict[int, int],
    slots: int,
) -> None:
    """What is placed without knowing them is what comes first of what is placed knowing them."""
    jobs = [
        job(n, owner, priority=priority, displaced=displaced)
        for n, (owner, priority, displaced) in enumerate(waiting, 1)
    ]
    counts = Counter(each.owner_id for each in jobs)
    whole = PlacementSnapshot(tuple(jobs), (vm(slots),), 0.0, 0, shares=shares)
    all_of_them = place(whole, NOW)
    known = kept(jobs, {owner: most.get(owner, 40) for owner in counts})
    cut = frozenset((1, owner) for owner, count in counts.items() if count > most.get(owner, 40))
    found = place(replace(whole, jobs=tuple(known), cut=cut), NOW)
    assert found == all_of_them[: len(found)]
    assert found
    if not cut:
        assert found == all_of_them


def test_enough_known_jobs_of_each_fill_all_there_is() -> None:
    """What `allotments` gives does, although those of the heavier come to their end first."""
    owners = range(1, 51)
    shares = FairShares({owner: Share(1.0 + owner % 5) for owner in owners})
    jobs = [job(100 * owner + n, owner) for owner in owners for n in range(20)]
    parts = allotments(50, shares, dict.fromkeys(owners))
    known = kept(jobs, parts)
    assert len(known) < 80
    cut = frozenset((1, owner) for owner in owners)
    whole = PlacementSnapshot(tuple(known), (vm(50),), 0.0, 0, shares=shares, cut=cut)
    found = place(whole, NOW)
    assert len(found) == 50
    assert found == place(replace(whole, jobs=tuple(jobs), cut=frozenset()), NOW)
