"""Placement of what jobs ask for beside slots: GPUs, machines, pools, isolation, arrays' limits."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.constraints import Hardware, unmet
from remuda.workers.placement import (
    PendingJob,
    Placement,
    PlacementSnapshot,
    VmCapacity,
    binding,
    place,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = (
    Hardware(architecture="x86_64", cores=8, memory_bytes=64, ssd=True, cpu_model="AMD EPYC 7763"),
    Hardware(architecture="x86_64", cores=4, memory_bytes=16, gpus=2, cpu_model="Xeon"),
    Hardware(architecture="aarch64", cores=4, memory_bytes=16, ssd=False),
)
WISHES: tuple[dict[str, Any] | None, ...] = (
    None,
    {"gpu": True},
    {"gpu": False, "min_cores": 5},
    {"cpu_model": "*epyc*"},
    {"max_memory_bytes": 16, "ssd": False},
)


def job(number: int, cores: int = 1, **more: Any) -> PendingJob:
    fields: dict[str, Any] = {
        "pool_id": 1,
        "owner_id": 1,
        "priority": 0,
        "submitted_at": NOW,
        "memory_bytes": 0,
        "expected_wall_s": None,
        **more,
    }
    return PendingJob(id=number, cores=cores, **fields)


def vm(number: int, slots: int = 4, **more: Any) -> VmCapacity:
    fields: dict[str, Any] = {
        "pool_id": 1,
        "memory_bytes": None,
        "free_slots": slots,
        "free_memory_bytes": None,
        "backlog_s": 0.0,
        "backlog_count": 0,
        **more,
    }
    return VmCapacity(id=number, slots=slots, **fields)


def snapshot(jobs: list[PendingJob], vms: list[VmCapacity], **more: Any) -> PlacementSnapshot:
    fields: dict[str, Any] = {"horizon_s": 0.5, "max_ahead": 8, **more}
    return PlacementSnapshot(tuple(jobs), tuple(vms), **fields)


def where(found: list[Placement]) -> dict[int, int]:
    return {placement.job_id: placement.vm_id for placement in found}


@st.composite
def jobs(draw: st.DrawFn, number: int) -> PendingJob:
    pools = draw(st.lists(st.integers(1, 3), unique=True, max_size=3))
    return job(
        number,
        draw(st.integers(1, 4)),
        pool_id=pools[0] if pools else draw(st.integers(1, 3)),
        pool_ids=tuple(pools),
        owner_id=draw(st.integers(1, 2)),
        sandbox=draw(st.sampled_from(["", "a"])),
        priority=draw(st.integers(-1, 1)),
        memory_bytes=draw(st.integers(0, 8)),
        gpus=draw(st.sampled_from([0, 0, 0, 1, 2])),
        architecture=draw(st.sampled_from([None, None, "x86_64", "aarch64"])),
        constraints=draw(st.sampled_from(WISHES)),
        array_id=draw(st.sampled_from([None, 7, 8])),
        expected_wall_s=draw(st.none() | st.floats(0, 1)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> PlacementSnapshot:
    """Three pools, each of an isolation, with VMs of three kinds, some used and bound."""
    isolation = {
        pool: draw(st.sampled_from(["shared", "owner", "sandbox", "single_use"]))
        for pool in (1, 2, 3)
    }
    vms = []
    for number in range(1, draw(st.integers(0, 8)) + 1):
        pool, kind = draw(st.integers(1, 3)), draw(st.sampled_from(KINDS))
        slots = draw(st.integers(1, 5))
        bound = isolation[pool] != "shared" and draw(st.booleans())
        free = draw(st.integers(0, slots)) if bound or isolation[pool] == "shared" else slots
        vms.append(
            vm(
                number,
                slots,
                pool_id=pool,
                memory_bytes=kind.memory_bytes,
                free_slots=free,
                free_memory_bytes=draw(st.integers(0, kind.memory_bytes or 0)),
                free_gpus=draw(st.integers(0, kind.gpus)),
                hardware=kind,
                isolation=isolation[pool],
                bound_owner_id=draw(st.integers(1, 2)) if bound else None,
                bound_sandbox=draw(st.sampled_from(["", "a"])) if bound else None,
                backlog_s=draw(st.floats(0, 2)) if bound else 0.0,
            )
        )
    waiting = [draw(jobs(number)) for number in range(1, draw(st.integers(0, 16)) + 1)]
    array_room = draw(st.sampled_from([{}, {7: 0}, {7: 2, 8: 1}]))
    return snapshot(waiting, vms, array_room=array_room)


@given(snapshots())
def test_nothing_is_given_out_twice_and_all_go_where_they_may(given_: PlacementSnapshot) -> None:
    found = place(given_, NOW)
    all_jobs, vms = {j.id: j for j in given_.jobs}, {v.id: v for v in given_.vms}
    assert len(where(found)) == len(found)
    used: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for placement in found:
        taken, machine = all_jobs[placement.job_id], vms[placement.vm_id]
        assert machine.pool_id in (taken.pool_ids or (taken.pool_id,))
        assert taken.cores <= machine.slots
        assert not unmet(
            machine.hardware, architecture=taken.architecture, constraints=taken.constraints
        )
        assert not (placement.ahead and taken.gpus)
        if not placement.ahead:
            used[machine.id]["slots"] += taken.cores
            used[machine.id]["memory"] += taken.memory_bytes
            used[machine.id]["gpus"] += taken.gpus
    for each in given_.vms:
        assert used[each.id]["slots"] <= each.free_slots
        assert used[each.id]["gpus"] <= each.free_gpus
        assert used[each.id]["memory"] <= (each.free_memory_bytes or 0)
        if each.isolation != "shared":
            assert_isolated(each, [all_jobs[p.job_id] for p in found if p.vm_id == each.id])
    count = Counter(all_jobs[p.job_id].array_id for p in found)
    assert all(count[array] <= max(0, room) for array, room in given_.array_room.items())


def assert_isolated(machine: VmCapacity, mine: list[PendingJob]) -> None:
    """Check that whom the VM served and serves now is one owner (and sandbox), or one job at all."""
    whom = {binding(machine.isolation, one.owner_id, one.sandbox) for one in mine}
    whom |= {binding(machine.isolation, machine.bound_owner_id, machine.bound_sandbox)} - {None}
    assert len(whom) <= 1
    if machine.isolation == "single_use":
        assert len(mine) <= (0 if machine.bound_owner_id else 1)


@given(snapshots(), st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_rows(
    given_: PlacementSnapshot, shuffler: random.Random
) -> None:
    mixed_jobs, vms = list(given_.jobs), list(given_.vms)
    shuffler.shuffle(mixed_jobs)
    shuffler.shuffle(vms)
    again = replace(given_, jobs=tuple(mixed_jobs), vms=tuple(vms))
    assert place(again, NOW + timedelta(hours=1)) == place(given_, NOW)


@given(snapshots())
def test_what_waits_fits_nowhere(given_: PlacementSnapshot) -> None:
    """Each is held up by its array or by what is left: no VM could take it in free slots."""
    all_jobs, found = {j.id: j for j in given_.jobs}, place(given_, NOW)
    queued = {p.vm_id for p in found if p.ahead}
    placed = Counter(all_jobs[p.job_id].array_id for p in found)
    for number in all_jobs.keys() - where(found).keys():
        waiting = all_jobs[number]
        array = waiting.array_id
        if array is not None and placed[array] >= given_.array_room.get(array, 10**9):
            continue
        for each in given_.vms:
            if each.id in queued or each.pool_id not in (waiting.pool_ids or (waiting.pool_id,)):
                continue
            mine = [all_jobs[p.job_id] for p in found if p.vm_id == each.id]
            whose = {binding(each.isolation, one.owner_id, one.sandbox) for one in mine}
            whose |= {binding(each.isolation, each.bound_owner_id, each.bound_sandbox)}
            foreign = whose - {None, binding(each.isolation, waiting.owner_id, waiting.sandbox)}
            assert (
                foreign
                or (each.isolation == "single_use" and whose - {None})
                or waiting.cores > each.free_slots - sum(one.cores for one in mine)
                or waiting.gpus > each.free_gpus - sum(one.gpus for one in mine)
                or waiting.memory_bytes
                > (each.free_memory_bytes or 0) - sum(one.memory_bytes for one in mine)
                or unmet(
                    each.hardware,
                    architecture=waiting.architecture,
                    constraints=waiting.constraints,
                )
            )


def test_the_first_pool_with_room_takes_it() -> None:
    vms = [vm(1, 1, pool_id=1, free_slots=0), vm(2, 1, pool_id=2), vm(3, 2, pool_id=3)]
    wide = job(1, 2, pool_ids=(1, 2, 3))
    small = job(2, pool_ids=(1, 2, 3))
    assert where(place(snapshot([wide, small], vms), NOW)) == {1: 3, 2: 2}
    assert where(place(snapshot([job(1, pool_ids=(3, 2))], vms), NOW)) == {1: 3}


def test_free_slots_of_a_later_pool_come_before_a_queue_of_the_first() -> None:
    vms = [vm(1, 1, pool_id=1, free_slots=0), vm(2, 1, pool_id=2)]
    short = [job(n, pool_ids=(1, 2), expected_wall_s=0.1) for n in (1, 2)]
    assert place(snapshot(short, vms), NOW) == [
        Placement(1, 2, ahead=False),
        Placement(2, 1, ahead=True),
    ]


def test_jobs_without_gpus_leave_vms_with_gpus_alone_if_they_can() -> None:
    gpu, plain = vm(1, free_gpus=2, hardware=KINDS[1]), vm(2)
    assert where(place(snapshot([job(1)], [gpu, plain]), NOW)) == {1: 2}
    assert where(place(snapshot([job(1)], [gpu]), NOW)) == {1: 1}
    assert where(place(snapshot([job(1, gpus=1)], [gpu, plain]), NOW)) == {1: 1}
    three = [job(n, gpus=1) for n in (1, 2, 3)]
    assert where(place(snapshot(three, [gpu, plain]), NOW)) == {1: 1, 2: 1}


@pytest.mark.parametrize("isolation", ["owner", "sandbox"])
def test_a_vm_bound_to_the_same_comes_first_and_a_new_one_is_bound_at_once(isolation: str) -> None:
    bound = vm(2, isolation=isolation, free_slots=2, bound_owner_id=1, bound_sandbox="a")
    fresh = vm(1, 3, isolation=isolation)
    mine = [job(n, sandbox="a") for n in (1, 2, 3)]
    other = job(4, owner_id=2, sandbox="a", priority=-1)
    found = where(place(snapshot([*mine, other], [fresh, bound]), NOW))
    assert found == {1: 2, 2: 2, 3: 1}  # the fresh one went to owner 1, so owner 2 waits


def test_sandboxes_of_one_owner_are_apart_only_where_the_pool_says_so() -> None:
    two = [job(1, sandbox="a"), job(2, sandbox="b")]
    assert len(place(snapshot(two, [vm(1, isolation="owner")]), NOW)) == 2
    assert len(place(snapshot(two, [vm(1, isolation="sandbox")]), NOW)) == 1
    assert len(place(snapshot([job(1), job(2)], [vm(1, isolation="single_use")]), NOW)) == 1


def test_jobs_with_needs_are_placed_fast_among_machines_that_all_differ() -> None:
    """A thousand jobs, each with a wish that half of a thousand different VMs meets."""
    from time import process_time

    vms = [
        vm(n, 4, hardware=Hardware(cores=4, disk_bytes=n, memory_bytes=n)) for n in range(1, 1001)
    ]
    waiting = [job(n, constraints={"min_disk_bytes": 500 + n % 10}) for n in range(1, 1001)]
    times = []
    for _ in range(3):
        begin = process_time()
        assert len(place(snapshot(waiting, vms), NOW)) == 1000
        times.append(process_time() - begin)
    assert min(times) < 0.5


def test_who_is_stopped_in_a_pool_goes_to_the_next() -> None:
    jobs = [job(1, pool_ids=(1, 2)), job(2, pool_ids=(1, 2), owner_id=2), job(3)]
    vms = [vm(1), vm(2, pool_id=2)]
    stopped = replace(snapshot(jobs, vms), stopped=frozenset({(1, 1)}))
    assert where(place(stopped, NOW)) == {1: 2, 2: 1}
