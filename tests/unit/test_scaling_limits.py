"""Sizing where others have a say: limits over several pools, policies, who is stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from remuda.workers.packing import Demand
from remuda.workers.pool_snapshot import Ceiling, PoolSnapshot
from remuda.workers.scaling import decide
from tests.unit.pool_snapshots import NOW, elastic, pool, vm


def test_a_limit_over_several_pools_stops_growth_and_takes_nothing() -> None:
    under = pool(elastic(0, 8), queued_slots=8, ceiling=Ceiling("the global cap", 20, 3))
    found = decide(under, NOW)
    assert (found.grow_vms, found.step) == (3, "grow")
    full = pool(
        elastic(0, 8), [vm(1, busy=1)], queued_slots=8, ceiling=Ceiling("the global cap", 20, 0)
    )
    found = decide(full, NOW)
    assert (found.grow_vms, found.close_vm_ids, found.step) == (0, (), "ceiling")
    assert "at the global cap of 20 slots over several pools" in found.reason
    own = replace(full, elastic=elastic(0, 1))
    assert decide(own, NOW).step in ("maximum", "ceiling", "steady")
    assert not decide(own, NOW).grow_vms


def test_another_policy_does_not_wait_for_the_period() -> None:
    early = pool(elastic(0, 8), queued_slots=2, last_resize_at=NOW, policy="day")
    assert decide(early, NOW).step == "early"
    found = decide(replace(early, policy_changed=True), NOW)
    assert (found.step, found.grow_vms, found.policy) == ("grow", 2, "day")
    assert found.reason.startswith("by policy day: ")
    assert found.inputs["policy"] == "day"


def test_who_is_stopped_grows_by_nothing_and_says_why() -> None:
    over = pool(elastic(2, 8), queued_slots=2, stopped="its budget is used up")
    found = decide(over, NOW)
    assert (found.step, found.grow_vms) == ("stopped", 0)
    assert "its budget is used up" in found.reason
    idle = replace(over, elastic=elastic(0, 8), vms=(vm(1, idle_s=9),), queued_slots=0)
    assert decide(idle, NOW).close_vm_ids == (1,)  # what is idle goes all the same
    waited_for = replace(idle, queued_slots=3, demands=(Demand(count=3, cores=1),))
    assert decide(waited_for, NOW).close_vm_ids == (1,)  # also when it is waited for in vain


def wants(slots: int, **more: Any) -> PoolSnapshot:
    demands = (Demand(count=slots, cores=1, memory_bytes=0, gpus=0),)
    return pool(elastic(0, 10), queued_slots=slots, demands=demands, **more)


def test_what_only_a_limit_over_several_pools_keeps_away_is_told() -> None:
    assert decide(wants(5, ceiling=Ceiling("the cap", 8, 2)), NOW).short_vms == 3
    assert decide(wants(5, ceiling=Ceiling("the cap", 8, 5)), NOW).short_vms == 0
    assert decide(wants(5), NOW).short_vms == 0
    booting = [vm(n, state="booting") for n in range(3)]
    decision = decide(replace(wants(5, ceiling=Ceiling("the cap", 8, 0)), vms=tuple(booting)), NOW)
    assert (decision.step, decision.short_vms) == ("ceiling", 2)
    # Its own maximum is nobody else's fault; nor is what it would like to have idle.
    full = replace(wants(5, ceiling=Ceiling("the cap", 8, 0)), elastic=elastic(0, 3))
    assert decide(full, NOW).short_vms == 3
    spare = pool(elastic(0, 9, minimum_idle_slots=4), ceiling=Ceiling("the cap", 8, 0))
    assert decide(spare, NOW).short_vms == 0


def test_a_shelf_that_is_full_keeps_it_away_too() -> None:
    paused: dict[str, Any] = {"paused_until": NOW + timedelta(seconds=9)}
    assert decide(wants(3, **paused), NOW).short_vms == 0
    decision = decide(wants(3, shelf_full=True, **paused), NOW)
    assert (decision.step, decision.short_vms) == ("paused", 3)


def test_the_rest_of_a_step_is_taken_as_soon_as_there_is_room() -> None:
    early: dict[str, Any] = {"last_resize_at": NOW - timedelta(seconds=1)}
    assert decide(wants(9, **early), NOW).step == "early"
    assert decide(wants(9, short_slots=2, **early), NOW).grow_vms == 2
    waits = decide(wants(9, short_slots=2, ceiling=Ceiling("the cap", 8, 1), **early), NOW)
    assert (waits.grow_vms, waits.short_vms) == (1, 1)
    assert decide(pool(elastic(0, 9), short_slots=2, **early), NOW).step == "early"
