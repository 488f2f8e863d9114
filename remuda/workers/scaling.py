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

from remuda.policies import ElasticSettings
from remuda.workers.packing import Packing, Room, pack
from remuda.workers.pool_snapshot import PoolSnapshot, VmSlots

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


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in words, and everything it was decided from.

    `step`: its kind, a word of STEPS. `target` and `alive` are slots. `drain_vm_ids`: VMs over the
    maximum that are at work; they take no more and are closed when done. `replace_vm_ids`: idle VMs
    bound to somebody who has no work for them, to be closed so that others can be made. `frozen`:
    too little was known to decide. `short_vms`: what its work needs, and others keep from it.
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
    step: str = "steady"
    policy: str = ""
    short_vms: int = 0


STEPS = frozenset(
    {
        "state",  # the pool's state lets nothing be done
        "frozen",  # the provider's answer is missing
        "early",  # the pool's period is not over
        "grow",
        "shrink",  # VMs are closed or drained
        "replace",
        "paused",  # no VM is asked for after failures
        "stopped",  # no VM is asked for at all
        "maximum",
        "ceiling",  # a limit over several pools
        "idle",  # there is too much, and none may go yet
        "steady",
    }
)


def decide(snapshot: PoolSnapshot, now: datetime) -> Decision:
    """Return the next step of the pool's size; carried out, it is safe to ask again at once."""
    size = _Size(snapshot)
    if snapshot.state not in SIZED_STATES:
        return size.decision(f"no change while the pool is {snapshot.state}", step="state")
    if not snapshot.provider_known:
        reason = "no change while the provider's answer is missing or not credible"
        return size.decision(reason, step="frozen", frozen=True)
    due = due_at(snapshot)
    if due is not None and now < due:
        if not snapshot.short_slots or size.target <= size.alive:
            wait_s = (due - now).total_seconds()
            return size.decision(f"no change until the next resize in {wait_s:.1f} s", step="early")
        size.step = min(size.step, snapshot.short_slots)  # the rest of the last one
    if size.target > size.alive:
        return _grow(size, snapshot, now)
    if size.target < size.alive:
        return _shrink(size, snapshot, now)
    return _replace(size, snapshot, now) or size.decision("as it should be")


def due_at(snapshot: PoolSnapshot) -> datetime | None:
    """Return when the size may be changed again; None: at once."""
    if snapshot.elastic is None or snapshot.last_resize_at is None or snapshot.policy_changed:
        return None
    return snapshot.last_resize_at + timedelta(seconds=snapshot.elastic.resize_period)


class _Size:
    """The pool's slots counted: what is there and what there should be."""

    def __init__(self, snapshot: PoolSnapshot) -> None:
        self.policy = snapshot.policy
        self.ceiling = snapshot.ceiling
        self.elastic = snapshot.elastic or _fixed(snapshot.instance_count * snapshot.slots_per_vm)
        self.isolated = snapshot.isolation != "shared"
        self.serving = [vm for vm in snapshot.vms if not vm.draining]
        self.alive = sum(vm.slots for vm in self.serving)
        self.busy = sum(vm.busy_slots for vm in self.serving)
        self.draining = sum(vm.slots for vm in snapshot.vms if vm.draining)
        self.stopped = snapshot.stopped
        # What is not to be placed keeps no VM waiting for it.
        queued = 0 if self.stopped else snapshot.queued_slots
        wanted = self.busy + queued + self.elastic.minimum_idle_slots
        self.packing = _packed(snapshot, self.serving)
        if (snapshot.demands and not self.stopped) or self.isolated:
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
            **({"policy": snapshot.policy} if snapshot.policy else {}),
            **(
                {"ceiling": self.ceiling.limit, "ceiling_room": self.ceiling.room}
                if self.ceiling is not None
                else {}
            ),
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

    @property
    def room(self) -> int:
        """Return how many slots more there may be.

        What drains still counts against the maximum: it is there, and paid for.
        """
        own = self.own_room
        return own if self.ceiling is None else min(own, self.ceiling.room)

    @property
    def own_room(self) -> int:
        """Return how many slots more the pool's own maximum allows."""
        return self.elastic.maximum_total_slots - self.alive - self.draining

    def short_vms(self, wanted_vms: int, grow_vms: int, slots_per_vm: int) -> int:
        """Return how many VMs what waits, or its minimum, needs beyond those it can have now.

        At most as many as it is to grow by. What is to be kept idle is no reason to take from others.
        """
        floor = -(-(self.elastic.minimum_total_slots - self.alive) // slots_per_vm)
        needed = min(wanted_vms, max(self.packing.fresh_vms, floor))
        return max(0, min(needed, self.own_room // slots_per_vm) - grow_vms)

    def decision(
        self,
        reason: str,
        *,
        step: str = "steady",
        grow_vms: int = 0,
        close_vm_ids: tuple[int, ...] = (),
        drain_vm_ids: tuple[int, ...] = (),
        replace_vm_ids: tuple[int, ...] = (),
        frozen: bool = False,
        short_vms: int = 0,
    ) -> Decision:
        whose = f"by policy {self.policy}: " if self.policy else ""
        facts = f"{whose}{self.busy} slots busy, {self.inputs['queued']} waited for"
        facts += f", not counted as {self.stopped}" if self.stopped else ""
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
            step=step,
            policy=self.policy,
            short_vms=short_vms,
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
    demands = () if snapshot.stopped else snapshot.demands
    return pack(demands, rooms, fresh=fresh, single_use=single_use)


def _fixed(slots: int) -> ElasticSettings:
    return ElasticSettings(minimum_total_slots=slots, maximum_total_slots=slots, resize_period=1)


def _grow(size: _Size, snapshot: PoolSnapshot, now: datetime) -> Decision:
    if snapshot.stopped:
        return size.decision("nothing is launched", step="stopped")
    step = max(
        min(size.target - size.alive, size.step), size.elastic.minimum_total_slots - size.alive
    )
    wanted_vms = -(-step // snapshot.slots_per_vm)
    if snapshot.paused_until is not None and now < snapshot.paused_until:
        pause_s = (snapshot.paused_until - now).total_seconds()
        failed = snapshot.launch_failures
        why = f"after {failed} failed launches" if failed else "as there is nothing to be had"
        short = 0
        if snapshot.shelf_full:
            short = size.short_vms(wanted_vms, 0, snapshot.slots_per_vm)
        return size.decision(f"no growth for {pause_s:.0f} s {why}", step="paused", short_vms=short)
    grow_vms = max(0, min(wanted_vms, size.room // snapshot.slots_per_vm))
    short = size.short_vms(wanted_vms, grow_vms, snapshot.slots_per_vm)
    if grow_vms:
        return size.decision(
            f"growing by {grow_vms} VMs", step="grow", grow_vms=grow_vms, short_vms=short
        )
    replacing = _replace(size, snapshot, now)
    if replacing is not None:
        return replacing
    return _at_limit(size, short)


def _at_limit(size: _Size, short_vms: int) -> Decision:
    """Say which limit it is that keeps the pool from growing."""
    ceiling = size.ceiling
    if ceiling is not None and size.room == ceiling.room:
        limit = f"{ceiling.name} of {ceiling.limit} slots over several pools"
        kept = f", {ceiling.kept} kept for others whose work goes first" if ceiling.kept else ""
        why = ceiling.why or f"{limit}, which has room for {max(0, size.room)} more{kept}"
        return size.decision(f"at {why}", step="ceiling", short_vms=short_vms)
    why = f"{size.draining} more are draining" if size.draining else "a VM more would be over it"
    return size.decision(
        f"at the maximum of {size.elastic.maximum_total_slots}, as {why}", step="maximum"
    )


def _replace(size: _Size, snapshot: PoolSnapshot, now: datetime) -> Decision | None:
    """Close idle VMs of others where their number is all that keeps work waiting."""
    paused = snapshot.paused_until is not None and now < snapshot.paused_until
    if not size.packing.fresh_vms or paused or snapshot.stopped:
        return None
    missing = size.packing.fresh_vms - max(0, size.room // snapshot.slots_per_vm)
    idle = sorted(
        ((vm.idle_since, vm.id) for vm in size.serving if vm.idle_since and size.is_foreign(vm)),
    )
    gone = tuple(vm_id for _, vm_id in idle[: max(0, missing)])
    if not gone:
        return None
    return size.decision(
        f"replacing {len(gone)} idle VMs, bound to owners without work, as there is room for no more",
        step="replace",
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
    return size.decision(
        reason,
        step="shrink" if todo else "idle",
        close_vm_ids=tuple(close),
        drain_vm_ids=tuple(drain),
    )
