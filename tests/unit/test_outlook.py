"""What a pool waits for and does next, in words, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given

from remuda.policies import ElasticSettings, Policy
from remuda.workers.outlook import Outlook, outlook
from remuda.workers.pool_snapshot import Ceiling, PoolSnapshot
from remuda.workers.scaling import decide
from tests.unit.pool_snapshots import NOW, elastic, pool, pools, vm


def after(given_: PoolSnapshot, **more: Any) -> Outlook:
    return outlook(given_, decide(given_, NOW), NOW, **more)


def test_growth_goes_on_after_the_period() -> None:
    rule = elastic(0, 8, resize_factor=0.5, resize_period=60)
    found = after(pool(rule, queued_slots=20))
    assert found.waits_for == ("4 VMs that its provider is asked for",)
    assert found.next_step == "it grows further, by 4 slots, if they are still needed"
    assert found.next_at == NOW + timedelta(seconds=60)


def test_what_is_on_its_way_is_waited_for() -> None:
    vms = [vm(1, state="requested"), vm(2, state="booting"), vm(3, busy=1, draining=True)]
    found = after(pool(elastic(0, 8), vms, queued_slots=2))
    assert found.waits_for == (
        "1 VM that its provider is asked for",
        "1 VM to start",
        "1 VM to drain",
    )
    assert found.next_at is None


def test_an_idle_vm_goes_when_it_was_idle_long_enough() -> None:
    rule = elastic(0, 8, minimum_idle_time_seconds=30, resize_period=5)
    found = after(pool(rule, [vm(1, idle_s=10), vm(2, idle_s=20), vm(3, busy=1)]))
    assert found.next_step == "VM 2 goes unless it gets work"
    assert found.next_at == NOW + timedelta(seconds=10)
    soon = after(pool(rule, [vm(1, idle_s=29)]))
    assert soon.next_at == NOW + timedelta(seconds=5)  # not before the size is decided again


def test_pauses_limits_and_blackouts_are_told() -> None:
    late = NOW + timedelta(seconds=60)
    waiting = pool(elastic(0, 8), queued_slots=2, paused_until=late, launch_failures=6)
    assert after(waiting) == Outlook((), "it asks for VMs again", late)
    unknown = after(pool(elastic(4, 8), provider_known=False))
    assert unknown.waits_for == ("a credible answer of its provider",)
    assert "until its provider answers" in unknown.next_step
    capped = pool(elastic(0, 8), queued_slots=2, ceiling=Ceiling("the global cap", 4, 0))
    assert "room under that limit" in after(capped).next_step
    full = pool(elastic(0, 1), [vm(1, busy=1)], queued_slots=2)
    assert "steady" not in after(full).next_step
    stopped = pool(elastic(0, 8), queued_slots=2, stopped="its budget is used up")
    assert after(stopped).next_step == "nothing is launched: its budget is used up"


def test_the_next_policy_is_told_if_it_comes_first() -> None:
    night = Policy("night", "fixed", ElasticSettings(minimum_total_slots=4, maximum_total_slots=4))
    at = NOW + timedelta(hours=3)
    quiet = pool(elastic(0, 8), [vm(1, busy=1)])
    assert after(quiet, change=(at, night)) == Outlook((), "policy night takes over: 4 slots", at)
    assert after(quiet, change=(at, None)).next_step == "the pool's own size rules again"
    day = Policy("day", "queue", elastic(2, 9))
    assert "2 to 9 slots by demand" in after(quiet, change=(at, day)).next_step
    growing = pool(elastic(0, 8, resize_factor=0.5, resize_period=60), queued_slots=20)
    assert "grows further" in after(growing, change=(at, night)).next_step


@given(pools())
def test_there_is_always_something_to_tell(given_: PoolSnapshot) -> None:
    found = after(given_)
    assert found.next_step
    assert found.next_at is None or found.next_at >= NOW or given_.paused_until == found.next_at
