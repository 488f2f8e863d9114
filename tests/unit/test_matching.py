"""Matching requests with VMs: order, limits, isolation, and reasons that tell what is the matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.matching import Kept, LeaseSnapshot, LeaseVm, Request, match
from remuda.owned_vms import OwnedVms, VmLimit, group
from tests.unit.matching import A, B, decided, granted, machine, wish


def test_by_priority_then_in_the_order_they_came() -> None:
    requests = [wish(1), wish(2), wish(3, priority=5)]
    assert granted(decided(requests, [machine(1), machine(2)])) == {3: 1, 1: 2}


def test_pools_in_the_requests_own_order() -> None:
    vms = [machine(1), machine(2, pool_id=B)]
    assert granted(decided([wish(1, pool_ids=(B, A))], vms)) == {1: 2}
    assert granted(decided([wish(1, pool_ids=(B, A))], vms[:1])) == {1: 1}


def test_a_vm_that_serves_the_same_owner_and_sandbox_first() -> None:
    bound = machine(9, isolation="sandbox", bound_owner_id=1, bound_sandbox="s")
    vms = [machine(1, isolation="sandbox"), bound]
    assert granted(decided([wish(1, sandbox="s")], vms)) == {1: 9}
    assert granted(decided([wish(1, sandbox="t")], vms)) == {1: 1}
    assert granted(decided([wish(1, owner=2, sandbox="s")], [bound])) == {}


@pytest.mark.parametrize(
    ("vms", "told"),
    [
        ([], "no VM of a, b runs yet"),
        ([machine(1, used_slots=1)], "are in use"),
        ([machine(1, slots=3, used_slots=2)], "have fewer than 2 slots free"),
        (
            [machine(1, slots=2, isolation="owner", bound_owner_id=5)],
            "serve other owners or sandboxes",
        ),
        ([machine(1, unfit="failed their checks")], "failed their checks"),
        ([machine(1, used_slots=1), machine(2, unfit="failed")], "some are in use and some failed"),
    ],
)
def test_the_reason_tells_what_is_in_the_way(vms: list[LeaseVm], told: str) -> None:
    found = decided([wish(1, slots=2 if vms and vms[0].slots > 1 else 1)], vms)
    assert told in found.reasons[1]


def test_a_whole_vm_is_one_that_nobody_uses() -> None:
    vms = [machine(1, slots=4, used_slots=1), machine(2, slots=2)]
    found = decided([wish(1, slots=None), wish(2, slots=None)], vms)
    assert [(g.vm_id, g.slots) for g in found.grants] == [(2, 2)]
    assert "are in use" in found.reasons[2]


def test_the_vm_that_lacks_least_is_kept_for_who_waits_for_long() -> None:
    whole = wish(1, slots=None, reserves=True)
    small = [wish(n, owner=2) for n in (2, 3)]
    vms = [
        machine(1, slots=4, used_slots=3),
        machine(2, slots=4, used_slots=2),
        machine(3, unfit="failed"),
    ]
    found = decided([whole, *small], vms)
    assert granted(found) == {2: 1}
    assert found.kept == {1: Kept(2, A, True)}
    assert "some are in use" in found.reasons[1]
    assert "a VM of a is kept for it" in found.reasons[1]
    assert "are kept for a request that waits longer" in found.reasons[3]
    assert found.idle == frozenset()  # pools may grow for all of them
    # Before its time nothing is kept, and a slot is never more than the next that comes free.
    assert decided([wish(1, slots=None), *small], vms).kept == {}
    assert decided([wish(1, slots=1, reserves=True)], [machine(1, used_slots=1)]).kept == {}


def test_one_vm_of_a_pool_is_kept_at_a_time() -> None:
    wide = [wish(n, slots=3, reserves=True) for n in (1, 2, 3)]
    wide.append(wish(4, slots=None, priority=1, reserves=True))
    vms = [machine(n, slots=4, used_slots=2, pool_id=A if n < 3 else B) for n in range(1, 5)]
    found = decided(wide, vms)
    assert {request: keep.vm_id for request, keep in found.kept.items()} == {4: 1, 1: 3}


@pytest.mark.parametrize(
    "vm",
    [
        machine(1, slots=4, used_slots=1, isolation="owner", bound_owner_id=2),  # never its
        machine(1, slots=4, used_slots=1, unfit="failed their checks"),
        machine(1, slots=2, used_slots=1),  # too small
        machine(1, slots=4, used_slots=4, pool_id=7),  # of no pool of its
    ],
)
def test_nothing_is_kept_that_will_not_do(vm: LeaseVm) -> None:
    assert decided([wish(1, slots=3, reserves=True)], [vm]).kept == {}


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=60))
def test_small_ones_without_end_starve_no_whole_one(count: int, ends: list[int]) -> None:
    """Leases of a slot end in any order, others are always asked for; what the whole one lacks shrinks."""
    used = dict.fromkeys(range(1, count + 1), 3)
    least = 3
    for end in ends:
        used[end % count + 1] = max(0, used[end % count + 1] - 1)
        vms = [machine(n, slots=3, used_slots=u) for n, u in used.items()]
        requests = [wish(1, slots=None, reserves=True)]
        found = decided(requests + [wish(n, owner=2) for n in range(2, 9)], vms)
        assert (1 in granted(found)) == (min(used.values()) == 0)
        if 1 in granted(found):
            return
        least = min(least, *used.values())
        for grant in found.grants:
            used[grant.vm_id] += grant.slots
        assert used[found.kept[1].vm_id] == min(used.values()) == least


def test_a_single_use_is_for_one() -> None:
    found = decided([wish(1), wish(2)], [machine(1, slots=2, isolation="single_use")])
    assert granted(found) == {1: 1}


ISOLATIONS = st.sampled_from(["shared", "owner", "sandbox", "single_use"])


@st.composite
def vms(draw: st.DrawFn, number: int) -> LeaseVm:
    slots = draw(st.integers(1, 4))
    isolation = draw(ISOLATIONS)
    bound = draw(st.none() | st.integers(1, 3)) if isolation != "shared" else None
    used = draw(st.integers(0, slots))
    return LeaseVm(
        id=number,
        pool_id=draw(st.sampled_from([A, B])),
        slots=slots,
        used_slots=used,
        isolation=isolation,
        bound_owner_id=bound,
        bound_sandbox=None if bound is None else draw(st.sampled_from(["s", "t"])),
        holders=draw(st.frozensets(st.integers(1, 3))) if used and not bound else frozenset(),
        unfit=draw(st.sampled_from(["", "", "failed their checks"])),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> LeaseSnapshot:
    requests = [
        Request(
            id=number,
            pool_ids=tuple(draw(st.permutations([A, B]))[: draw(st.integers(1, 2))]),
            owner_id=draw(st.integers(1, 3)),
            sandbox=draw(st.sampled_from(["s", "t"])),
            slots=draw(st.none() | st.integers(1, 4)),
            priority=draw(st.integers(0, 1)),
            reserves=draw(st.booleans()),
        )
        for number in range(1, draw(st.integers(1, 9)))
    ]
    there = [draw(vms(number)) for number in range(1, draw(st.integers(1, 7)))]
    members = draw(st.sets(st.integers(1, 3)))
    limited: list[int] = [
        *sorted(draw(st.sets(st.integers(1, 3)))),
        *([group(9)] if members else []),
    ]
    has = {party: {vm.id for vm in there if _has(party, vm, members)} for party in limited}
    limits: dict[int, VmLimit] = {}
    left: dict[tuple[int, int | None], int] = {}
    for party in limited:
        most = draw(st.none() | st.integers(0, 4))
        pools = draw(st.sampled_from([{}, {A: 1}, {A: 1, B: 0}, {A: 2}]))
        limits[party] = VmLimit(f"o{party}", party < 0, most, pools)
        if most is not None:
            left[party, None] = most - len(has[party])
        for pool, most in pools.items():
            left[party, pool] = most - sum(
                1 for v in there if v.id in has[party] and v.pool_id == pool
            )
    return LeaseSnapshot(
        requests=tuple(requests),
        vms=tuple(there),
        pools={A: "a", B: "b"},
        limits=limits,
        owned=OwnedVms(has, left, group_of=dict.fromkeys(members, 9)),
    )


def _has(party: int, vm: LeaseVm, members: set[int]) -> bool:
    whose = {vm.bound_owner_id} if vm.bound_owner_id is not None else set(vm.holders)
    return bool(whose & (members if party < 0 else {party}))


@given(snapshots())
def test_what_is_granted_is_never_too_much(snapshot: LeaseSnapshot) -> None:
    """Slots, isolation and limits hold, and every request is answered once."""
    found = match(snapshot)
    requests = {request.id: request for request in snapshot.requests}
    there = {vm.id: vm for vm in snapshot.vms}
    answered = [grant.request_id for grant in found.grants] + [*found.reasons, *found.refused]
    assert sorted(answered) == sorted(requests)
    used = Counter({vm.id: vm.used_slots for vm in snapshot.vms})
    serves: dict[int, set[tuple[int, str]]] = {}
    got: dict[int, set[int]] = {}
    for grant in found.grants:
        request, vm = requests[grant.request_id], there[grant.vm_id]
        assert not vm.unfit
        assert vm.pool_id in request.pool_ids
        used[vm.id] += grant.slots
        assert used[vm.id] <= vm.slots
        for party in snapshot.owned.parties(request.owner_id):
            got.setdefault(party, set()).add(vm.id)
        serves.setdefault(vm.id, set()).add((request.owner_id, request.sandbox))
    for vm_id, whom in serves.items():
        vm = there[vm_id]
        if vm.bound_owner_id is not None:
            whom.add((vm.bound_owner_id, vm.bound_sandbox or ""))
        if vm.isolation == "owner":
            assert len({owner for owner, _ in whom}) == 1
        if vm.isolation in ("sandbox", "single_use"):
            assert len(whom) == 1
    for (party, pool), left in snapshot.owned.left.items():
        new = got.get(party, set()) - snapshot.owned.has[party]
        here = [vm for vm in new if pool in (None, there[vm].pool_id)]
        assert len(here) <= max(0, left)


@given(snapshots())
def test_nobody_waits_for_what_is_free(snapshot: LeaseSnapshot) -> None:
    """After the grants nothing is left that would do for one of those who wait on."""
    found = match(snapshot)
    used: Counter[int] = Counter()
    for grant in found.grants:
        used[grant.vm_id] += grant.slots
    taken = set(used)
    kept = {keep.vm_id for keep in found.kept.values()}
    for request in snapshot.requests:
        if request.id not in found.reasons or snapshot.owned.parties(request.owner_id):
            continue
        for vm in (vm for vm in snapshot.vms if vm.id not in kept):
            clean = vm.isolation == "shared" or (vm.bound_owner_id is None and vm.id not in taken)
            free = vm.slots - vm.used_slots - used[vm.id]
            wanted = vm.slots if request.slots is None else request.slots
            assert vm.unfit or vm.pool_id not in request.pool_ids or not clean or free < wanted


@given(snapshots())
def test_the_chosen_vms_alone_give_the_same(snapshot: LeaseSnapshot) -> None:
    """What is decided once more under the locks of just those VMs is what was decided."""
    found = match(snapshot)
    chosen = {grant.vm_id for grant in found.grants}
    there = tuple(vm for vm in snapshot.vms if vm.id in chosen)
    again = match(replace(snapshot, vms=there, kept=found.kept))
    assert again.grants == found.grants


@given(snapshots())
def test_what_is_kept_is_worth_it(snapshot: LeaseSnapshot) -> None:
    """One VM of a pool at most, fit and large enough, for who waits on; nothing later goes there."""
    found = match(snapshot)
    there = {vm.id: vm for vm in snapshot.vms}
    asked = {request.id: request for request in snapshot.requests}
    order = sorted(snapshot.requests, key=lambda r: (-r.priority, r.id))
    place = {request.id: n for n, request in enumerate(order)}
    assert len({keep.pool_id for keep in found.kept.values()}) == len(found.kept)
    for request_id, keep in found.kept.items():
        request, vm = asked[request_id], there[keep.vm_id]
        assert request.reserves
        assert request_id in found.reasons
        assert not vm.unfit
        assert vm.pool_id == keep.pool_id
        assert (request.slots or 1) <= vm.slots
        assert all(
            place[grant.request_id] < place[request_id]
            for grant in found.grants
            if grant.vm_id == vm.id
        )
