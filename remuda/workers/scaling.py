"""How many VMs a pool should have: a pure function of the pool as it is.

    target = what is busy + what waits + what to keep idle, within the pool's bounds, in slots

and no less than the VMs it takes for the shapes of what waits (see `remuda.workers.packing`).
Growing goes by steps of `resize_factor` of the maximum; shrinking closes VMs that have been idle
long enough, the longest idle first, and never takes a busy one. What is not known is never guessed:
without the provider's answer nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from remuda.constraints import Hardware
from remuda.errors import BadInput
from remuda.workers.packing import Demand, Key, Packing, Room, pack

# A pool in FAILURE (its launches kept failing) may shrink; what else is not here is left alone.
SIZED_STATES = frozenset(
    {
        "SUBMITTED",
        "PARTIALLY_DISPATCHED",
        "FULLY_DISPATCHED",
        "PARTIALLY_EXECUTING",
        "FULLY_EXECUTING",
        "FAILURE",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticSettings:
    """The six parameters of an elastic pool; raises BadInput naming the wrong one.

    Slots are whole numbers, `resize_factor` a share of the maximum in (0, 1], times seconds.
    """

    minimum_total_slots: int
    maximum_total_slots: int
    minimum_idle_slots: int = 0
    minimum_idle_time_seconds: float = 0.0
    resize_factor: float = 1.0
    resize_period: float = 90.0

    def __post_init__(self) -> None:
        for name in ("minimum_total_slots", "maximum_total_slots", "minimum_idle_slots"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise BadInput(f"{name} must be a whole number from 0 up, not {value!r}")
        for name in ("minimum_idle_time_seconds", "resize_factor", "resize_period"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (0 <= value <= 1e9):
                raise BadInput(f"{name} must be a number from 0 to 1e9, not {value!r}")
        for name in ("minimum_total_slots", "minimum_idle_slots"):
            if getattr(self, name) > self.maximum_total_slots:
                raise BadInput(
                    f"{name} ({getattr(self, name)}) is more than"
                    f" maximum_total_slots ({self.maximum_total_slots})"
                )
        if not 0 < self.resize_factor <= 1:
            raise BadInput(f"resize_factor must be above 0 and at most 1, not {self.resize_factor}")
        if self.resize_period < 1:
            raise BadInput(f"resize_period must be at least 1 second, not {self.resize_period}")


@dataclass(frozen=True, slots=True)
class VmSlots:
    """A VM that works or will: its state is requested, booting or running.

    `idle_since` is set while a running one has nothing to do. `key`: whom it is bound to.
    """

    id: int
    state: str
    slots: int
    busy_slots: int
    idle_since: datetime | None
    draining: bool
    free_memory_bytes: int | None = None
    free_gpus: int = 0
    hardware: Hardware | None = None
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one moment. VMs that are stopping, stalled or gone are not among `vms`.

    `elastic` None: a static pool of `instance_count` VMs. `queued_slots`: the runnable work that
    has no slots yet; `demands`: its shapes. `provider_known` False: the provider did not answer, or
    not credibly.
    """

    pool_id: int
    state: str
    elastic: ElasticSettings | None
    instance_count: int
    slots_per_vm: int
    vms: tuple[VmSlots, ...]
    queued_slots: int
    last_resize_at: datetime | None
    provider_known: bool = True
    launch_failures: int = 0
    paused_until: datetime | None = None
    demands: tuple[Demand, ...] = ()
    isolation: str = "shared"
    memory_bytes_per_vm: int | None = None
    gpus_per_vm: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in words, and everything it was decided from.

    `target` and `alive` are slots. `drain_vm_ids`: VMs over the maximum that are at work; they
    take no more and are closed when done. `replace_vm_ids`: idle VMs bound to somebody who has no
    work for them, to be closed so that others can be made. `frozen`: too little was known to decide.
    """

    target: int
    alive: int
    grow_vms: int
    close_vm_ids: tuple[int, ...]
    reason: str
    inputs: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    drain_vm_ids: tuple[int, ...] = ()
    replace_vm_ids: tuple[int, ...] = ()


def decide(snapshot: PoolSnapshot, now: datetime) -> Decision:
    """Return the next step of the pool's size; carried out, it is safe to ask again at once."""
    size = _Size(snapshot)
    if snapshot.state not in SIZED_STATES:
        return size.decision(f"no change while the pool is {snapshot.state}")
    if not snapshot.provider_known:
        reason = "no change while the provider's answer is missing or not credible"
        return size.decision(reason, frozen=True)
    if snapshot.elastic is not None and snapshot.last_resize_at is not None:
        due = snapshot.last_resize_at + timedelta(seconds=snapshot.elastic.resize_period)
        if now < due:
            wait_s = (due - now).total_seconds()
            return size.decision(f"no change until the next resize in {wait_s:.1f} s")
    if size.target > size.alive:
        return _grow(size, snapshot, now)
    if size.target < size.alive:
        return _shrink(size, snapshot, now)
    return _replace(size, snapshot, now) or size.decision("as it should be")


class _Size:
    """The pool's slots counted: what is there and what there should be."""

    def __init__(self, snapshot: PoolSnapshot) -> None:
        self.elastic = snapshot.elastic or _fixed(snapshot.instance_count * snapshot.slots_per_vm)
        self.isolated = snapshot.isolation != "shared"
        self.serving = [vm for vm in snapshot.vms if not vm.draining]
        self.alive = sum(vm.slots for vm in self.serving)
        self.busy = sum(vm.busy_slots for vm in self.serving)
        self.draining = sum(vm.slots for vm in snapshot.vms if vm.draining)
        wanted = self.busy + snapshot.queued_slots + self.elastic.minimum_idle_slots
        self.packing = _packed(snapshot, self.serving)
        if snapshot.demands or self.isolated:
            wanted = max(wanted, self._for_shapes(snapshot))
        self.target = min(
            max(wanted, self.elastic.minimum_total_slots), self.elastic.maximum_total_slots
        )
        # Rounded first: 0.1 * 30 is a little more than 3.
        self.step = max(
            1, math.ceil(round(self.elastic.resize_factor * self.elastic.maximum_total_slots, 6))
        )
        self.inputs: dict[str, Any] = {
            "elastic": snapshot.elastic is not None,
            "busy": self.busy,
            "queued": snapshot.queued_slots,
            "draining": self.draining,
            **{
                state: sum(vm.slots for vm in self.serving if vm.state == state)
                for state in ("requested", "booting", "running")
            },
            "slots_per_vm": snapshot.slots_per_vm,
            "step": self.step,
            "new_vms_for_shapes": self.packing.fresh_vms,
            "launch_failures": snapshot.launch_failures,
            **{f.name: getattr(self.elastic, f.name) for f in fields(self.elastic)},
        }

    def _for_shapes(self, snapshot: PoolSnapshot) -> int:
        """Return the slots it takes for the shapes of what waits, and of what is to be kept idle.

        While new VMs are needed all there are count, used or not: those nobody needs go later.
        """
        fresh = self.packing.fresh_vms
        if self.isolated:  # what is bound to somebody is not free for others
            fresh += max(0, -(-(self.kept - self.packing.clean_slots) // snapshot.slots_per_vm))
        if fresh:
            return self.alive + fresh * snapshot.slots_per_vm
        used = sum(vm.slots for vm in self.serving if vm.busy_slots or vm.id in self.packing.used)
        spare = sum(vm.slots for vm in self.serving if self.is_spare(vm))
        return used + min(spare, self.kept)

    @property
    def kept(self) -> int:
        """Return the slots to keep idle of VMs that are bound to nobody, if the pool isolates."""
        return self.elastic.minimum_idle_slots if self.isolated else 0

    def is_spare(self, vm: VmSlots) -> bool:
        """Return whether nobody has, or will have, anything on the VM."""
        return not vm.busy_slots and vm.key is None and vm.id not in self.packing.used

    def is_foreign(self, vm: VmSlots) -> bool:
        """Return whether the VM is bound to somebody who has nothing for it to do."""
        return not vm.busy_slots and vm.key is not None and vm.id not in self.packing.used

    def decision(
        self,
        reason: str,
        *,
        grow_vms: int = 0,
        close_vm_ids: tuple[int, ...] = (),
        drain_vm_ids: tuple[int, ...] = (),
        replace_vm_ids: tuple[int, ...] = (),
        frozen: bool = False,
    ) -> Decision:
        facts = f"{self.busy} slots busy, {self.inputs['queued']} waited for"
        return Decision(
            target=self.target,
            alive=self.alive,
            grow_vms=grow_vms,
            close_vm_ids=close_vm_ids,
            reason=f"{facts}; wanted {self.target}, there are {self.alive}: {reason}",
            inputs=self.inputs,
            frozen=frozen,
            drain_vm_ids=drain_vm_ids,
            replace_vm_ids=replace_vm_ids,
        )


def _packed(snapshot: PoolSnapshot, serving: Sequence[VmSlots]) -> Packing:
    """Pack what waits: onto VMs at work first, so that the idle ones can go."""
    rooms = [
        Room(
            slots=vm.slots - vm.busy_slots,
            memory_bytes=vm.free_memory_bytes,
            gpus=vm.free_gpus,
            hardware=vm.hardware,
            key=vm.key,
            vm_id=vm.id,
        )
        for vm in sorted(serving, key=lambda vm: (-vm.busy_slots, vm.state != "running", vm.id))
        if vm.slots > vm.busy_slots
    ]
    fresh = Room(
        slots=snapshot.slots_per_vm,
        memory_bytes=snapshot.memory_bytes_per_vm,
        gpus=snapshot.gpus_per_vm,
    )
    single_use = snapshot.isolation == "single_use"
    return pack(snapshot.demands, rooms, fresh=fresh, single_use=single_use)


def _fixed(slots: int) -> ElasticSettings:
    return ElasticSettings(minimum_total_slots=slots, maximum_total_slots=slots, resize_period=1)


def _grow(size: _Size, snapshot: PoolSnapshot, now: datetime) -> Decision:
    if snapshot.paused_until is not None and now < snapshot.paused_until:
        pause_s = (snapshot.paused_until - now).total_seconds()
        failed = snapshot.launch_failures
        why = f"after {failed} failed launches" if failed else "as there is nothing to be had"
        return size.decision(f"no growth for {pause_s:.0f} s {why}")
    step = max(
        min(size.target - size.alive, size.step), size.elastic.minimum_total_slots - size.alive
    )
    # What drains still counts against the maximum: it is there, and paid for.
    room = size.elastic.maximum_total_slots - size.alive - size.draining
    wanted_vms = -(-step // snapshot.slots_per_vm)
    grow_vms = max(0, min(wanted_vms, room // snapshot.slots_per_vm))
    if grow_vms:
        return size.decision(f"growing by {grow_vms} VMs", grow_vms=grow_vms)
    replacing = _replace(size, snapshot, now)
    if replacing is not None:
        return replacing
    why = f"{size.draining} more are draining" if size.draining else "a VM more would be over it"
    return size.decision(f"at the maximum of {size.elastic.maximum_total_slots}, as {why}")


def _replace(size: _Size, snapshot: PoolSnapshot, now: datetime) -> Decision | None:
    """Close idle VMs of others where their number is all that keeps work waiting."""
    paused = snapshot.paused_until is not None and now < snapshot.paused_until
    if not size.packing.fresh_vms or paused:
        return None
    room = size.elastic.maximum_total_slots - size.alive - size.draining
    missing = size.packing.fresh_vms - max(0, room // snapshot.slots_per_vm)
    idle = sorted(
        ((vm.idle_since, vm.id) for vm in size.serving if vm.idle_since and size.is_foreign(vm)),
    )
    gone = tuple(vm_id for _, vm_id in idle[: max(0, missing)])
    if not gone:
        return None
    return size.decision(
        f"replacing {len(gone)} idle VMs, bound to owners without work, as there is room for no more",
        replace_vm_ids=gone,
    )


def _shrink(size: _Size, snapshot: PoolSnapshot, now: datetime) -> Decision:
    """Close what has been idle long enough; what is over the maximum does not wait for that."""
    enough = timedelta(seconds=size.elastic.minimum_idle_time_seconds)
    left = size.alive
    close: list[int] = []
    clean = sum(vm.slots for vm in size.serving if size.is_spare(vm))
    for idle_since, vm in sorted(
        (
            (vm.idle_since, vm)
            for vm in size.serving
            if vm.idle_since and not vm.busy_slots and vm.id not in size.packing.used
        ),
        key=lambda pair: (pair[1].key is None, pair[0], pair[1].id),
    ):
        over = left > size.elastic.maximum_total_slots
        if not over and size.is_spare(vm) and clean - vm.slots < size.kept:
            continue
        if left - vm.slots >= size.target and (over or now - idle_since >= enough):
            close.append(vm.id)
            left -= vm.slots
            clean -= vm.slots if vm.key is None else 0
    drain: list[int] = []
    for vm in sorted(size.serving, key=lambda vm: (vm.busy_slots, -vm.id)):
        if left > size.elastic.maximum_total_slots and vm.id not in close:
            drain.append(vm.id)
            left -= vm.slots
    todo = [f"closing {len(close)} idle VMs"] if close else []
    todo += [f"draining {len(drain)} VMs over the maximum"] if drain else []
    reason = " and ".join(todo) or "no VM may go yet, as none has been wholly idle long enough"
    return size.decision(reason, close_vm_ids=tuple(close), drain_vm_ids=tuple(drain))
