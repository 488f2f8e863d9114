"""Pools over random traces, decided by the real functions: bounds, busy VMs, rest, no flapping."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.policies import ElasticSettings, Period, Policy
from remuda.traces import TraceRow
from remuda.workers.simulated import PoolModel, Simulation
from remuda.workers.simulation import simulate
from tests.examples import examples

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


@st.composite
def sizes(draw: st.DrawFn, slots_per_vm: int) -> ElasticSettings:
    high = draw(st.integers(slots_per_vm, 24))
    return ElasticSettings(
        minimum_total_slots=draw(st.integers(0, high)),
        maximum_total_slots=high,
        minimum_idle_slots=draw(st.integers(0, high)),
        minimum_idle_time_seconds=draw(st.sampled_from([0, 7, 60, 600])),
        resize_factor=draw(st.floats(0.01, 1)),
        resize_period=draw(st.integers(1, 120)),
    )


@st.composite
def models(draw: st.DrawFn) -> PoolModel:
    slots = draw(st.integers(1, 4))
    return PoolModel(
        slots_per_vm=slots,
        memory_bytes_per_vm=draw(st.sampled_from([None, 8])),
        size=draw(sizes(slots)),
        boot_s=draw(st.sampled_from([0.0, 1.0, 30.0, 300.0])),
        price=1.0,
    )


traces = st.lists(
    st.builds(
        TraceRow,
        st.integers(0, 2000).map(float),
        st.integers(1, 900).map(float),
        st.integers(1, 5),
        st.integers(0, 9),
    ),
    max_size=40,
)


def size_of(model: PoolModel) -> ElasticSettings:
    assert model.size is not None
    return model.size


def levels(found: Simulation) -> list[tuple[float, int]]:
    """The slots there are, asked for or running, after each moment at which that changed."""
    edges: dict[float, int] = {}
    for vm in found.vms:
        edges[vm.asked_s] = edges.get(vm.asked_s, 0) + vm.slots
        if vm.closed_s is not None:
            edges[vm.closed_s] = edges.get(vm.closed_s, 0) - vm.slots
    level, seen = 0, []
    for at in sorted(edges):
        level += edges[at]
        seen.append((at, level))
    return seen


@given(models(), traces)
@settings(max_examples=examples(150))
def test_the_size_stays_within_its_bounds(model: PoolModel, trace: list[TraceRow]) -> None:
    size, slots = size_of(model), model.slots_per_vm
    found = simulate(model, trace, start=MONDAY)
    low = size.minimum_total_slots
    for _, level in levels(found):
        assert level <= size.maximum_total_slots
        assert level >= min(low, size.maximum_total_slots // slots * slots)
    for step in found.steps:
        assert low <= step.decision.target <= size.maximum_total_slots


@given(models(), traces)
@settings(max_examples=examples(150))
def test_no_busy_vm_is_closed_and_every_job_that_fits_ends(
    model: PoolModel, trace: list[TraceRow]
) -> None:
    found = simulate(model, trace, start=MONDAY)
    for job, run in zip(trace, found.jobs, strict=True):
        memory = model.memory_bytes_per_vm
        fits = job.cores <= model.slots_per_vm and (memory is None or job.memory_bytes <= memory)
        assert (run.end_s is not None) == fits
        if run.end_s is None or run.start_s is None or run.vm is None:
            continue
        vm = found.vms[run.vm - 1]
        assert job.submit_s <= run.start_s
        assert vm.ready_s <= run.start_s < run.end_s
        assert vm.closed_s is None or run.end_s <= vm.closed_s


@given(models(), traces)
@settings(max_examples=examples(150))
def test_no_vm_is_used_beyond_what_it_has(model: PoolModel, trace: list[TraceRow]) -> None:
    found = simulate(model, trace, start=MONDAY)
    for number, vm in enumerate(found.vms, 1):
        here = [(r, j) for r, j in zip(found.jobs, trace, strict=True) if r.vm == number]
        for at, _ in [(r.start_s, j) for r, j in here]:
            now = [j for r, j in here if (r.start_s or 0) <= (at or 0) < (r.end_s or 0)]
            assert sum(job.cores for job in now) <= vm.slots
            if model.memory_bytes_per_vm is not None:
                assert sum(job.memory_bytes for job in now) <= model.memory_bytes_per_vm


@given(models(), traces)
@settings(max_examples=examples(150))
def test_it_comes_to_rest_and_never_flaps(model: PoolModel, trace: list[TraceRow]) -> None:
    """Between two changes of the demand it grows or shrinks, not both; after the last it rests."""
    size = size_of(model)
    last = max((job.submit_s for job in trace), default=0.0)
    found = simulate(model, trace, start=MONDAY, until_s=last + 100_000)
    for _, steps in groupby(found.steps, key=lambda step: step.changes):
        signs = set()
        for step in steps:
            signs |= {1} if step.decision.grow_vms else set()
            signs |= {-1} if step.decision.close_vm_ids or step.decision.drain_vm_ids else set()
        assert len(signs) <= 1
    over = max((run.end_s for run in found.jobs if run.end_s is not None), default=0.0)
    # Everything that may come of it: VMs to start, idle times, and steps one period after another.
    steps_s = size.resize_period * (size.maximum_total_slots + 2)
    rest = over + model.boot_s + size.minimum_idle_time_seconds + steps_s
    late = [s for s in found.steps if s.at_s > rest]
    assert not [s for s in late if s.decision.grow_vms or s.decision.close_vm_ids]
    kept = max(size.minimum_total_slots, size.minimum_idle_slots)
    here = sum(vm.slots for vm in found.vms if vm.closed_s is None)
    slots = model.slots_per_vm
    assert min(kept, size.maximum_total_slots // slots * slots) <= here < kept + slots


@given(st.data(), traces)
@settings(max_examples=examples(60))
def test_policies_take_turns(data: st.DataObject, trace: list[TraceRow]) -> None:
    """Within the bounds of the one that rules, but for VMs that still work off what they had."""
    slots = data.draw(st.integers(1, 4))
    early = Policy("early", "queue", data.draw(sizes(slots)), (Period((0,), 0, 10),), "UTC")
    fixed = data.draw(st.integers(0, 12))
    size = ElasticSettings(minimum_total_slots=fixed, maximum_total_slots=fixed)
    later = Policy("later", "fixed", size)
    model = PoolModel(slots_per_vm=slots, policies=(early, later), boot_s=5)
    found = simulate(model, trace, start=MONDAY, until_s=4000)
    for step in (step for step in found.steps if step.at_s < 86_400):
        minute = (MONDAY + timedelta(seconds=step.at_s)).minute + int(step.at_s // 3600) * 60
        assert step.decision.policy == ("early" if minute < 10 else "later")
    at_end = sum(vm.slots for vm in found.vms if vm.closed_s is None)
    busy = any(run.end_s is not None and run.end_s >= 3900 for run in found.jobs)
    if fixed >= slots and not busy and found.end_s < 86_400:
        assert at_end == fixed // slots * slots


def played(model: PoolModel, *jobs: TraceRow, **more: Any) -> Simulation:
    return simulate(model, jobs, start=MONDAY, **more)


def test_a_job_waits_for_a_vm_to_start_and_the_vm_for_more_work() -> None:
    size = ElasticSettings(maximum_total_slots=1, minimum_idle_time_seconds=60, resize_period=10)
    model = PoolModel(size=size, boot_s=30, price=3600.0)
    found = played(model, TraceRow(100, 50), until_s=1000)
    [run], [vm] = found.jobs, found.vms
    assert (vm.asked_s, vm.ready_s) == (100, 130)
    assert (run.start_s, run.end_s) == (130, 180)
    assert vm.closed_s == 240  # a minute after its work
    assert found.cost() == pytest.approx(140)
    assert found.cost(150) == pytest.approx(50)
    assert found.end_s == 1000


def test_a_static_pool_has_its_vms_from_the_begin_on() -> None:
    found = played(PoolModel(instance_count=2, slots_per_vm=2, boot_s=10), TraceRow(50, 1, 2))
    assert [vm.asked_s for vm in found.vms] == [0, 0]
    assert found.jobs[0].start_s == 50


def test_what_fits_no_vm_never_runs_and_holds_up_nothing() -> None:
    found = played(PoolModel(slots_per_vm=2), TraceRow(0, 5, 3), TraceRow(0, 5, 1))
    assert [run.end_s for run in found.jobs] == [None, 65]


def test_a_pool_that_may_have_no_vm_comes_to_an_end() -> None:
    found = played(PoolModel(instance_count=0), TraceRow(0, 5))
    assert found.jobs[0].start_s is None
    assert found.vms == []
    assert played(PoolModel()).jobs == []


def test_higher_priorities_go_first_and_so_do_older_jobs() -> None:
    model = PoolModel(size=None, instance_count=1, boot_s=0.0)
    trace = [TraceRow(0, 10), *(TraceRow(1, 10, priority=p) for p in (0, 5, -3, 5))]
    found = simulate(model, trace, start=MONDAY)
    first = found.jobs[0].start_s or 0.0
    started = [(run.start_s or 0.0) - first for run in found.jobs]
    assert started == [0, 30, 10, 40, 20]


def test_failing_launches_are_paid_for_and_pause_the_pool() -> None:
    size = ElasticSettings(minimum_total_slots=0, maximum_total_slots=8, resize_period=1)
    model = PoolModel(size=size, boot_s=30.0, price=1.0, failing_launches=0.5, seed=3)
    trace = [TraceRow(float(n), 100.0) for n in range(40)]
    found = simulate(model, trace, start=MONDAY)
    failed = [vm for vm in found.vms if vm.failed]
    assert all(run.end_s is not None for run in found.jobs)  # all ran, later
    assert 0.2 < len(failed) / len(found.vms) < 0.8
    assert {vm.closed_s for vm in failed} == {vm.ready_s for vm in failed}
    assert any(step.decision.step == "paused" for step in found.steps)
    assert simulate(model, trace, start=MONDAY) == found  # chance is the same each time
    never = replace(model, failing_launches=1.0)
    lost = simulate(never, trace[:2], start=MONDAY)
    assert all(run.start_s is None for run in lost.jobs)
    gaps = [b.asked_s - a.asked_s for a, b in pairwise(lost.vms)]
    assert max(gaps) <= 300 + 30 + 2  # the longest pause
    easy = simulate(replace(model, failing_launches=0.0), trace, start=MONDAY)
    assert not any(vm.failed for vm in easy.vms)
    assert easy.end_s < found.end_s
