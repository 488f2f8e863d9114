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

from remuda.owned_vms import OwnedVms, Party, VmLimit

__all__ = ["Grant", "Kept", "LeaseSnapshot", "LeaseVm", "Matching", "Request", "match"]

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


@dataclass(frozen=True, slots=True)
class Kept:
    """A VM that is kept for a request; `more`: it is one that its owner does not have yet."""

    vm_id: int
    pool_id: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSnapshot:
    """What waits and what is there; `pools`: the names of those that are open, by id.

    `limits`, `owned`: how many VMs owners and groups may have, and do. `kept`: which VM to keep for
    which request, where that is decided already. `stopped_owners`,
    `stopped_pools`, `stopped_there` (an owner in a pool): those that get, or give, nothing now, with
    why: what they may spend is spent.
    """

    requests: tuple[Request, ...]
    vms: tuple[LeaseVm, ...]
    pools: Mapping[int, str]
    limits: Mapping[Party, VmLimit] = field(default_factory=dict)
    owned: OwnedVms = field(default_factory=OwnedVms)
    kept: Mapping[int, Kept] | None = None
    stopped_owners: Mapping[int, str] = field(default_factory=dict)
    stopped_pools: Mapping[int, str] = field(default_factory=dict)
    stopped_there: Mapping[tuple[int, int], str] = field(default_factory=dict)


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
        self._owned = snapshot.owned.copy()
        self._wished: Counter[Party] = Counter()  # VMs asked for besides
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
                self._wished.update(self._owned.parties(request.owner_id))
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
        reasons = [self._stop(request, pool) for pool in request.pool_ids]
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    def _stop(self, request: Request, pool_id: int) -> str:
        """Return why the pool gives the request nothing; empty if no budget is in the way."""
        snapshot = self._snapshot
        return snapshot.stopped_pools.get(pool_id, "") or snapshot.stopped_there.get(
            (request.owner_id, pool_id), ""
        )

    def _giving(self, request: Request) -> list[int]:
        """Return its pools that are open, and not stopped, nor its owner there."""
        pools = self._snapshot.pools
        return [p for p in request.pool_ids if p in pools and not self._stop(request, p)]

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
            only = self._owned.only(request.owner_id, pool_id)
            for vm in self._vms[pool_id]:
                lacks, theirs = vm.lacks(request), vm.is_theirs(request)
                may = theirs or (vm.is_open() and (only is None or vm.vm.id in only))
                if lacks is not None and not vm.vm.unfit and may:
                    keep = Kept(vm.vm.id, pool_id, not theirs)
                    found.append((lacks, place, vm.vm.id, keep))
        return min(found, key=lambda item: item[:3])[3] if found else None

    def _keep(self, request: Request, keep: Kept) -> None:
        for vm in self._vms[keep.pool_id]:
            vm.kept = vm.kept or vm.vm.id == keep.vm_id
        if keep.more:  # its owner's later requests leave it that one
            self._owned.take(request.owner_id, keep.pool_id, keep.vm_id)

    def _never(self, request: Request) -> str:
        """Return why the request can never be served; empty if it may."""
        pools = self._snapshot.pools
        if not any(pool in pools for pool in request.pool_ids):
            return "none of its pools is open any more"
        for limit in self._limits(request):
            if limit.most == 0:
                return f"{limit.whose()} may have no VM (max_vms is 0)"
            if all(limit.pools.get(pool) == 0 for pool in request.pool_ids):
                words = {limit.word(pool) for pool in request.pool_ids}
                told = " and ".join(f"{word} is 0" for word in sorted(words))
                return f"{limit.whose()} may have no VM of these pools ({told})"
        return ""

    def _limits(self, request: Request) -> list[VmLimit]:
        limits = self._snapshot.limits
        return [limits[party] for party in self._owned.parties(request.owner_id) if party in limits]

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
        clean = [vm for vm in vms if vm.is_open()]
        for only in self._owned.choices(request.owner_id, pool_id):
            found = clean if only is None else [vm for vm in clean if vm.vm.id in only]
            if found:
                chosen = min(found, key=lambda vm: (vm.last != mine, vm.vm.id))
                self._owned.take(request.owner_id, pool_id, chosen.vm.id)
                return chosen
        return None

    def _may_wish(self, request: Request) -> bool:
        """Return whether a VM more would be given to the request, after those before it."""
        return any(
            all(
                left > self._wished[party]
                for party, left in self._owned.lefts(request.owner_id, pool).items()
            )
            for pool in self._giving(request)
        )

    def _reason(self, request: Request) -> str:
        """Return why none of the VMs is for the request: the kinds of obstacles, not their numbers."""
        pools = self._giving(request)
        names = ", ".join(self._snapshot.pools[pool] for pool in pools)
        if all(self._owned.more(request.owner_id, pool) == 0 for pool in pools):
            return " and ".join(self._full(request, pools))
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
        return "are beyond a limit of VMs of their pool"

    def _full(self, request: Request, pools: Sequence[int]) -> list[str]:
        """Return which limits of the owner and its group leave it no VM more in any of the pools."""
        told = []
        for party in self._owned.parties(request.owner_id):
            full = [p for p in pools if self._owned.lefts(request.owner_id, p).get(party) == 0]
            limit = self._snapshot.limits.get(party)
            if not full:
                continue
            if limit is None:
                return ["what its limits of VMs leave it is just being counted"]
            words = [f"{limit.word(p)} {limit.pools[p]}" for p in full if p in limit.pools]
            if self._owned.left.get((party, None), 1) <= 0:
                words = [f"max_vms {limit.most}"]
            told.append(
                f"{limit.whose()} has as many VMs as it may ({', '.join(dict.fromkeys(words))})"
            )
        return told
