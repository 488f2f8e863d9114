"""Which job goes to which VM: a pure function of what waits and what is free.

Jobs are served by priority, then fair share, then age. Each goes to the first of its pools with room
for it, there to the VM it fills best; a short one that finds no free slots may be placed ahead: it
waits in a VM's own queue, so that no slot idles for a round trip. A job that fits nowhere is passed
over; if it has waited for long a VM is kept for it. See docs/requirements.md for what is matched,
docs/fairness.md for whose turn it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from remuda.constraints import Hardware
from remuda.fairness import UNKNOWN_WALL_S, FairShares, Ledger, in_fair_order
from remuda.owned_vms import OwnedVms
from remuda.pending import PendingJob
from remuda.workers.allowances import Allowances, QuotaKey
from remuda.workers.cuts import Cuts
from remuda.workers.reserving import Release
from remuda.workers.rooms import OWNER, SHARED, SINGLE_USE, PoolRooms, binding

__all__ = [
    "OWNER",
    "SHARED",
    "SINGLE_USE",
    "PendingJob",
    "Placement",
    "PlacementSnapshot",
    "Release",
    "VmCapacity",
    "binding",
    "place",
]

_UNKNOWN = Hardware()


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
    releases: Sequence[Release] = ()  # what its attempts give back, the oldest first


@dataclass(frozen=True, slots=True)
class PlacementSnapshot:
    """Everything the decision is made of.

    A VM gets work ahead while its backlog is below `horizon_s` seconds a slot and `max_ahead`
    attempts; jobs longer than the horizon, of unknown length, or with GPUs are never placed ahead.
    `array_room`: how many more jobs of an array may be on machines, for those that have a limit.
    `quota_room`: how many more slots owners and groups may have, in a pool or (None) in all, `group_of`
    the groups of those with quotas. `owned`: how many more VMs owners may have. `stopped`: (owner, pool)
    that get nothing.
    `cut`: of which (pool, owner) there may be more jobs, which come after those that are here; where
    these run out nothing is placed any more, as one of the others might come next.
    """

    jobs: tuple[PendingJob, ...]
    vms: tuple[VmCapacity, ...]
    horizon_s: float
    max_ahead: int
    array_room: Mapping[int, int] = field(default_factory=dict)
    shares: FairShares = field(default_factory=FairShares)
    quota_room: Mapping[QuotaKey, int] = field(default_factory=dict)
    group_of: Mapping[int, int] = field(default_factory=dict)
    cut: frozenset[tuple[int, int]] = frozenset()
    owned: OwnedVms = field(default_factory=OwnedVms)
    stopped: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """A job goes to a VM: into free slots, or `ahead` into its queue."""

    job_id: int
    vm_id: int
    ahead: bool


def place(snapshot: PlacementSnapshot, now: datetime) -> list[Placement]:
    """Return the placements in the order of the jobs; the same snapshot gives the same answer.

    Free slots, memory and GPUs are never given out twice, no limit is exceeded, and a VM that is
    bound, or becomes so by a placement, gets no job of anybody else. `now` is the snapshot's time;
    the present rules order by age and so do not depend on it.
    """
    del now
    of_pool: dict[int, list[VmCapacity]] = defaultdict(list)
    for vm in snapshot.vms:
        of_pool[vm.pool_id].append(vm)
    pools = {
        pool: PoolRooms(vms, horizon_s=snapshot.horizon_s, max_ahead=snapshot.max_ahead)
        for pool, vms in of_pool.items()
    }
    ledger = Ledger(snapshot.shares)
    allowances = Allowances(
        snapshot.array_room, snapshot.quota_room, snapshot.group_of, snapshot.stopped
    )
    owned = snapshot.owned.copy()
    cuts = Cuts(snapshot.jobs, snapshot.cut, ledger)
    placements = []
    for job in in_fair_order(snapshot.jobs, ledger):
        cuts.turn(job)
        open_to_it = cuts.still_open([p for p in allowances.pools(job) if p in pools])
        if job.reserves:
            any(pools[pool].reserve(job, owned.only(job.owner_id, pool)) for pool in open_to_it)
            continue
        found = _place_one(job, open_to_it, pools, owned)
        if found is not None:
            placement, pool_id = found
            placements.append(placement)
            allowances.take(job, pool_id)
            owned.take(job.owner_id, pool_id, placement.vm_id)
            wall_s = UNKNOWN_WALL_S if job.expected_wall_s is None else job.expected_wall_s
            ledger.charge(job.owner_id, job.cores * wall_s)
            cuts.seen(job, pool_id)
        else:
            cuts.seen(job, None)
    return placements


def _place_one(
    job: PendingJob,
    open_to_it: Sequence[int],
    pools: Mapping[int, PoolRooms],
    owned: OwnedVms,
) -> tuple[Placement, int] | None:
    # An owner with a limit of VMs fills those it has first, then those its group has.
    for ahead in (False, True):
        for pool in open_to_it:
            take = pools[pool].take_ahead if ahead else pools[pool].take_free
            for only in owned.choices(job.owner_id, pool):
                vm_id = take(job, only)
                if vm_id is not None:
                    return Placement(job.id, vm_id, ahead=ahead), pool
    return None
