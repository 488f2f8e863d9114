"""Matching requests with VMs: order, limits, isolation, and reasons that tell what is the matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.matching import Allowance, Kept, LeaseSnapshot, LeaseVm, Matching, Request, match

A, B = 1, 2


def _of(requests: list[Request], vms: list[LeaseVm], **more: Any) -> Matching:
    return match(
        LeaseSnapshot(requests=tuple(requests), vms=tuple(vms), pools={A: "a", B: "b"}, **more)
    )


def _given(found: Matching) -> dict[int, int]:
    return {grant.request_id: grant.vm_id for grant in found.grants}


def _request(number: int, owner: int = 1, **fields: Any) -> Request:
    return Request(**{"id": number, "pool_ids": (A, B), "owner_id": owner, **fields})


def _vm(number: int, **fields: Any) -> LeaseVm:
    return LeaseVm(**{"id": number, "pool_id": A, "slots": 1, **fields})


def test_by_priority_then_in_the_order_they_came() -> None:
    requests = [_request(1), _request(2), _request(3, priority=5)]
    assert _given(_of(requests, [_vm(1), _vm(2)])) == {3: 1, 1: 2}


def test_pools_in_the_requests_own_order() -> None:
    vms = [_vm(1), _vm(2, pool_id=B)]
    assert _given(_of([_request(1, pool_ids=(B, A))], vms)) == {1: 2}
    assert _given(_of([_request(1, pool_ids=(B, A))], vms[:1])) == {1: 1}


def test_a_vm_that_serves_the_same_owner_and_sandbox_first() -> None:
    bound = _vm(9, isolation="sandbox", bound_owner_id=1, bound_sandbox="s")
    vms = [_vm(1, isolation="sandbox"), bound]
    assert _given(_of([_request(1, sandbox="s")], vms)) == {1: 9}
    assert _given(_of([_request(1, sandbox="t")], vms)) == {1: 1}
    assert _given(_of([_request(1, owner=2, sandbox="s")], [bound])) == {}


def test_at_the_limit_only_what_the_owner_has_already() -> None:
    bound = _vm(9, isolation="owner", bound_owner_id=1)
    limit = {1: Allowance(name="alice", most=1, has=1)}
    found = _of([_request(1), _request(2)], [_vm(1), bound], allowances=limit)
    assert _given(found) == {1: 9}
    assert found.reasons == {2: "owner alice has as many VMs as it may (max_vms 1)"}
    assert found.idle == {2}  # no use in growing for it


def test_a_limit_of_one_pool_leaves_the_others() -> None:
    limit = {1: Allowance(name="alice", pools={A: (1, 1)})}
    found = _of([_request(1)], [_vm(1), _vm(2, pool_id=B)], allowances=limit)
    assert _given(found) == {1: 2}


def test_growing_stops_where_the_limit_is() -> None:
    found = _of(
        [_request(n) for n in range(1, 5)], [], allowances={1: Allowance(name="x", most=3, has=1)}
    )
    assert found.idle == {3, 4}


def test_what_can_never_be_is_refused() -> None:
    nothing = {1: Allowance(name="alice", most=0)}
    assert "max_vms is 0" in _of([_request(1)], [_vm(1)], allowances=nothing).refused[1]
    nothing = {1: Allowance(name="alice", pools={A: (0, 0), B: (0, 0)})}
    assert "per_owner is 0" in _of([_request(1)], [_vm(1)], allowances=nothing).refused[1]
    assert "open" in _of([_request(1, pool_ids=(7,))], [_vm(1)]).refused[1]


@pytest.mark.parametrize(
    ("vms", "told"),
    [
        ([], "no VM of a, b runs yet"),
        ([_vm(1, used_slots=1)], "are in use"),
        ([_vm(1, slots=3, used_slots=2)], "have fewer than 2 slots free"),
        ([_vm(1, slots=2, isolation="owner", bound_owner_id=5)], "serve other owners or sandboxes"),
        ([_vm(1, unfit="failed their checks")], "failed their checks"),
        ([_vm(1, used_slots=1), _vm(2, unfit="failed")], "some are in use and some failed"),
    ],
)
def test_the_reason_tells_what_is_in_the_way(vms: list[LeaseVm], told: str) -> None:
    found = _of([_request(1, slots=2 if vms and vms[0].slots > 1 else 1)], vms)
    assert told in found.reasons[1]


def test_a_whole_vm_is_one_that_nobody_uses() -> None:
    vms = [_vm(1, slots=4, used_slots=1), _vm(2, slots=2)]
    found = _of([_request(1, slots=None), _request(2, slots=None)], vms)
    assert [(g.vm_id, g.slots) for g in found.grants] == [(2, 2)]
    assert "are in use" in found.reasons[2]


def test_the_vm_that_lacks_least_is_kept_for_who_waits_for_long() -> None:
    whole = _request(1, slots=None, reserves=True)
    small = [_request(n, owner=2) for n in (2, 3)]
    vms = [_vm(1, slots=4, used_slots=3), _vm(2, slots=4, used_slots=2), _vm(3, unfit="failed")]
    found = _of([whole, *small], vms)
    assert _given(found) == {2: 1}
    assert found.kept == {1: Kept(2, A, True)}
    assert "some are in use" in found.reasons[1]
    assert "a VM of a is kept for it" in found.reasons[1]
    assert "are kept for a request that waits longer" in found.reasons[3]
    assert found.idle == frozenset()  # pools may grow for all of them
    # Before its time nothing is kept, and a slot is never more than the next that comes free.
    assert _of([_request(1, slots=None), *small], vms).kept == {}
    assert _of([_request(1, slots=1, reserves=True)], [_vm(1, used_slots=1)]).kept == {}


def test_one_vm_of_a_pool_is_kept_at_a_time() -> None:
    wide = [_request(n, slots=3, reserves=True) for n in (1, 2, 3)]
    wide.append(_request(4, slots=None, priority=1, reserves=True))
    vms = [_vm(n, slots=4, used_slots=2, pool_id=A if n < 3 else B) for n in range(1, 5)]
    found = _of(wide, vms)
    assert {request: keep.vm_id for request, keep in found.kept.items()} == {4: 1, 1: 3}


@pytest.mark.parametrize(
    "vm",
    [
        _vm(1, slots=4, used_slots=1, isolation="owner", bound_owner_id=2),  # never its
        _vm(1, slots=4, used_slots=1, unfit="failed their checks"),
        _vm(1, slots=2, used_slots=1),  # too small
        _vm(1, slots=4, used_slots=4, pool_id=7),  # of no pool of its
    ],
)
def test_nothing_is_kept_that_will_not_do(vm: LeaseVm) -> None:
    assert _of([_request(1, slots=3, reserves=True)], [vm]).kept == {}


def test_a_kept_vm_counts_to_its_owners_limit() -> None:
    limit = {1: Allowance(name="alice", most=1, has=0)}
    found = _of(
        [_request(1, slots=None, reserves=True), _request(2)],
        [_vm(1, slots=2, used_slots=1), _vm(2)],
        allowances=limit,
    )
    assert (_given(found), set(found.kept)) == ({1: 2}, set())  # a whole VM of one slot is one
    found = _of(
        [_request(1, slots=2, reserves=True), _request(2)],
        [_vm(1, slots=2, used_slots=1), _vm(2)],
        allowances=limit,
    )
    assert (_given(found), set(found.kept)) == ({}, {1})
    held = _vm(1, slots=2, used_slots=1, holders=frozenset({1}))
    limit = {1: Allowance(name="alice", most=1, has=1)}
    found = _of([_request(1, slots=2, reserves=True)], [held], allowances=limit)
    assert found.kept == {1: Kept(1, A, False)}  # it has that one already


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=60))
def test_small_ones_without_end_starve_no_whole_one(count: int, ends: list[int]) -> None:
    """Leases of a slot end in any order, others are always asked for; what the whole one lacks shrinks."""
    used = dict.fromkeys(range(1, count + 1), 3)
    least = 3
    for end in ends:
        used[end % count + 1] = max(0, used[end % count + 1] - 1)
        vms = [_vm(n, slots=3, used_slots=u) for n, u in used.items()]
        requests = [_request(1, slots=None, reserves=True)]
        found = _of(requests + [_request(n, owner=2) for n in range(2, 9)], vms)
        assert (1 in _given(found)) == (min(used.values()) == 0)
        if 1 in _given(found):
            return
        least = min(least, *used.values())
        for grant in found.grants:
            used[grant.vm_id] += grant.slots
        assert used[found.kept[1].vm_id] == min(used.values()) == least


def test_a_single_use_is_for_one() -> None:
    found = _of([_request(1), _request(2)], [_vm(1, slots=2, isolation="single_use")])
    assert _given(found) == {1: 1}


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
    limits = {
        owner: Allowance(
            name=f"o{owner}",
            most=draw(st.none() | st.integers(0, 4)),
            has=draw(st.integers(0, 3)),
            pools=draw(st.sampled_from([{}, {A: (1, 0)}, {A: (1, 1), B: (0, 0)}])),
        )
        for owner in draw(st.sets(st.integers(1, 3)))
    }
    there = [draw(vms(number)) for number in range(1, draw(st.integers(1, 7)))]
    return LeaseSnapshot(
        requests=tuple(requests), vms=tuple(there), pools={A: "a", B: "b"}, allowances=limits
    )


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
    new: dict[int, set[int]] = {}
    for grant in found.grants:
        request, vm = requests[grant.request_id], there[grant.vm_id]
        assert not vm.unfit
        assert vm.pool_id in request.pool_ids
        used[vm.id] += grant.slots
        assert used[vm.id] <= vm.slots
        if vm.bound_owner_id is None and request.owner_id not in vm.holders:
            new.setdefault(request.owner_id, set()).add(vm.id)
        serves.setdefault(vm.id, set()).add((request.owner_id, request.sandbox))
    for vm_id, whom in serves.items():
        vm = there[vm_id]
        if vm.bound_owner_id is not None:
            whom.add((vm.bound_owner_id, vm.bound_sandbox or ""))
        if vm.isolation == "owner":
            assert len({owner for owner, _ in whom}) == 1
        if vm.isolation in ("sandbox", "single_use"):
            assert len(whom) == 1
    for owner, allowance in snapshot.allowances.items():
        more = new.get(owner, set())
        if allowance.most is not None and more:
            assert allowance.has + len(more) <= allowance.most
        for pool, (most, has) in allowance.pools.items():
            here = [vm for vm in more if there[vm].pool_id == pool]
            assert not here or has + len(here) <= most


@given(snapshots())
def test_nobody_waits_for_what_is_free(snapshot: LeaseSnapshot) -> None:
    """After the grants nothing is left that would do for one of those who wait on."""
    found = match(snapshot)
    used = Counter({grant.vm_id: grant.slots for grant in found.grants})
    taken = set(used)
    kept = {keep.vm_id for keep in found.kept.values()}
    for request in snapshot.requests:
        if request.id not in found.reasons or request.owner_id in snapshot.allowances:
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


def test_whose_budget_is_used_up_gets_or_gives_nothing() -> None:
    vms = [_vm(1), _vm(2, pool_id=B), _vm(3)]
    found = _of([_request(1), _request(2, owner=2)], vms, stopped_owners={1: "of alice"})
    assert _given(found) == {2: 1}
    assert found.reasons == {1: "nothing is leased: of alice"}
    assert found.idle == {1}  # no VM more would help
    found = _of([_request(1), _request(2, pool_ids=(A,))], vms, stopped_pools={A: "of pool a"})
    assert _given(found) == {1: 2}
    assert found.reasons == {2: "nothing is leased: of pool a"}
    wide = _request(1, slots=2, reserves=True, pool_ids=(A,))
    found = _of([wide], [_vm(1, slots=2, used_slots=1)], stopped_pools={A: "of pool a"})
    assert found.kept == {}
