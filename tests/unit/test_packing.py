"""Sizing by shapes: what waits is packed into what is free, what is left makes the pool grow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from remuda.constraints import Hardware
from remuda.policies import ElasticSettings
from remuda.workers.packing import Demand, Room, pack
from remuda.workers.pool_snapshot import PoolSnapshot, VmSlots
from remuda.workers.scaling import decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALICE, BOB = (1, ""), (2, "")
FRESH = Room(slots=4, memory_bytes=8, gpus=1)


def vm(number: int, *, busy: int = 0, slots: int = 2, key: Any = None) -> VmSlots:
    since = None if busy else NOW - timedelta(seconds=number)
    return VmSlots(number, "running", slots, busy, since, False, key=key)


def pool(vms: list[VmSlots], *demands: Demand, most: int = 8, **more: Any) -> PoolSnapshot:
    return PoolSnapshot(
        pool_id=1,
        state="SUBMITTED",
        elastic=ElasticSettings(minimum_total_slots=0, maximum_total_slots=most),
        instance_count=0,
        slots_per_vm=2,
        vms=tuple(vms),
        queued_slots=sum(demand.count * demand.cores for demand in demands),
        last_resize_at=None,
        demands=demands,
        **more,
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    return Demand(
        count=draw(st.integers(1, 9)),
        cores=draw(st.integers(1, 5)),
        memory_bytes=draw(st.integers(0, 9)),
        gpus=draw(st.integers(0, 2)),
        key=draw(st.sampled_from([ALICE, BOB])),
    )


@st.composite
def rooms(draw: st.DrawFn, number: int) -> Room:
    return Room(
        slots=draw(st.integers(1, 4)),
        memory_bytes=draw(st.none() | st.integers(0, 8)),
        gpus=draw(st.integers(0, 1)),
        key=draw(st.sampled_from([None, ALICE, BOB])),
        vm_id=number,
    )


@given(st.lists(demands(), max_size=6), st.data())
def test_new_vms_are_enough_and_not_many_more(wanted: list[Demand], data: st.DataObject) -> None:
    """As many as their slots ask for at least, one a job at most; the same when they are there."""
    there = [data.draw(rooms(number)) for number in range(1, data.draw(st.integers(1, 6)))]
    single_use = data.draw(st.booleans())
    found = pack(wanted, there, fresh=FRESH, single_use=single_use)
    possible = [d for d in wanted if d.cores <= 4 and d.memory_bytes <= 8 and d.gpus <= 1]
    assert found.fresh_vms <= sum(demand.count for demand in possible)
    assert found.used <= {room.vm_id for room in there}
    alone = pack(wanted, [], fresh=FRESH, single_use=single_use)
    assert alone.fresh_vms * 4 >= sum(demand.count * demand.cores for demand in possible)
    if single_use:
        assert alone.fresh_vms == sum(demand.count for demand in possible)
    enough = [replace(FRESH, vm_id=n) for n in range(1, 1 + sum(d.count for d in possible))]
    assert pack(wanted, enough, fresh=FRESH, single_use=single_use).fresh_vms == 0


def test_two_halves_are_no_whole() -> None:
    wide = Demand(count=1, cores=2)
    vms = [vm(1, busy=1), vm(2, busy=1)]
    assert decide(pool(vms, wide), NOW).grow_vms == 1
    settled = decide(pool([*vms, vm(3)], wide), NOW)
    assert (settled.grow_vms, settled.close_vm_ids) == (0, ())
    assert decide(pool([*vms, vm(3)]), NOW).close_vm_ids == (3,)


def test_memory_gpus_and_machines_count() -> None:
    there = Room(slots=4, memory_bytes=2, hardware=Hardware(architecture="x86_64"), vm_id=1)
    for wish in ({"memory_bytes": 3}, {"gpus": 1}, {"architecture": "aarch64"}):
        wanted = Demand(count=1, cores=1, **wish)
        assert pack([wanted], [there], fresh=FRESH).fresh_vms == 1
    assert pack([Demand(count=2, cores=1, memory_bytes=1)], [there], fresh=FRESH).used == {1}


def test_idle_vms_of_others_are_not_free_and_make_room_at_the_maximum() -> None:
    bobs = Demand(count=1, cores=1, key=BOB)
    alices = [vm(1, key=ALICE), vm(2, key=ALICE)]
    grown = decide(pool(alices, bobs, isolation="owner"), NOW)
    assert (grown.grow_vms, grown.replace_vm_ids) == (1, ())
    full = decide(pool(alices, bobs, most=4, isolation="owner"), NOW)
    assert (full.grow_vms, full.replace_vm_ids) == (0, (2,))  # the longest idle
    needed = decide(
        pool(alices, bobs, Demand(count=3, cores=1, key=ALICE), most=4, isolation="owner"), NOW
    )
    assert needed.replace_vm_ids == ()
    mine = decide(pool([vm(1, key=BOB)], bobs, isolation="owner"), NOW)
    assert (mine.grow_vms, mine.close_vm_ids) == (0, ())


def test_a_single_use_takes_a_vm_each() -> None:
    three = Demand(count=3, cores=1, key=BOB)
    assert decide(pool([vm(1)], three, isolation="single_use"), NOW).grow_vms == 2


def test_idle_slots_are_kept_of_nobodys_vms() -> None:
    rule = ElasticSettings(minimum_total_slots=0, maximum_total_slots=8, minimum_idle_slots=2)
    given_ = replace(pool([vm(1, key=ALICE)], isolation="owner"), elastic=rule)
    assert decide(given_, NOW).grow_vms == 1
    kept = decide(replace(given_, vms=(vm(1, key=ALICE), vm(2))), NOW)
    assert kept.grow_vms == 0
    assert kept.close_vm_ids == (1,)
