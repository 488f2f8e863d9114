"""Which VMs of a pool have to go, and when: pure, of the pool at one moment.

VMs go by draining: they take no new work, end the old, and are terminated; the pool's size then
brings new ones. An interruption that was announced waits for nothing; all else leaves the pool most
of its VMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

_BOOTING = ("NEW", "SUBMITTED", "WAIT_SSH_CONTEXT", "CONTEXTUALIZING")


@dataclass(frozen=True, slots=True)
class VmAge:
    """A VM that is not HALTED. `outdated`: of another image than its pool's."""

    id: int
    state: str
    draining: bool
    busy: bool
    outdated: bool
    age_s: float
    interruption_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the pool says. `wanted` VMs, None: as many as there are; `max_unavailable` None: none
    of another image is replaced now."""

    max_vm_age_s: float | None = None
    max_unavailable: int | None = None
    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class Retirement:
    """`drain`: VMs and why; `over`: VMs whose time the provider has ended; `rolled_out`: no VM of
    another image is left."""

    drain: dict[int, str] = field(default_factory=dict)
    over: tuple[int, ...] = ()
    rolled_out: bool = False


def retire(vms: Sequence[VmAge], rules: Rules, now: datetime) -> Retirement:
    """Return what is to be done now; carried out, it is safe to ask again at once."""
    there = [vm for vm in vms if vm.state in (*_BOOTING, "RUNNING", "STALLED")]
    drain: dict[int, str] = {}
    over = []
    for vm in there:
        if vm.interruption_at is not None and vm.interruption_at <= now:
            over.append(vm.id)
        elif vm.interruption_at is not None and not vm.draining:
            drain[vm.id] = "its provider takes it away"
    for vm in _too_old(there, rules, drain):
        drain[vm.id] = f"it is older than {rules.max_vm_age_s:g} s"
    if rules.max_unavailable is not None:
        for vm in _outdated(there, rules, drain):
            drain[vm.id] = "it is of another image"
    outdated = any(vm.outdated for vm in there)
    return Retirement(drain, tuple(over), rules.max_unavailable is not None and not outdated)


def _too_old(vms: Sequence[VmAge], rules: Rules, drain: dict[int, str]) -> list[VmAge]:
    """Return the oldest, so that at most half of those that run (at least one) drain at a time."""
    if rules.max_vm_age_s is None:
        return []
    running = [vm for vm in vms if vm.state == "RUNNING"]
    going = sum(vm.draining or vm.id in drain for vm in running)
    old = [
        vm
        for vm in running
        if vm.age_s >= rules.max_vm_age_s and not vm.draining and vm.id not in drain
    ]
    old.sort(key=lambda vm: (-vm.age_s, vm.id))
    return old[: max(0, max(1, len(running) // 2) - going)]


def _outdated(vms: Sequence[VmAge], rules: Rules, drain: dict[int, str]) -> list[VmAge]:
    """Return the VMs to replace now: idle ones first, so many that not too many are missing.

    One that does not run yet is missing anyway.
    """
    left = [vm for vm in vms if vm.outdated and not vm.draining and vm.id not in drain]
    booting = [vm for vm in left if vm.state in _BOOTING]
    running = [vm for vm in left if vm.state == "RUNNING"]
    running.sort(key=lambda vm: (vm.busy, -vm.age_s, vm.id))
    available = sum(vm.state == "RUNNING" and not vm.draining and vm.id not in drain for vm in vms)
    wanted = len(vms) if rules.wanted is None else rules.wanted
    room = (rules.max_unavailable or 0) - (wanted - available)
    return [*booting, *running[: max(0, room)]]
