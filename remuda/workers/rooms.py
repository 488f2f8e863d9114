"""What VMs of a pool have free, and their queues, while a decision gives it out."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from remuda.constraints import unmet
from remuda.workers.reserving import Reservation, soonest

if TYPE_CHECKING:
    from remuda.pending import PendingJob
    from remuda.workers.placement import VmCapacity

Key = tuple[int, str] | None  # whom a VM is bound to, None: nobody
SHARED, OWNER, SINGLE_USE = "shared", "owner", "single_use"


def binding(isolation: str, owner_id: int | None, sandbox: str | None) -> Key:
    """Return what tells whom a VM serves, and whom a job may share one with, under an isolation."""
    if isolation == SHARED or owner_id is None:
        return None
    return owner_id, "" if isolation == OWNER else sandbox or ""


class PoolRooms:
    """The VMs of one pool by whom they are bound to: their free slots and their queues."""

    def __init__(self, vms: Sequence[VmCapacity], *, horizon_s: float, max_ahead: int) -> None:
        self._isolation = vms[0].isolation
        self._vms = vms
        self._fitting: dict[tuple[Any, ...], frozenset[int] | None] = {}
        self._reservation: Reservation | None = None
        of_key: dict[Key, list[VmCapacity]] = defaultdict(list)
        for vm in vms:
            key = binding(self._isolation, vm.bound_owner_id, vm.bound_sandbox)
            if key is None or self._isolation != SINGLE_USE:  # one use is over for good
                of_key[key].append(vm)
        self._free = {key: _FreeSlots(some) for key, some in of_key.items()}
        self._queues = {
            key: _Queues(some, horizon_s=horizon_s, max_ahead=max_ahead)
            for key, some in of_key.items()
            # A VM nobody uses has nothing to queue behind.
            if key is not None or self._isolation == SHARED
        }

    def take_free(self, job: PendingJob, only: Collection[int] | None = None) -> int | None:
        """Give the job free slots: of a VM bound to its owner or sandbox first, reserved ones last.

        `only`: of one of these VMs.
        """
        allowed = self._allowed(job, only)
        if allowed is not None and not allowed:
            return None
        vm_id = self._take_unreserved(job, allowed)
        if vm_id is None and self._reservation is not None:
            mine = binding(self._isolation, job.owner_id, job.sandbox)
            if self._reservation.take(job, mine, allowed):
                return self._reservation.vm_id
        return vm_id

    def _take_unreserved(self, job: PendingJob, allowed: frozenset[int] | None) -> int | None:
        wanted = (job.cores, job.memory_bytes, job.gpus, allowed)
        mine = binding(self._isolation, job.owner_id, job.sandbox)
        if mine is not None and mine in self._free:
            vm_id = self._free[mine].take(*wanted)
            if vm_id is not None:
                return vm_id
        if None not in self._free:
            return None
        vm_id = self._free[None].take(*wanted)
        if vm_id is not None and mine is not None:
            left = self._free[None].close(vm_id)
            if left is not None and self._isolation != SINGLE_USE:
                self._free.setdefault(mine, _FreeSlots(())).put(vm_id, *left)
        return vm_id

    def take_ahead(self, job: PendingJob, only: Collection[int] | None = None) -> int | None:
        """Give the job a place in the shortest queue of those it can ever fit, of `only` these VMs."""
        mine = binding(self._isolation, job.owner_id, job.sandbox)
        if mine not in self._queues or job.gpus:
            return None
        allowed = self._allowed(job, only)
        if allowed is not None and not allowed:
            return None
        vm_id = self._queues[mine].take(job, allowed)
        if vm_id is not None:
            # A queue is first in, first out: what came now would wait behind this job.
            self._free[mine].close(vm_id)
        return vm_id

    def reserve(self, job: PendingJob, only: Collection[int] | None = None) -> bool:
        """Keep the VM on which it can start soonest for a job that found no room, if it is the first.

        `only`: one of these.
        """
        if self._reservation is not None or self._isolation == SINGLE_USE:
            return False
        mine = binding(self._isolation, job.owner_id, job.sandbox)
        allowed = self._allowed(job, only)
        left = {
            vm.id: (key, self._free[key].left(vm.id))
            for vm in self._vms
            for key in {mine, None}
            if key in self._free
            and binding(self._isolation, vm.bound_owner_id, vm.bound_sandbox) == key
            and (allowed is None or vm.id in allowed)
        }
        found = soonest(job, [vm for vm in self._vms if vm.id in left], left)
        if found is None:
            return False
        self._reservation = found
        self._free[found.bound].close(found.vm_id)
        if found.bound in self._queues:
            self._queues[found.bound].close(found.vm_id)
        return True

    def _allowed(self, job: PendingJob, only: Collection[int] | None) -> frozenset[int] | None:
        """Return the VMs (of `only` these) that are what the job asks for; None: any of them."""
        fitting = self._fitting_vms(job)
        if only is None:
            return fitting
        return frozenset(only) if fitting is None else fitting.intersection(only)

    def _fitting_vms(self, job: PendingJob) -> frozenset[int] | None:
        if job.architecture is None and not job.constraints:
            return None
        needs = (job.architecture, *sorted((job.constraints or {}).items()))
        if needs not in self._fitting:
            found = frozenset(
                vm.id
                for vm in self._vms
                if not unmet(
                    vm.hardware, architecture=job.architecture, constraints=job.constraints
                )
            )
            self._fitting[needs] = None if len(found) == len(self._vms) else found
        return self._fitting[needs]


def _limit(memory_bytes: int | None) -> float:
    return math.inf if memory_bytes is None else memory_bytes


Size = tuple[int, int]  # free slots, free GPUs


class _FreeSlots:
    """Some VMs by what they have free, so that the best fit is found by bisection."""

    def __init__(self, vms: Iterable[VmCapacity]) -> None:
        self._buckets: dict[Size, list[tuple[float, int]]] = {}  # (free memory, VM id)
        self._sizes: list[Size] = []  # the keys, ascending
        self._of_vm: dict[int, tuple[Size, float]] = {}
        for vm in vms:
            size = (min(vm.free_slots, vm.slots), max(0, vm.free_gpus))
            self.put(vm.id, size, _limit(vm.free_memory_bytes))

    def take(
        self, cores: int, memory_bytes: int, gpus: int, allowed: frozenset[int] | None
    ) -> int | None:
        """Take them from the VM with the least slots, then GPUs, then memory left after it."""
        for place in range(bisect_left(self._sizes, (cores, gpus)), len(self._sizes)):
            size = self._sizes[place]
            bucket = self._buckets[size]
            if size[1] < gpus or bucket[-1][0] < memory_bytes:
                continue
            found = self._best(bucket, memory_bytes, allowed)
            if found is not None:
                memory, vm_id = found
                self.close(vm_id)
                self.put(vm_id, (size[0] - cores, size[1] - gpus), memory - memory_bytes)
                return vm_id
        return None

    @staticmethod
    def _best(
        bucket: Sequence[tuple[float, int]], memory_bytes: int, allowed: frozenset[int] | None
    ) -> tuple[float, int] | None:
        first = bisect_left(bucket, (memory_bytes, 0))
        if allowed is None:
            return bucket[first]
        for place in range(first, len(bucket)):
            if bucket[place][1] in allowed:
                return bucket[place]
        return None

    def close(self, vm_id: int) -> tuple[Size, float] | None:
        """Give out no more of this VM's free slots; return what it had left, if anything."""
        left = self._of_vm.pop(vm_id, None)
        if left is None:
            return None
        size, memory = left
        bucket = self._buckets[size]
        del bucket[bisect_left(bucket, (memory, vm_id))]
        if not bucket:
            del self._buckets[size]
            del self._sizes[bisect_left(self._sizes, size)]
        return left

    def left(self, vm_id: int) -> tuple[Size, float] | None:
        """Return what may still be given out of this VM; None: nothing."""
        return self._of_vm.get(vm_id)

    def put(self, vm_id: int, size: Size, memory: float) -> None:
        """Give out what this VM has left, if it has any slots."""
        if size[0] <= 0:
            return
        if size not in self._buckets:
            self._buckets[size] = []
            insort(self._sizes, size)
        insort(self._buckets[size], (memory, vm_id))
        self._of_vm[vm_id] = (size, memory)


Entry = tuple[float, int, int]  # backlog in seconds a slot, VM id, backlog count


class _Queues:
    """The queues of some VMs, those of equal machines in one heap, the shortest first."""

    def __init__(self, vms: Iterable[VmCapacity], *, horizon_s: float, max_ahead: int) -> None:
        self._horizon_s = horizon_s
        self._max_ahead = max_ahead
        self._heaps: dict[tuple[int, float], list[Entry]] = defaultdict(list)
        for vm in vms:
            slots = vm.slots if vm.ahead_slots is None else vm.ahead_slots
            if slots > 0 and self._is_open(vm.backlog_s / slots, vm.backlog_count):
                entry = (vm.backlog_s / slots, vm.id, vm.backlog_count)
                memory = vm.memory_bytes if vm.ahead_memory_bytes is None else vm.ahead_memory_bytes
                self._heaps[slots, _limit(memory)].append(entry)
        for heap in self._heaps.values():
            heapify(heap)

    def take(self, job: PendingJob, allowed: frozenset[int] | None) -> int | None:
        """Queue the job on the VM with the least backlog that it can ever fit."""
        wall_s = job.expected_wall_s
        if wall_s is None or wall_s > self._horizon_s:
            return None
        fitting = [
            (entry, machine)
            for machine, heap in self._heaps.items()
            if machine[0] >= job.cores and machine[1] >= job.memory_bytes
            if (entry := _shortest(heap, allowed)) is not None
        ]
        if not fitting:
            return None
        entry, machine = min(fitting)
        heap = self._heaps[machine]
        if entry is heap[0]:
            heappop(heap)
        else:
            heap.remove(entry)
            heapify(heap)
        backlog_s, vm_id, count = entry[0] + job.cores * wall_s / machine[0], entry[1], entry[2] + 1
        if self._is_open(backlog_s, count):
            heappush(heap, (backlog_s, vm_id, count))
        elif not heap:
            del self._heaps[machine]
        return vm_id

    def close(self, vm_id: int) -> None:
        """Queue no more on this VM."""
        for machine, heap in list(self._heaps.items()):
            kept = [entry for entry in heap if entry[1] != vm_id]
            if len(kept) < len(heap):
                heapify(kept)
                self._heaps[machine] = kept
            if not kept:
                del self._heaps[machine]

    def _is_open(self, backlog_s: float, count: int) -> bool:
        return backlog_s < self._horizon_s and count < self._max_ahead


def _shortest(heap: Sequence[Entry], allowed: frozenset[int] | None) -> Entry | None:
    if allowed is None or heap[0][1] in allowed:
        return heap[0]
    return min((entry for entry in heap if entry[1] in allowed), default=None)
