"""Keep room for a wide job that would else wait behind narrow ones for ever; pure.

The VM on which it can start soonest takes nothing new but what does not delay it (backfill): jobs that
fit beside it, and jobs known to end in half the time until it starts. As no length is certain, that
half makes the delays such jobs may cause shrink from one to the next, so they add up to little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remuda.pending import PendingJob
    from remuda.workers.placement import VmCapacity

Key = tuple[int, str] | None  # whom a VM is bound to, None: nobody
Left = tuple[tuple[int, int], float]  # free slots and GPUs, free memory
_NOTHING: Left = ((0, 0), 0.0)


@dataclass(frozen=True, slots=True)
class Release:
    """What an attempt on a VM gives back in `in_s` seconds; None: nobody knows when."""

    in_s: float | None
    cores: int
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(slots=True)
class Reservation:
    """A VM kept for a job, which starts in `start_s` seconds as far as is known, with what is left.

    `bound`: whom the VM is bound to, `whom`: for whom it is kept; `spare`: slots and memory that
    the job will not need.
    """

    vm_id: int
    bound: Key
    whom: Key
    start_s: float
    free_slots: int
    free_memory: float
    spare_slots: int
    spare_memory: float

    def take(self, job: PendingJob, mine: Key, allowed: frozenset[int] | None) -> bool:
        """Give the job free slots if that does not delay whom the VM is kept for."""
        if mine != self.whom or job.gpus or (allowed is not None and self.vm_id not in allowed):
            return False
        if job.cores > self.free_slots or job.memory_bytes > self.free_memory:
            return False
        wall_s = job.expected_wall_s
        if wall_s is None or math.isinf(self.start_s) or 2 * wall_s > self.start_s:
            if job.cores > self.spare_slots or job.memory_bytes > self.spare_memory:
                return False
            self.spare_slots -= job.cores
            self.spare_memory -= job.memory_bytes
        self.free_slots -= job.cores
        self.free_memory -= job.memory_bytes
        return True


def soonest(
    job: PendingJob, vms: Sequence[VmCapacity], left: Mapping[int, tuple[Key, Left | None]]
) -> Reservation | None:
    """Return a reservation of the VM that has room for the job first; None if none ever has.

    `left`: by VM whom it is bound to and what is free of it. Of those of which nobody knows when
    they will have room the one that lacks least comes first; it only comes nearer.
    """
    best: tuple[tuple[float, int, int], Reservation] | None = None
    for vm in vms:
        bound, free = left[vm.id]
        found = _on(job, vm, free or _NOTHING)
        if found is not None:
            start_s, lacks, spare_slots, spare_memory = found
            order = (start_s, lacks, vm.id)
            if best is None or order < best[0]:
                whom = None if vm.isolation == "shared" else _whom(job, vm)
                (slots, _), memory = free or _NOTHING
                best = (
                    order,
                    Reservation(
                        vm.id, bound, whom, start_s, slots, memory, spare_slots, spare_memory
                    ),
                )
    return None if best is None else best[1]


def _whom(job: PendingJob, vm: VmCapacity) -> Key:
    return job.owner_id, "" if vm.isolation == "owner" else job.sandbox


def _on(job: PendingJob, vm: VmCapacity, free: Left) -> tuple[float, int, int, float] | None:
    """Return when the job can start there, the slots it lacks now, and what it leaves then."""
    (slots, gpus), memory = free
    lacks = max(0, job.cores - slots)
    start_s = 0.0
    coming = sorted(vm.releases, key=lambda r: math.inf if r.in_s is None else r.in_s)
    for release in coming:
        if slots >= job.cores and memory >= job.memory_bytes and gpus >= job.gpus:
            break
        start_s = math.inf if release.in_s is None else release.in_s
        slots += release.cores
        memory += release.memory_bytes
        gpus += release.gpus
    if slots < job.cores or memory < job.memory_bytes or gpus < job.gpus:
        return None
    return start_s, lacks, slots - job.cores, memory - job.memory_bytes
