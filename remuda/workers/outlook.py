"""What a pool waits for and what it does next: a pure function of a snapshot and its decision."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from remuda.policies import Policy
from remuda.workers.pool_snapshot import PoolSnapshot
from remuda.workers.scaling import Decision, due_at

__all__ = ["Outlook", "outlook"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """In words: what is waited for, and what comes next; `next_at`: when, None if nobody can tell."""

    waits_for: tuple[str, ...]
    next_step: str
    next_at: datetime | None = None


def outlook(
    snapshot: PoolSnapshot,
    decision: Decision,
    now: datetime,
    *,
    change: tuple[datetime, Policy | None] | None = None,
) -> Outlook:
    """Return what follows from a decision that was carried out at `now`.

    `change`: when another policy takes over, and which; see `remuda.policies.next_change`.
    """
    step, at = _next(snapshot, decision, now)
    if change is not None and (at is None or change[0] <= at):
        step, at = _takes_over(change[1]), change[0]
    return Outlook(tuple(_waits_for(snapshot, decision)), step, at)


def _waits_for(snapshot: PoolSnapshot, decision: Decision) -> list[str]:
    asked = sum(vm.state == "requested" and not vm.draining for vm in snapshot.vms)
    booting = sum(vm.state == "booting" and not vm.draining for vm in snapshot.vms)
    draining = sum(vm.draining for vm in snapshot.vms) + len(decision.drain_vm_ids)
    asked += decision.grow_vms
    said = [f"{_vms(asked)} that its provider is asked for"] if asked else []
    said += [f"{_vms(booting)} to start"] if booting else []
    said += [f"{_vms(draining)} to drain"] if draining else []
    if decision.frozen:
        said.append("a credible answer of its provider")
    return said


def _next(snapshot: PoolSnapshot, decision: Decision, now: datetime) -> tuple[str, datetime | None]:
    period = timedelta(seconds=snapshot.elastic.resize_period if snapshot.elastic else 0)
    short = decision.target - decision.alive - decision.grow_vms * snapshot.slots_per_vm
    match decision.step:
        case "state":
            return f"nothing while the pool is {snapshot.state}", None
        case "frozen":
            return "nothing until its provider answers credibly", None
        case "early":
            return "its size is decided anew", due_at(snapshot)
        case "grow" if short > 0:
            return f"it grows further, by {short} slots, if they are still needed", now + period
        case "paused":
            return "it asks for VMs again", snapshot.paused_until
        case "maximum":
            return "nothing more than its maximum, whatever waits", None
        case "ceiling":
            return "it grows when there is room under that limit", None
        case "replace":
            return "VMs for those who wait take the place of the closed ones", now
    return _goes_first(snapshot, decision, now, period)


def _goes_first(
    snapshot: PoolSnapshot, decision: Decision, now: datetime, period: timedelta
) -> tuple[str, datetime | None]:
    """Tell when the first idle VM may go, if there is more than there should be."""
    closed = {*decision.close_vm_ids, *decision.drain_vm_ids}
    spare = decision.alive - sum(_slots(snapshot, closed)) - decision.target
    if spare > 0:
        enough = timedelta(
            seconds=snapshot.elastic.minimum_idle_time_seconds if snapshot.elastic else 0
        )
        left = [vm for vm in snapshot.vms if not vm.draining and vm.id not in closed]
        idle = [
            (vm.idle_since + enough, vm.id)
            for vm in left
            if vm.idle_since and not vm.busy_slots and vm.slots <= spare
        ]
        if idle:
            at, vm_id = min(idle)
            return f"VM {vm_id} goes unless it gets work", max(at, now + period)
        if any(vm.slots <= spare for vm in left):
            return "VMs go when their work has ended", None
    if decision.grow_vms:
        return "it stays at that size while its demand does", None
    if snapshot.stopped:
        return f"nothing is launched: {snapshot.stopped}", None
    return "nothing while its demand stays as it is", None


def _slots(snapshot: PoolSnapshot, vm_ids: Collection[int]) -> list[int]:
    return [vm.slots for vm in snapshot.vms if vm.id in vm_ids]


def _takes_over(policy: Policy | None) -> str:
    if policy is None:
        return "the pool's own size rules again"
    if policy.kind == "fixed":
        return f"policy {policy.name} takes over: {policy.size.maximum_total_slots} slots"
    low, high = policy.size.minimum_total_slots, policy.size.maximum_total_slots
    return f"policy {policy.name} takes over: {low} to {high} slots by demand"


def _vms(count: int) -> str:
    return f"{count} VM" if count == 1 else f"{count} VMs"
