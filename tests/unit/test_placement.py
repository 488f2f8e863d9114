"""Placement: nothing is given out twice, order and best fit hold, and it is fast."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.workers.placement import (
    PendingJob,
    Placement,
    PlacementSnapshot,
    VmCapacity,
    place,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 1 << 30


def job(
    number: int,
    cores: int = 1,
    memory_bytes: int = 0,
    *,
    pool: int = 1,
    priority: int = 0,
    age_s: float = 0.0,
    wall_s: float | None = None,
) -> PendingJob:
    submitted_at = NOW - timedelta(seconds=age_s)
    return PendingJob(number, pool, 1, priority, submitted_at, cores, memory_bytes, wall_s)


def vm(
    number: int,
    slots: int = 4,
    memory_bytes: int | None = None,
    *,
    pool: int = 1,
    free: int | None = None,
    free_memory: int | None = None,
    backlog_s: float = 0.0,
    backlog: int = 0,
) -> VmCapacity:
    left = slots if free is None else free
    memory_left = memory_bytes if free_memory is None else free_memory
    return VmCapacity(number, pool, slots, memory_bytes, left, memory_left, backlog_s, backlog)


def snapshot(
    jobs: list[PendingJob], vms: list[VmCapacity], *, horizon_s: float = 0.5, max_ahead: int = 256
) -> PlacementSnapshot:
    return PlacementSnapshot(tuple(jobs), tuple(vms), horizon_s, max_ahead)


def where(found: list[Placement]) -> dict[int, int]:
    return {placement.job_id: placement.vm_id for placement in found}


@st.composite
def snapshots(draw: st.DrawFn) -> PlacementSnapshot:
    """A few jobs and VMs of two pools, tight enough that they compete."""
    jobs = [
        job(
            number,
            draw(st.integers(1, 5)),
            draw(st.integers(0, 4)),
            pool=draw(st.integers(1, 2)),
            priority=draw(st.integers(-1, 1)),
            age_s=draw(st.integers(0, 2)),
            wall_s=draw(st.none() | st.floats(0, 1)),
        )
        for number in range(1, draw(st.integers(0, 25)) + 1)
    ]
    vms = []
    for number in range(1, draw(st.integers(0, 8)) + 1):
        slots = draw(st.integers(1, 6))
        memory = draw(st.none() | st.integers(1, 8))
        vms.append(
            vm(
                number,
                slots,
                memory,
                pool=draw(st.integers(1, 2)),
                free=draw(st.integers(0, slots)),
                free_memory=None if memory is None else draw(st.integers(0, memory)),
                backlog_s=draw(st.floats(0, 2)),
                backlog=draw(st.integers(0, 4)),
            )
        )
    horizon_s, max_ahead = draw(st.floats(0, 1)), draw(st.integers(0, 6))
    return snapshot(jobs, vms, horizon_s=horizon_s, max_ahead=max_ahead)


@given(snapshots())
def test_never_oversubscribes(given_: PlacementSnapshot) -> None:
    jobs = {each.id: each for each in given_.jobs}
    slots: Counter[int] = Counter()
    memory: Counter[int] = Counter()
    for placement in place(given_, NOW):
        if not placement.ahead:
            slots[placement.vm_id] += jobs[placement.job_id].cores
            memory[placement.vm_id] += jobs[placement.job_id].memory_bytes
    for each in given_.vms:
        assert slots[each.id] <= each.free_slots
        if each.free_memory_bytes is not None:
            assert memory[each.id] <= each.free_memory_bytes


@given(snapshots())
def test_places_once_in_its_own_pool_where_it_can_run(given_: PlacementSnapshot) -> None:
    jobs, vms = {j.id: j for j in given_.jobs}, {v.id: v for v in given_.vms}
    found = place(given_, NOW)
    assert len(where(found)) == len(found)
    for placement in found:
        taken, machine = jobs[placement.job_id], vms[placement.vm_id]
        assert taken.pool_id == machine.pool_id
        assert taken.cores <= machine.slots
        assert machine.memory_bytes is None or taken.memory_bytes <= machine.memory_bytes


@given(snapshots())
def test_serves_in_order(given_: PlacementSnapshot) -> None:
    """Priority, then age, then id; and who gets nothing never fitted better than who got it."""
    order = sorted(given_.jobs, key=lambda j: (-j.priority, j.submitted_at, j.id))
    found = place(given_, NOW)
    place_of = {each.id: number for number, each in enumerate(order)}
    numbers = [place_of[placement.job_id] for placement in found]
    assert numbers == sorted(numbers)

    placed = {p.job_id: p for p in found}
    for number, waiting in enumerate(order):
        if waiting.id in placed:
            continue
        for later in order[number + 1 :]:
            if (
                later.id in placed
                and not placed[later.id].ahead
                and later.pool_id == waiting.pool_id
            ):
                assert later.cores < waiting.cores or later.memory_bytes < waiting.memory_bytes


@given(snapshots(), st.randoms(use_true_random=False))
def test_is_deterministic(given_: PlacementSnapshot, shuffler: random.Random) -> None:
    jobs, vms = list(given_.jobs), list(given_.vms)
    shuffler.shuffle(jobs)
    shuffler.shuffle(vms)
    again = replace(given_, jobs=tuple(jobs), vms=tuple(vms))
    assert place(again, NOW + timedelta(hours=1)) == place(given_, NOW)


@given(snapshots())
def test_leaves_no_job_that_fits(given_: PlacementSnapshot) -> None:
    """What waits fits into nothing that is left; a VM that got work ahead keeps the rest for it."""
    jobs = {each.id: each for each in given_.jobs}
    found = place(given_, NOW)
    queued = {placement.vm_id for placement in found if placement.ahead}
    for each in given_.vms:
        if each.id in queued:
            continue
        mine = [jobs[p.job_id] for p in found if p.vm_id == each.id]
        free = each.free_slots - sum(j.cores for j in mine)
        memory = float("inf") if each.free_memory_bytes is None else each.free_memory_bytes
        memory -= sum(j.memory_bytes for j in mine)
        for waiting in jobs.keys() - where(found).keys():
            one = jobs[waiting]
            assert one.pool_id != each.pool_id or one.cores > free or one.memory_bytes > memory


@given(snapshots())
def test_ahead_only_short_known_jobs_within_limits(given_: PlacementSnapshot) -> None:
    jobs, vms = {j.id: j for j in given_.jobs}, {v.id: v for v in given_.vms}
    backlog_s = {v.id: v.backlog_s for v in given_.vms}
    count = {v.id: v.backlog_count for v in given_.vms}
    for placement in place(given_, NOW):
        if not placement.ahead:
            continue
        taken, machine = jobs[placement.job_id], vms[placement.vm_id]
        assert taken.expected_wall_s is not None
        assert taken.expected_wall_s <= given_.horizon_s
        assert backlog_s[machine.id] / machine.slots < given_.horizon_s + 1e-9
        assert count[machine.id] < given_.max_ahead
        backlog_s[machine.id] += taken.cores * taken.expected_wall_s
        count[machine.id] += 1


def test_best_fit_leaves_the_least_slots_then_the_least_memory() -> None:
    vms = [vm(1, 8, free=8), vm(2, 8, 8 * GIB, free=2), vm(3, 8, 4 * GIB, free=2), vm(4, free=1)]
    assert where(place(snapshot([job(1, 2)], vms), NOW)) == {1: 3}
    assert where(place(snapshot([job(1, 2, 6 * GIB)], vms), NOW)) == {1: 2}
    assert where(place(snapshot([job(1, 3)], vms), NOW)) == {1: 1}


def test_a_job_that_fits_nowhere_holds_up_nobody() -> None:
    jobs = [job(1, 99, priority=5), job(2, 1, 99 * GIB, priority=5), job(3)]
    assert where(place(snapshot(jobs, [vm(1, 4, 8 * GIB)]), NOW)) == {3: 1}


def test_priority_then_age_then_id() -> None:
    jobs = [job(1, age_s=1), job(2, age_s=9), job(3, priority=1), job(4, age_s=1)]
    found = place(snapshot(jobs, [vm(1, 3)]), NOW)
    assert [placement.job_id for placement in found] == [3, 2, 1]


def test_ahead_goes_to_the_shortest_queue_until_the_horizon() -> None:
    """Two slots with 0.5 s each take 1 s of work; the fuller VM gets the less of it."""
    vms = [vm(1, 2, free=0, backlog_s=0.5), vm(2, 2, free=0)]
    found = place(snapshot([job(n, wall_s=0.125) for n in range(1, 50)], vms), NOW)
    assert all(placement.ahead for placement in found)
    assert [placement.vm_id for placement in found[:4]] == [2] * 4
    assert Counter(placement.vm_id for placement in found) == {1: 4, 2: 8}


@pytest.mark.parametrize(
    ("wall_s", "horizon_s", "max_ahead"),
    [(None, 0.5, 9), (0.6, 0.5, 9), (0.1, 0.0, 9), (0.1, 0.5, 0)],
    ids=["unknown", "long", "no horizon", "none allowed"],
)
def test_never_ahead(wall_s: float | None, horizon_s: float, max_ahead: int) -> None:
    jobs, vms = [job(1, wall_s=wall_s)], [vm(1, free=0)]
    assert place(snapshot(jobs, vms, horizon_s=horizon_s, max_ahead=max_ahead), NOW) == []


def test_nothing_is_put_behind_a_queue_as_if_it_were_free() -> None:
    """A wide job placed ahead waits for the whole VM: its free slots are not offered again."""
    jobs = [job(1, 4, wall_s=0.1, priority=1), job(2)]
    assert place(snapshot(jobs, [vm(1, 4, free=2)]), NOW) == [Placement(1, 1, ahead=True)]
    both = place(snapshot(jobs, [vm(1, 4, free=2), vm(2, 1)]), NOW)
    assert both == [Placement(1, 1, ahead=True), Placement(2, 2, ahead=False)]


def best_time_s(given_: PlacementSnapshot) -> float:
    times = []
    for _ in range(3):
        begin = time.process_time()
        place(given_, NOW)
        times.append(time.process_time() - begin)
    return min(times)


def test_a_thousand_jobs_on_a_thousand_vms_are_fast() -> None:
    rng = random.Random(1)
    jobs = [
        job(n, rng.randint(1, 8), rng.randint(0, 16) * GIB, wall_s=rng.choice([None, 0.1]))
        for n in range(1, 1001)
    ]
    vms = [vm(n, 16, 64 * GIB, free=rng.randint(0, 16)) for n in range(1, 1001)]
    assert best_time_s(snapshot(jobs, vms)) < 0.2


def test_the_worst_case_is_fast_too() -> None:
    """All VMs differ and no job fits any, though each has the slots for all of them."""
    jobs = [job(n, 1, 1000 * GIB, wall_s=0.1) for n in range(1, 1001)]
    vms = [vm(n, 1000 + n, n * GIB // 2) for n in range(1, 1001)]
    assert best_time_s(snapshot(jobs, vms)) < 0.4
