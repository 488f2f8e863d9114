"""Which waiting request for a lease gets which VM: a pure function of what waits and what is there.

Requests are served by priority, then in the order in which they came. Each goes through its pools
in their order; in a pool a VM that already serves its owner and sandbox comes first, then a clean
one, if the owner may have more VMs. What is not served gets a reason, which changes only when the
matter does.

What asks for much would wait for ever while others take each slot that comes free. Once it has waited
for long the VM that lacks least for it is kept for it: nothing new goes there, so it only comes
nearer. One VM of a pool is kept at a time, for the first such request in the order above.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Allowance", "Grant", "Kept", "LeaseSnapshot", "LeaseVm", "Matching", "Request", "match"]

SHARED, OWNER, SINGLE_USE = "shared", "owner", "single_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Somebody waits for `slots` of a VM (None: a whole one) of `pool_ids`, in their order.

    `reserves`: it has waited for so long that a VM is to be kept for it, if it needs more than a slot.
    """

    id: int
    pool_ids: tuple[int, ...]
    owner_id: int
    sandbox: str = ""
    slots: int | None = 1
    priority: int = 0
    reserves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseVm:
    """A running VM. `unfit`: why it may not be leased, in words; empty: it may.

    `holders`: the owners with a lease or jobs on it now; `last`: whose the last one was, with sandbox.
    """

    id: int
    pool_id: int
    slots: int
    used_slots: int = 0
    isolation: str = SHARED
    bound_owner_id: int | None = None
    bound_sandbox: str | None = None
    holders: frozenset[int] = frozenset()
    last: tuple[int, str] | None = None
    unfit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How many VMs an owner may have in all and in a pool that says so, and has, in every state.

    `most` None: any number. `pools`: (most, has) of each pool with a limit of its own; `own`: where
    that is the owner's, not everybody's.
    """

    name: str = ""
    most: int | None = None
    has: int = 0
    pools: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    own: frozenset[int] = frozenset()

    def word(self, pool_id: int) -> str:
        """Return what the limit in a pool is called."""
        return "max_vms in the pool" if pool_id in self.own else "max_vms_per_owner"


@dataclass(frozen=True, slots=True)
class Kept:
    """A VM that is kept for a request; `more`: it is one that its owner does not have yet."""

    vm_id: int
    pool_id: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSnapshot:
    """What waits and what is there; `pools`: the names of those that are open, by id.

    `kept`: which VM to keep for which request, where that is decided already. `stopped_owners`,
    `stopped_pools`: those that get, or give, nothing now, with why: what they may spend is spent.
    """

    requests: tuple[Request, ...]
    vms: tuple[LeaseVm, ...]
    pools: Mapping[int, str]
    allowances: Mapping[int, Allowance] = field(default_factory=dict)
    kept: Mapping[int, Kept] | None = None
    stopped_owners: Mapping[int, str] = field(default_factory=dict)
    stopped_pools: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """A request gets `slots` of a VM."""

    request_id: int
    vm_id: int
    slots: int


@dataclass(frozen=True, slots=True)
class Matching:
    """What is decided. `reasons`: of those that wait on; `idle`: requests no more VMs would help.

    `refused`: requests that can never be served, with why; `kept`: the VMs kept for requests.
    """

    grants: tuple[Grant, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    idle: frozenset[int] = frozenset()
    refused: Mapping[int, str] = field(default_factory=dict)
    kept: Mapping[int, Kept] = field(default_factory=dict)


def match(snapshot: LeaseSnapshot) -> Matching:
    """Decide; granting what is decided changes nothing of the rest."""
    return _Match(snapshot).run()


class _Vm:
    """A VM while it is being given away."""

    __slots__ = ("bound", "free", "holders", "kept", "last", "used", "vm")

    def __init__(self, vm: LeaseVm) -> None:
        self.vm = vm
        self.used = vm.used_slots
        self.free = max(0, vm.slots - vm.used_slots)
        self.holders = set(vm.holders)
        self.last = vm.last
        self.kept = False
        self.bound: tuple[int, str] | None = None
        if vm.isolation != SHARED and vm.bound_owner_id is not None:
            self.bound = vm.bound_owner_id, vm.bound_sandbox or ""

    def is_theirs(self, request: Request) -> bool:
        """Return whether the VM serves the request's owner already, and may go on to."""
        kind = self.vm.isolation
        if kind == SHARED:
            return request.owner_id in self.holders
        if self.bound is None or kind == SINGLE_USE:
            return False
        if kind == OWNER:
            return self.bound[0] == request.owner_id
        return self.bound == (request.owner_id, request.sandbox)

    def is_open(self) -> bool:
        """Return whether it may serve anybody."""
        return self.bound is None

    def lacks(self, request: Request) -> int | None:
        """Return how many slots have to come free for the request; None: there are too few in all."""
        if request.slots is None:
            return self.used
        return None if request.slots > self.vm.slots else max(0, request.slots - self.free)

    def has_room(self, request: Request) -> bool:
        if self.kept:
            return False
        if request.slots is None:
            return self.used == 0
        return request.slots <= self.free

    def take(self, request: Request) -> int:
        slots = self.vm.slots if request.slots is None else request.slots
        self.used += slots
        self.free = max(0, self.free - slots)
        self.holders.add(request.owner_id)
        self.last = request.owner_id, request.sandbox
        if self.vm.isolation != SHARED and self.bound is None:
            self.bound = request.owner_id, request.sandbox
        return slots


class _Match:
    def __init__(self, snapshot: LeaseSnapshot) -> None:
        self._snapshot = snapshot
        self._vms: dict[int, list[_Vm]] = defaultdict(list)
        for vm in sorted(snapshot.vms, key=lambda vm: vm.id):
            self._vms[vm.pool_id].append(_Vm(vm))
        self._more: Counter[tuple[int, int | None]] = Counter()  # VMs granted to owners here
        self._wished: Counter[int] = Counter()  # VMs asked for besides, by owner
        self._failed: dict[tuple[object, ...], str] = {}

    def run(self) -> Matching:
        grants: list[Grant] = []
        reasons: dict[int, str] = {}
        refused: dict[int, str] = {}
        idle: set[int] = set()
        kept: dict[int, Kept] = {}
        for request in sorted(self._snapshot.requests, key=lambda r: (-r.priority, r.id)):
            why = self._never(request)
            if why:
                refused[request.id] = why
                continue
            stop = self._stopped(request)
            if stop:
                reasons[request.id] = f"nothing is leased: {stop}"
                idle.add(request.id)
                continue
            shape = (request.pool_ids, request.owner_id, request.sandbox, request.slots)
            # VMs only get fewer: what found none before finds none now.
            if shape not in self._failed:
                grant = self._served(request)
                if grant is not None:
                    grants.append(grant)
                    continue
                self._failed[shape] = self._reason(request)
            reasons[request.id] = self._failed[shape]
            if self._may_wish(request):
                self._wished[request.owner_id] += 1
            else:
                idle.add(request.id)
            keep = self._to_keep(request)
            if keep is not None:
                self._keep(request, keep)
                kept[request.id] = keep
                pool = self._snapshot.pools[keep.pool_id]
                reasons[request.id] += f"; a VM of {pool} is kept for it until it has room"
        return Matching(tuple(grants), reasons, frozenset(idle), refused, kept)

    def _stopped(self, request: Request) -> str:
        """Return why nothing is leased to the request now; empty if it may be."""
        if request.owner_id in self._snapshot.stopped_owners:
            return self._snapshot.stopped_owners[request.owner_id]
        if self._giving(request):
            return ""
        stopped = self._snapshot.stopped_pools
        return "; ".join(stopped[pool] for pool in request.pool_ids if pool in stopped)

    def _giving(self, request: Request) -> list[int]:
        """Return its pools that are open, and not stopped."""
        stopped = self._snapshot.stopped_pools
        return [p for p in request.pool_ids if p in self._snapshot.pools and p not in stopped]

    def _to_keep(self, request: Request) -> Kept | None:
        """Return the VM that lacks least for a request, if one is to be kept for it."""
        if self._snapshot.kept is not None:
            return self._snapshot.kept.get(request.id)
        if not request.reserves or request.slots == 1:
            return None
        found: list[tuple[int, int, int, Kept]] = []
        for place, pool_id in enumerate(self._giving(request)):
            if any(vm.kept for vm in self._vms[pool_id]):
                continue
            more = self._may_have_more(request, pool_id)
            for vm in self._vms[pool_id]:
                lacks, theirs = vm.lacks(request), vm.is_theirs(request)
                if lacks is not None and not vm.vm.unfit and (theirs or (more and vm.is_open())):
                    keep = Kept(vm.vm.id, pool_id, not theirs)
                    found.append((lacks, place, vm.vm.id, keep))
        return min(found, key=lambda item: item[:3])[3] if found else None

    def _keep(self, request: Request, keep: Kept) -> None:
        for vm in self._vms[keep.pool_id]:
            vm.kept = vm.kept or vm.vm.id == keep.vm_id
        if keep.more:  # its owner's later requests leave it that one
            self._count(request, keep.pool_id)

    def _count(self, request: Request, pool_id: int) -> None:
        self._more[request.owner_id, None] += 1
        self._more[request.owner_id, pool_id] += 1

    def _never(self, request: Request) -> str:
        """Return why the request can never be served; empty if it may."""
        pools = self._snapshot.pools
        if not any(pool in pools for pool in request.pool_ids):
            return "none of its pools is open any more"
        allowance = self._snapshot.allowances.get(request.owner_id)
        if allowance is None:
            return ""
        if allowance.most == 0:
            return f"owner {allowance.name} may have no VM (max_vms is 0)"
        limits = [allowance.pools.get(pool, (None, 0))[0] for pool in request.pool_ids]
        if limits and all(most == 0 for most in limits):
            words = {allowance.word(pool) for pool in request.pool_ids}
            told = " and ".join(f"{word} is 0" for word in sorted(words))
            return f"owner {allowance.name} may have no VM of these pools ({told})"
        return ""

    def _served(self, request: Request) -> Grant | None:
        for pool_id in self._giving(request):
            found = self._best(request, pool_id)
            if found is not None:
                slots = found.take(request)
                return Grant(request.id, found.vm.id, slots)
        return None

    def _best(self, request: Request, pool_id: int) -> _Vm | None:
        vms = [
            vm for vm in self._vms[pool_id] if not vm.vm.unfit and vm.has_room(request)
        ]  # by id, so that equals are taken in order
        mine = (request.owner_id, request.sandbox)
        theirs = [vm for vm in vms if vm.is_theirs(request)]
        if theirs:
            return min(theirs, key=lambda vm: ((vm.bound or vm.last) != mine, vm.vm.id))
        if not self._may_have_more(request, pool_id):
            return None
        clean = [vm for vm in vms if vm.is_open()]
        if not clean:
            return None
        chosen = min(clean, key=lambda vm: (vm.last != mine, vm.vm.id))
        self._count(request, pool_id)
        return chosen

    def _may_have_more(self, request: Request, pool_id: int) -> bool:
        allowance = self._snapshot.allowances.get(request.owner_id)
        if allowance is None:
            return True
        owner = request.owner_id
        if allowance.most is not None and allowance.has + self._more[owner, None] >= allowance.most:
            return False
        if pool_id not in allowance.pools:
            return True
        most, has = allowance.pools[pool_id]
        return has + self._more[owner, pool_id] < most

    def _may_wish(self, request: Request) -> bool:
        """Return whether a VM more would be given to the request, after those before it."""
        allowance = self._snapshot.allowances.get(request.owner_id)
        if allowance is None:
            return True
        wished = self._wished[request.owner_id]
        if allowance.most is not None:
            left = allowance.most - allowance.has - self._more[request.owner_id, None]
            if wished >= left:
                return False
        return any(
            pool not in allowance.pools
            or allowance.pools[pool][1] + self._more[request.owner_id, pool] + wished
            < allowance.pools[pool][0]
            for pool in request.pool_ids
        )

    def _reason(self, request: Request) -> str:
        """Return why none of the VMs is for the request: the kinds of obstacles, not their numbers."""
        pools = self._giving(request)
        names = ", ".join(self._snapshot.pools[pool] for pool in pools)
        allowance = self._snapshot.allowances.get(request.owner_id)
        if allowance is not None and not any(self._may_have_more(request, p) for p in pools):
            return f"owner {allowance.name} has as many VMs as it may ({_limits(allowance, pools)})"
        obstacles: dict[str, None] = {}
        for pool in pools:
            for vm in self._vms[pool]:
                obstacles[self._obstacle(request, vm)] = None
        if not obstacles:
            return f"no VM of {names} runs yet"
        return f"of the VMs of {names} some {' and some '.join(sorted(obstacles))}"

    def _obstacle(self, request: Request, vm: _Vm) -> str:
        if vm.vm.unfit:
            return vm.vm.unfit
        if vm.kept:
            return "are kept for a request that waits longer"
        if not vm.has_room(request):
            if request.slots is None or vm.free == 0:
                return "are in use"
            return f"have fewer than {request.slots} slots free"
        if not vm.is_theirs(request) and not vm.is_open():
            return "serve other owners or sandboxes"
        return "are beyond what their pool allows an owner"


def _limits(allowance: Allowance, pools: Sequence[int]) -> str:
    told = [] if allowance.most is None else [f"max_vms {allowance.most}"]
    if allowance.most is None or allowance.has < allowance.most:
        told += [
            f"{allowance.word(pool)} {allowance.pools[pool][0]}"
            for pool in pools
            if pool in allowance.pools
        ]
    return ", ".join(dict.fromkeys(told))
