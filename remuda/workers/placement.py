"""Which job goes to which VM: a pure function of what waits and what is free.

Jobs are served by priority, then age. Each goes to the VM of its pool it fills best; a short one
that finds no free slots may be placed ahead: it waits in a VM's own queue, so that no slot idles
for a round trip. A job that fits nowhere is passed over and holds up nobody.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True)
class PendingJob:
    """A waiting job. `memory_bytes` 0: none asked; `expected_wall_s` None: not known yet."""

    id: int
    pool_id: int
    owner_id: int
    priority: int
    submitted_at: datetime
    cores: int
    memory_bytes: int
    expected_wall_s: float | None


@dataclass(frozen=True, slots=True)
class VmCapacity:
    """What a running VM has and has left. Memory None: not limited.

    `backlog_s` is the expected slot-seconds of its attempts that are placed but not started,
    `backlog_count` their number.
    """

    id: int
    pool_id: int
    slots: int
    memory_bytes: int | None
    free_slots: int
    free_memory_bytes: int | None
    backlog_s: float
    backlog_count: int


@dataclass(frozen=True, slots=True)
class PlacementSnapshot:
    """Everything the decision is made of.

    A VM gets work ahead while its backlog is below `horizon_s` seconds a slot and `max_ahead`
    attempts; jobs longer than the horizon, or of unknown length, are never placed ahead.
    """

    jobs: tuple[PendingJob, ...]
    vms: tuple[VmCapacity, ...]
    horizon_s: float
    max_ahead: int


@dataclass(frozen=True, slots=True)
class Placement:
    """A job goes to a VM: into free slots, or `ahead` into its queue."""

    job_id: int
    vm_id: int
    ahead: bool


def place(snapshot: PlacementSnapshot, now: datetime) -> list[Placement]:
    """Return the placements in the order of the jobs; the same snapshot gives the same answer.

    Free slots and memory are never given out twice. `now` is the snapshot's time; the present
    rules order by age and so do not depend on it.
    """
    del now
    of_pool: dict[int, list[VmCapacity]] = defaultdict(list)
    for vm in snapshot.vms:
        of_pool[vm.pool_id].append(vm)
    free = {pool: _FreeSlots(vms) for pool, vms in of_pool.items()}
    queues = {
        pool: _Queues(vms, horizon_s=snapshot.horizon_s, max_ahead=snapshot.max_ahead)
        for pool, vms in of_pool.items()
    }
    placements = []
    for job in sorted(snapshot.jobs, key=lambda job: (-job.priority, job.submitted_at, job.id)):
        if job.pool_id not in free:
            continue
        here = free[job.pool_id]
        vm_id = here.take(job.cores, job.memory_bytes)
        if vm_id is not None:
            placements.append(Placement(job.id, vm_id, ahead=False))
            continue
        vm_id = queues[job.pool_id].take(job)
        if vm_id is not None:
            # A queue is first in, first out: what came now would wait behind this job.
            here.close(vm_id)
            placements.append(Placement(job.id, vm_id, ahead=True))
    return placements


def _limit(memory_bytes: int | None) -> float:
    return math.inf if memory_bytes is None else memory_bytes


class _FreeSlots:
    """The VMs of a pool by what they have free, so that the best fit is found by bisection."""

    def __init__(self, vms: Iterable[VmCapacity]) -> None:
        self._buckets: dict[int, list[tuple[float, int]]] = {}  # free slots: (free memory, VM id)
        self._sizes: list[int] = []  # the keys, ascending
        self._of_vm: dict[int, tuple[int, float]] = {}
        for vm in vms:
            self._put(vm.id, min(vm.free_slots, vm.slots), _limit(vm.free_memory_bytes))

    def take(self, cores: int, memory_bytes: int) -> int | None:
        """Take them from the VM with the least slots, then the least memory, left after it."""
        for place in range(bisect_left(self._sizes, cores), len(self._sizes)):
            size = self._sizes[place]
            bucket = self._buckets[size]
            if bucket[-1][0] >= memory_bytes:
                memory, vm_id = bucket[bisect_left(bucket, (memory_bytes, 0))]
                self.close(vm_id)
                self._put(vm_id, size - cores, memory - memory_bytes)
                return vm_id
        return None

    def close(self, vm_id: int) -> None:
        """Give out no more of this VM's free slots."""
        if vm_id not in self._of_vm:
            return
        size, memory = self._of_vm.pop(vm_id)
        bucket = self._buckets[size]
        del bucket[bisect_left(bucket, (memory, vm_id))]
        if not bucket:
            del self._buckets[size]
            del self._sizes[bisect_left(self._sizes, size)]

    def _put(self, vm_id: int, size: int, memory: float) -> None:
        if size <= 0:
            return
        if size not in self._buckets:
            self._buckets[size] = []
            insort(self._sizes, size)
        insort(self._buckets[size], (memory, vm_id))
        self._of_vm[vm_id] = (size, memory)


class _Queues:
    """The queues of a pool's VMs, those of equal machines in one heap, the shortest first."""

    def __init__(self, vms: Iterable[VmCapacity], *, horizon_s: float, max_ahead: int) -> None:
        self._horizon_s = horizon_s
        self._max_ahead = max_ahead
        # (slots, memory) of the machine: (backlog in seconds a slot, VM id, backlog count)
        self._heaps: dict[tuple[int, float], list[tuple[float, int, int]]] = defaultdict(list)
        for vm in vms:
            if vm.slots > 0 and self._is_open(vm.backlog_s / vm.slots, vm.backlog_count):
                entry = (vm.backlog_s / vm.slots, vm.id, vm.backlog_count)
                self._heaps[vm.slots, _limit(vm.memory_bytes)].append(entry)
        for heap in self._heaps.values():
            heapify(heap)

    def take(self, job: PendingJob) -> int | None:
        """Queue the job on the VM with the least backlog that it can ever fit."""
        wall_s = job.expected_wall_s
        if wall_s is None or wall_s > self._horizon_s:
            return None
        fitting = [
            (heap[0], machine)
            for machine, heap in self._heaps.items()
            if machine[0] >= job.cores and machine[1] >= job.memory_bytes
        ]
        if not fitting:
            return None
        (backlog_s, vm_id, count), machine = min(fitting)
        heap = self._heaps[machine]
        heappop(heap)
        backlog_s += job.cores * wall_s / machine[0]
        if self._is_open(backlog_s, count + 1):
            heappush(heap, (backlog_s, vm_id, count + 1))
        elif not heap:
            del self._heaps[machine]
        return vm_id

    def _is_open(self, backlog_s: float, count: int) -> bool:
        return backlog_s < self._horizon_s and count < self._max_ahead
