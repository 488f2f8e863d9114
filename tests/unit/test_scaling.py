"""Sizing: bounds, steps, idle times; and pools simulated tick by tick, which must settle."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.policies import ElasticSettings
from remuda.workers.pool_snapshot import PoolSnapshot, VmSlots
from remuda.workers.scaling import STEPS, Decision, decide
from tests.unit.pool_snapshots import NOW, elastic, pool, pools, settings, vm


def limits(given_: PoolSnapshot) -> tuple[int, int]:
    if given_.elastic is None:
        fixed = given_.instance_count * given_.slots_per_vm
        return fixed, fixed
    return given_.elastic.minimum_total_slots, given_.elastic.maximum_total_slots


@given(pools())
def test_growth_stays_within_the_maximum_and_its_step(given_: PoolSnapshot) -> None:
    low, high = limits(given_)
    found = decide(given_, NOW)
    assert low <= found.target <= high
    new = found.grow_vms * given_.slots_per_vm
    if not new:
        return
    assert sum(each.slots for each in given_.vms) + new <= high
    factor = 1.0 if given_.elastic is None else given_.elastic.resize_factor
    step = max(1, math.ceil(round(factor * high, 6)), low - found.alive)
    assert new < step + given_.slots_per_vm  # a step, rounded up to whole VMs
    assert new < found.target - found.alive + given_.slots_per_vm
    assert not found.close_vm_ids
    assert not found.drain_vm_ids


@given(pools())
def test_closes_only_idle_vms_and_never_below_target(given_: PoolSnapshot) -> None:
    low, high = limits(given_)
    found = decide(given_, NOW)
    vms = {each.id: each for each in given_.vms}
    closed = [vms[number] for number in found.close_vm_ids]
    assert len(set(found.close_vm_ids)) == len(closed)
    for each in closed:
        assert each.state == "running"
        assert not each.busy_slots
        assert not each.draining
        assert each.idle_since
        if given_.elastic and found.alive <= high:
            idle_s = (NOW - each.idle_since).total_seconds()
            assert idle_s >= given_.elastic.minimum_idle_time_seconds
    if closed:
        assert found.alive - sum(each.slots for each in closed) >= max(found.target, low)
        since = [each.idle_since for each in closed if each.idle_since]
        assert since == sorted(since)


@given(pools())
def test_drains_only_what_is_over_the_maximum(given_: PoolSnapshot) -> None:
    found = decide(given_, NOW)
    vms = {each.id: each for each in given_.vms}
    assert not set(found.drain_vm_ids) & set(found.close_vm_ids)
    left = found.alive - sum(vms[n].slots for n in found.close_vm_ids)
    for number in found.drain_vm_ids:
        assert left > limits(given_)[1]
        left -= vms[number].slots
    if found.close_vm_ids or found.drain_vm_ids:
        assert left <= max(limits(given_)[1], found.target)


@given(pools())
def test_nothing_changes_on_what_is_not_known_or_not_due(given_: PoolSnapshot) -> None:
    found = decide(given_, NOW)
    nothing = (found.grow_vms, found.close_vm_ids, found.drain_vm_ids) == (0, (), ())
    if found.frozen or given_.state == "CLOSING":
        assert nothing
    assert found.frozen == (given_.state != "CLOSING" and not given_.provider_known)
    if given_.elastic and given_.last_resize_at:
        assert nothing or NOW - given_.last_resize_at >= timedelta(
            seconds=given_.elastic.resize_period
        )
    if given_.paused_until and given_.paused_until > NOW:
        assert not found.grow_vms


@given(pools())
def test_decisions_can_be_asked_for(given_: PoolSnapshot) -> None:
    """The same snapshot gives the same decision, and it can be stored whole."""
    found = decide(given_, NOW)
    assert decide(given_, NOW) == found
    assert found.reason
    assert json.loads(json.dumps(asdict(found)))["inputs"]["queued"] == given_.queued_slots


def grown(before: PoolSnapshot, found: Decision, now: datetime) -> PoolSnapshot:
    """The pool a tick later: new VMs run, closed ones are gone, waiting work is at work."""
    last = max((each.id for each in before.vms), default=0)
    vms = [each for each in before.vms if each.id not in found.close_vm_ids]
    vms += [
        VmSlots(last + number, "running", before.slots_per_vm, 0, now, False)
        for number in range(1, found.grow_vms + 1)
    ]
    return replace(before, vms=tuple(vms), last_resize_at=now)


def busied(given_: PoolSnapshot, demand: int, now: datetime) -> PoolSnapshot:
    """The pool with `demand` slots of work, first on the VMs that have some already."""
    vms, left = {}, demand
    for each in sorted(given_.vms, key=lambda v: (-v.busy_slots, v.id)):
        busy = min(left, each.slots)
        left -= busy
        since = None if busy else each.idle_since or now
        vms[each.id] = replace(each, busy_slots=busy, idle_since=since)
    return replace(given_, vms=tuple(vms[n] for n in sorted(vms)), queued_slots=left)


@given(settings(), st.integers(1, 4), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_settles_without_flapping(given_: ElasticSettings, size: int, demands: list[int]) -> None:
    """Each level of demand is met by growing or shrinking, not both, and then nothing happens."""
    state, now = pool(given_, slots_per_vm=size), NOW
    for demand in demands:
        signs, quiet = set(), 0
        for _ in range(150):
            now += timedelta(seconds=given_.resize_period)
            state = busied(state, demand, now)
            found = decide(state, now)
            signs |= {1} if found.grow_vms else set()
            signs |= {-1} if found.close_vm_ids else set()
            quiet = 0 if found.grow_vms or found.close_vm_ids else quiet + 1
            state = grown(state, found, now)
            assert sum(each.slots for each in state.vms) <= given_.maximum_total_slots
            if (quiet - 1) * given_.resize_period >= given_.minimum_idle_time_seconds:
                break  # whoever is idle now has been so since before the quiet
        else:
            pytest.fail(f"never quiet: {found}")
        assert len(signs) <= 1
        alive = sum(each.slots for each in state.vms)
        reachable = given_.maximum_total_slots // size * size
        assert alive >= min(found.target, reachable)
        assert alive < found.target + size


def test_the_documented_example() -> None:
    """Max 8, factor 0.5, one idle, 20 queued: 0 -> 4 -> 8."""
    state = pool(elastic(0, 8, minimum_idle_slots=1, resize_factor=0.5, resize_period=60))
    sizes, now = [], NOW
    for _ in range(4):
        state = busied(state, 20, now)
        state = grown(state, decide(state, now), now)
        sizes.append(len(state.vms))
        now += timedelta(seconds=60)
    assert sizes == [4, 8, 8, 8]


def test_a_step_is_not_more_for_a_rounding_error() -> None:
    assert decide(pool(elastic(0, 30, resize_factor=0.1), queued_slots=30), NOW).grow_vms == 3


def test_the_minimum_is_reached_in_one_step() -> None:
    assert decide(pool(elastic(7, 8, resize_factor=0.1)), NOW).grow_vms == 7


def test_vms_on_their_way_count() -> None:
    vms = [vm(1, state="requested"), vm(2, state="booting")]
    assert decide(pool(elastic(0, 8), vms, queued_slots=2), NOW).grow_vms == 0


def test_slots_round_up_to_vms_but_never_over_the_maximum() -> None:
    five = pool(elastic(0, 8), queued_slots=5, slots_per_vm=2)
    assert decide(five, NOW).grow_vms == 3
    odd = decide(pool(elastic(0, 5), queued_slots=9, slots_per_vm=2), NOW)
    assert odd.grow_vms == 2
    too_big = decide(pool(elastic(0, 1), queued_slots=9, slots_per_vm=2), NOW)
    assert too_big.grow_vms == 0
    assert "at the maximum of 1" in too_big.reason


def test_the_longest_idle_goes_first_after_its_time() -> None:
    rule = elastic(0, 8, minimum_idle_slots=1, minimum_idle_time_seconds=30)
    vms = [vm(1, idle_s=40), vm(2, idle_s=10), vm(3, idle_s=90), vm(4, busy=1)]
    assert decide(pool(rule, vms), NOW).close_vm_ids == (3, 1)
    keep_two = replace(rule, minimum_idle_slots=2)
    assert decide(pool(keep_two, vms), NOW).close_vm_ids == (3,)


def test_a_vm_goes_only_when_all_its_slots_may() -> None:
    vms = [vm(1, slots=2, idle_s=99), vm(2, slots=2, busy=1)]
    assert decide(pool(elastic(0, 8, minimum_idle_slots=2), vms), NOW).close_vm_ids == ()
    assert decide(pool(elastic(0, 8, minimum_idle_slots=1), vms), NOW).close_vm_ids == (1,)


def test_lowering_the_maximum_below_what_is_busy_drains() -> None:
    vms = [vm(1, busy=1), vm(2, busy=1), vm(3, state="booting"), vm(4)]
    found = decide(pool(elastic(0, 1, minimum_idle_time_seconds=999), vms), NOW)
    assert found.close_vm_ids == (4,)
    assert found.drain_vm_ids == (3, 2)


def test_what_drains_takes_room_but_gives_none() -> None:
    vms = [vm(1, busy=1, draining=True), vm(2, busy=1)]
    found = decide(pool(elastic(0, 3), vms, queued_slots=9), NOW)
    assert (found.alive, found.grow_vms) == (1, 1)


def test_static_pools_have_their_vms_at_once() -> None:
    given_ = pool(None, instance_count=3, slots_per_vm=2)
    assert decide(given_, NOW).grow_vms == 3
    idle = [vm(n, slots=2) for n in range(1, 6)]
    fewer = replace(given_, vms=tuple(idle), last_resize_at=NOW)
    assert decide(fewer, NOW).close_vm_ids == (1, 2)


def test_freezes_when_the_provider_is_unknown() -> None:
    found = decide(pool(elastic(4, 8), queued_slots=9, provider_known=False), NOW)
    assert found.frozen
    assert found.grow_vms == 0
    assert "provider" in found.reason


def test_failed_launches_pause_growth_and_say_so() -> None:
    late = NOW + timedelta(seconds=60)
    paused = pool(elastic(0, 8), queued_slots=2, paused_until=late, launch_failures=6)
    found = decide(paused, NOW)
    assert found.grow_vms == 0
    assert "no growth for 60 s after 6 failed launches" in found.reason
    assert decide(paused, late).grow_vms == 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("minimum_total_slots", [-1, 9, 1.5, True, "1", None]),
        ("maximum_total_slots", [-1, 0, math.inf, True, "8"]),
        ("minimum_idle_slots", [-1, 9, 0.5, False, "0"]),
        ("minimum_idle_time_seconds", [-1, math.nan, math.inf, True, "30"]),
        ("resize_factor", [0, -0.5, 1.01, math.nan, True, "1"]),
        ("resize_period", [0, 0.5, math.inf, True, "90"]),
    ],
)
def test_nonsense_is_refused_by_name(name: str, values: list[Any]) -> None:
    good: dict[str, Any] = {"minimum_total_slots": 1, "maximum_total_slots": 8}
    for value in values:
        with pytest.raises(BadInput, match=name):
            ElasticSettings(**{**good, name: value})


@given(pools())
def test_every_step_is_known(given_: PoolSnapshot) -> None:
    found = decide(given_, NOW)
    assert found.step in STEPS
    acts = bool(found.grow_vms or found.close_vm_ids or found.drain_vm_ids or found.replace_vm_ids)
    assert acts == (found.step in ("grow", "shrink", "replace"))
