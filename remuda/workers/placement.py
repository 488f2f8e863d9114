"""Which job goes to which VM: a pure function of what waits and what is free.

Jobs are served by priority, then age. Each goes to the first of its pools with room for it, there to
the VM it fills best; a short one that finds no free slots may be placed ahead: it waits in a VM's own
queue, so that no slot idles for a round trip. A job that fits nowhere is passed over and holds up
nobody. See docs/requirements.md for what is matched.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heappop, heappush
from typing import Any

from remuda.constraints import Hardware, unmet

Key = tuple[int, str] | None  # whom a VM is bound to, None: nobody
SHARED, OWNER, SINGLE_USE = "shared", "owner", "single_use"
_UNKNOWN = Hardware()


@dataclass(frozen=True, slots=True)
class PendingJob:
    """A waiting job. `memory_bytes` 0: none asked; `expected_wall_s` None: not known yet.

    `pool_ids`: all pools it may go to, in order of preference; none: just `pool_id`.
    """

    id: int
    pool_id: int
    owner_id: int
    priority: int
    submitted_at: datetime
    cores: int
    memory_bytes: int
    expected_wall_s: float | None
    gpus: int = 0
    architecture: str | None = None
    constraints: Mapping[str, Any] | None = None
    sandbox: str = ""
    array_id: int | None = None
    pool_ids: Sequence[int] = ()
    displaced: bool = False  # its VM was taken away: first of its priority


@dataclass(frozen=True, slots=True)
class VmCapacity:
    """What a running VM has and has left. Memory None: not limited.

    `backlog_s` is the expected slot-seconds of its attempts that are placed but not started,
    `backlog_count` their number. `isolation` is its pool's; where that is not `shared` the VM may be
    bound: it then serves that owner (and sandbox) alone. `ahead_slots` and
    `ahead_memory_bytes` are what is free or soon will be: jobs are placed ahead of that. None: all.
    """

    id: int
    pool_id: int
    slots: int
    memory_bytes: int | None
    free_slots: int
    free_memory_bytes: int | None
    backlog_s: float
    backlog_count: int
    free_gpus: int = 0
    hardware: Hardware = _UNKNOWN
    isolation: str = SHARED
    bound_owner_id: int | None = None
    bound_sandbox: str | None = None
    ahead_slots: int | None = None
    ahead_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlacementSnapshot:
    """Everything the decision is made of.

    A VM gets work ahead while its backlog is below `horizon_s` seconds a slot and `max_ahead`
    attempts; jobs longer than the horizon, of unknown length, or with GPUs are never placed ahead.
    `array_room`: how many more jobs of an array may be on machines, for those that have a limit.
    """

    jobs: tuple[PendingJob, ...]
    vms: tuple[VmCapacity, ...]
    horizon_s: float
    max_ahead: int
    array_room: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """A job goes to a VM: into free slots, or `ahead` into its queue."""

    job_id: int
    vm_id: int
    ahead: bool


def place(snapshot: PlacementSnapshot, now: datetime) -> list[Placement]:
    """Return the placements in the order of the jobs; the same snapshot gives the same answer.

    Free slots, memory and GPUs are never given out twice, and a VM that is bound, or becomes so by
    a placement, gets no job of anybody else. `now` is the snapshot's time; the present rules order
    by age and so do not depend on it.
    """
    del now
    of_pool: dict[int, list[VmCapacity]] = defaultdict(list)
    for vm in snapshot.vms:
        of_pool[vm.pool_id].append(vm)
    pools = {
        pool: _Pool(vms, horizon_s=snapshot.horizon_s, max_ahead=snapshot.max_ahead)
        for pool, vms in of_pool.items()
    }
    array_room = dict(snapshot.array_room)
    placements = []
    for job in sorted(snapshot.jobs, key=_order):
        limited = job.array_id in array_room
        if limited and array_room[job.array_id] <= 0:  # type: ignore[index]
            continue
        found = _place_one(job, pools)
        if found is not None:
            placements.append(found)
            if limited:
                array_room[job.array_id] -= 1  # type: ignore[index]
    return placements


def _order(job: PendingJob) -> tuple[int, bool, datetime, int]:
    return -job.priority, not job.displaced, job.submitted_at, job.id


def _place_one(job: PendingJob, pools: Mapping[int, _Pool]) -> Placement | None:
    open_to_it = [pools[pool] for pool in job.pool_ids or (job.pool_id,) if pool in pools]
    for pool in open_to_it:
        vm_id = pool.take_free(job)
        if vm_id is not None:
            return Placement(job.id, vm_id, ahead=False)
    for pool in open_to_it:
        vm_id = pool.take_ahead(job)
        if vm_id is not None:
            return Placement(job.id, vm_id, ahead=True)
    return None


def binding(isolation: str, owner_id: int | None, sandbox: str | None) -> Key:
    """Return what tells whom a VM serves, and whom a job may share one with, under an isolation."""
    if isolation == SHARED or owner_id is None:
        return None
    return owner_id, "" if isolation == OWNER else sandbox or ""


class _Pool:
    """The VMs of one pool by whom they are bound to: their free slots and their queues."""

    def __init__(self, vms: Sequence[VmCapacity], *, horizon_s: float, max_ahead: int) -> None:
        self._isolation = vms[0].isolation
        self._vms = vms
        self._fitting: dict[tuple[Any, ...], frozenset[int] | None] = {}
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

    def take_free(self, job: PendingJob) -> int | None:
        """Give the job free slots: of a VM bound to its owner or sandbox first."""
        allowed = self._allowed(job)
        if allowed is not None and not allowed:
            return None
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

    def take_ahead(self, job: PendingJob) -> int | None:
        """Give the job a place in the shortest queue of those it can ever fit."""
        mine = binding(self._isolation, job.owner_id, job.sandbox)
        if mine not in self._queues or job.gpus:
            return None
        allowed = self._allowed(job)
        if allowed is not None and not allowed:
            return None
        vm_id = self._queues[mine].take(job, allowed)
        if vm_id is not None:
            # A queue is first in, first out: what came now would wait behind this job.
            self._free[mine].close(vm_id)
        return vm_id

    def _allowed(self, job: PendingJob) -> frozenset[int] | None:
        """Return the VMs that are what the job asks for; None: any of them."""
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

    def _is_open(self, backlog_s: float, count: int) -> bool:
        return backlog_s < self._horizon_s and count < self._max_ahead


def _shortest(heap: Sequence[Entry], allowed: frozenset[int] | None) -> Entry | None:
    if allowed is None or heap[0][1] in allowed:
        return heap[0]
    return min((entry for entry in heap if entry[1] in allowed), default=None)
