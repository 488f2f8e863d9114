"""Limits of VMs, and budgets, in matching requests with VMs."""

from __future__ import annotations

from typing import Any

from remuda.matching import Kept
from remuda.owned_vms import OwnedVms, VmLimit, group
from tests.unit.matching import A, B, decided, granted, machine, wish


def _limits(
    name: str = "alice",
    *,
    most: int | None = None,
    has: frozenset[int] | set[int] = frozenset(),
    owner: int = 1,
    pools: dict[int, tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Return what a snapshot knows of one owner that has VMs; of `pools` (most, how many of these)."""
    here = pools or {}
    left: dict[tuple[int, int | None], int] = {
        (owner, pool): allowed - count for pool, (allowed, count) in here.items()
    }
    if most is not None:
        left[owner, None] = most - len(has)
    return {
        "limits": {owner: VmLimit(name, most=most, pools={p: m for p, (m, _) in here.items()})},
        "owned": OwnedVms({owner: set(has)}, left),
    }


def test_at_the_limit_only_what_the_owner_has_already() -> None:
    bound = machine(9, isolation="owner", bound_owner_id=1)
    limit = _limits(most=1, has={9})
    found = decided([wish(1), wish(2)], [machine(1), bound], **limit)
    assert granted(found) == {1: 9}
    assert found.reasons == {2: "owner alice has as many VMs as it may (max_vms 1)"}
    assert found.idle == {2}  # no use in growing for it


def test_a_limit_of_one_pool_leaves_the_others() -> None:
    limit = _limits(has={8}, pools={A: (1, 1)})
    found = decided([wish(1)], [machine(1), machine(2, pool_id=B)], **limit)
    assert granted(found) == {1: 2}


def test_growing_stops_where_the_limit_is() -> None:
    found = decided([wish(n) for n in range(1, 5)], [], **_limits(most=3, has={9}))
    assert found.idle == {3, 4}


def test_what_can_never_be_is_refused() -> None:
    nothing = _limits(most=0)
    assert "max_vms is 0" in decided([wish(1)], [machine(1)], **nothing).refused[1]
    nothing = _limits(pools={A: (0, 0), B: (0, 0)})
    assert "per_owner is 0" in decided([wish(1)], [machine(1)], **nothing).refused[1]
    assert "open" in decided([wish(1, pool_ids=(7,))], [machine(1)]).refused[1]


def test_a_kept_vm_counts_to_its_owners_limit() -> None:
    limit = _limits(most=1)
    found = decided(
        [wish(1, slots=None, reserves=True), wish(2)],
        [machine(1, slots=2, used_slots=1), machine(2)],
        **limit,
    )
    assert (granted(found), set(found.kept)) == ({1: 2}, set())  # a whole VM of one slot is one
    found = decided(
        [wish(1, slots=2, reserves=True), wish(2)],
        [machine(1, slots=2, used_slots=1), machine(2)],
        **limit,
    )
    assert (granted(found), set(found.kept)) == ({}, {1})
    held = machine(1, slots=2, used_slots=1, holders=frozenset({1}))
    found = decided([wish(1, slots=2, reserves=True)], [held], **_limits(most=1, has={1}))
    assert found.kept == {1: Kept(1, A, False)}  # it has that one already


def test_whose_budget_is_used_up_gets_or_gives_nothing() -> None:
    vms = [machine(1), machine(2, pool_id=B), machine(3)]
    found = decided([wish(1), wish(2, owner=2)], vms, stopped_owners={1: "of alice"})
    assert granted(found) == {2: 1}
    assert found.reasons == {1: "nothing is leased: of alice"}
    assert found.idle == {1}  # no VM more would help
    found = decided([wish(1), wish(2, pool_ids=(A,))], vms, stopped_pools={A: "of pool a"})
    assert granted(found) == {1: 2}
    assert found.reasons == {2: "nothing is leased: of pool a"}
    wide = wish(1, slots=2, reserves=True, pool_ids=(A,))
    found = decided([wide], [machine(1, slots=2, used_slots=1)], stopped_pools={A: "of pool a"})
    assert found.kept == {}
    # Of an owner in a pool: it gets nothing there, others do.
    there = {(1, A): "of alice in a"}
    requests = [wish(1), wish(2, pool_ids=(A,)), wish(3, owner=2)]
    found = decided(requests, vms, stopped_there=there)
    assert granted(found) == {1: 2, 3: 1}
    assert found.reasons == {2: "nothing is leased: of alice in a"}
    assert found.idle == {2}
    found = decided([wish(1)], vms, stopped_there=there, stopped_pools={B: "of pool b"})
    assert found.reasons == {1: "nothing is leased: of alice in a; of pool b"}
    # What stops it in one pool, and a limit in the other, leave it nothing to grow for.
    limit = _limits(has={7}, pools={B: (1, 1)})
    assert decided([wish(1)], vms, stopped_there=there, **limit).idle == {1}


def _team(most: int, has: set[int], /, **own: Any) -> dict[str, Any]:
    """Return what a snapshot knows of a group of the owners 1 and 2; `own`: of the first."""
    told: dict[str, Any] = _limits(**own) if own else {"limits": {}, "owned": OwnedVms()}
    party = group(9)
    told["limits"][party] = VmLimit("team", is_group=True, most=most)
    told["owned"].has[party] = set(has)
    told["owned"].left[party, None] = most - len(has)
    told["owned"].group_of = {1: 9, 2: 9}
    return told


def test_what_a_group_has_counts_once_and_serves_all_its_members() -> None:
    requests = [wish(1), wish(2, owner=2), wish(3, owner=3), wish(4)]
    vms = [machine(1, slots=2), machine(2, slots=2), machine(3)]
    found = decided(requests, vms, **_team(1, set()))
    assert granted(found) == {1: 1, 2: 1, 3: 2}
    assert found.reasons == {4: "group team has as many VMs as it may (max_vms 1)"}
    assert found.idle == {4}
    # Of its own limit the one member has no more, though the group's other VM has room.
    used = machine(1, slots=2, used_slots=1, holders=frozenset({2}))
    found = decided([wish(1), wish(2, owner=2)], [used], **_team(2, {1, 7}, most=1, has={7}))
    assert granted(found) == {2: 1}
    assert "owner alice has as many VMs" in found.reasons[1]
    nothing = decided(requests[:1], vms, **_team(0, set()))
    assert nothing.refused == {1: "group team may have no VM (max_vms is 0)"}


def test_a_pool_grows_as_far_as_the_group_may_have_more() -> None:
    requests = [wish(n, owner=1 + n % 2) for n in range(1, 6)]
    assert decided(requests, [], **_team(3, {9})).idle == {3, 4, 5}
    assert decided(requests, [], **_team(4, {9}, most=1)).idle == {4, 5}
