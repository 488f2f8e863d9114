"""How many more VMs owners may have, by itself and in what placement makes of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from remuda.owned_vms import OwnedVms, group
from remuda.workers.placement import PendingJob, PlacementSnapshot, VmCapacity, place

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)


def job(number: int, owner: int = 1, pools: tuple[int, ...] = (), cores: int = 1) -> PendingJob:
    return PendingJob(number, (pools or (1,))[0], owner, 0, NOW, cores, 0, 0.1, pool_ids=pools)


def vm(number: int, pool: int = 1, slots: int = 2, free: int = 2) -> VmCapacity:
    return VmCapacity(number, pool, slots, None, free, None, 0.0, 0)


def where(
    jobs: list[PendingJob], vms: list[VmCapacity], owned: OwnedVms, *, ahead: int = 0
) -> dict[int, int]:
    snapshot = PlacementSnapshot(tuple(jobs), tuple(vms), 1.0, ahead, owned=owned)
    return {placed.job_id: placed.vm_id for placed in place(snapshot, NOW)}


def test_the_least_of_its_limits_holds() -> None:
    owned = OwnedVms({1: {7}}, {(1, None): 2, (1, 5): 1})
    assert [owned.more(1, 5), owned.more(1, 6), owned.more(2, 5)] == [1, 2, None]
    assert owned.only(1, 5) is None
    owned.take(1, 5, 7)  # it has that one
    owned.take(1, 5, 8)
    assert ([owned.more(1, 5), owned.more(1, 6)], owned.only(1, 5)) == ([0, 1], {7, 8})
    owned.take(2, 5, 8)
    assert owned.only(2, 5) is None
    assert OwnedVms({1: set()}, {(1, None): -3}).more(1, 1) == 0  # lowered meanwhile


def test_a_vm_counts_once_for_a_group_whose_ever_members_use_it() -> None:
    team = group(9)
    owned = OwnedVms({1: {7}, team: {7, 8}}, {(1, None): 1, (team, None): 1}, group_of={1: 9, 2: 9})
    assert owned.owners() == {1, 2}
    assert [list(owned.parties(o)) for o in (1, 2, 3)] == [[1, team], [team], []]
    assert list(owned.choices(1, 5)) == [{7}, {7, 8}, None]
    assert list(owned.choices(2, 5)) == [{7, 8}, None]
    assert list(owned.choices(3, 5)) == [None]
    owned.take(2, 5, 9)  # the group's last one
    assert [owned.more(o, 5) for o in (1, 2, 3)] == [0, 0, None]
    assert owned.only(2, 5) == owned.only(1, 5) == {7, 8, 9}
    owned.take(1, 5, 9)  # which counts to the member's own limit, not to the group's again
    assert owned.left == {(1, None): 0, (team, None): 0}
    assert list(owned.choices(1, 5)) == [{7, 9}]
    assert owned.only(1, 5) == {7, 9}


def test_members_fill_the_vms_their_group_has_first() -> None:
    team = group(9)
    owned = OwnedVms({team: {3}}, {(team, None): 0}, group_of={1: 9, 2: 9})
    jobs = [job(1), job(2, owner=2), job(3), job(4, owner=3)]
    assert where(jobs, [vm(1), vm(3)], owned) == {1: 3, 2: 3, 4: 1}


def test_jobs_fill_the_vms_their_owner_has_first() -> None:
    jobs = [job(n) for n in range(1, 6)]
    vms = [vm(1, free=1), vm(2), vm(3)]
    owned = OwnedVms({1: {3}}, {(1, None): 1})
    found = where(jobs, vms, owned)
    assert (found[1], found[2]) == (3, 3)
    assert len(set(found.values()) - {3}) == 1  # one more, and the rest waits
    assert (owned.has, owned.left) == ({1: {3}}, {(1, None): 1})  # a snapshot stays as it is
    assert where(jobs, vms, OwnedVms({1: set()}, {(1, None): 0})) == {}
    assert len(where(jobs, vms, OwnedVms())) == 5
    # What is at its limit in one pool goes to the next of its pools.
    two = [vm(1), vm(2, pool=2)]
    assert where([job(1, pools=(1, 2))], two, OwnedVms({1: set()}, {(1, 1): 0})) == {1: 2}


def test_nor_are_they_placed_ahead_elsewhere() -> None:
    full = [vm(1, free=0), vm(2, free=0)]
    assert set(
        where([job(1), job(2)], full, OwnedVms({1: {2}}, {(1, None): 0}), ahead=9).values()
    ) == {2}


def test_no_vm_is_kept_for_a_wide_job_that_may_not_have_it() -> None:
    """Another's small job gets the slots that would else be kept."""
    wide = job(1, cores=2)._replace(reserves=True)
    vms = [replace(vm(1, free=1), releases=())]
    assert where([wide, job(2, owner=2)], vms, OwnedVms({1: set()}, {(1, None): 0})) == {2: 1}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)), max_size=25),
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3)), max_size=8),
    st.dictionaries(
        st.tuples(st.sampled_from([1, 2, group(9)]), st.sampled_from([None, 1, 2])),
        st.integers(0, 3),
    ),
    st.sets(st.integers(1, 3)),
    st.data(),
)
def test_no_limit_is_exceeded(
    wanted: list[tuple[int, int, int]],
    there: list[tuple[int, int]],
    left: dict[tuple[int, int | None], int],
    members: set[int],
    data: st.DataObject,
) -> None:
    vms = [vm(n, pool, 3, free) for n, (pool, free) in enumerate(there, 1)]
    jobs = [job(n, owner, (pool,), cores) for n, (owner, pool, cores) in enumerate(wanted, 1)]
    ids = st.sets(st.sampled_from([v.id for v in vms])) if vms else st.just(set())
    owned = OwnedVms({party: data.draw(ids) for party, _ in left}, dict(left))
    if group(9) in owned.has:  # what a member has is the group's
        owned.group_of = dict.fromkeys(members, 9)
        owned.has[group(9)].update(*(owned.has.get(member, set()) for member in members))
    found = where(jobs, vms, owned, ahead=data.draw(st.sampled_from([0, 4])))
    owners = {one.id: one.owner_id for one in jobs}
    pool_of = {one.id: one.pool_id for one in vms}
    new: dict[tuple[int, int | None], set[int]] = defaultdict(set)
    for number, vm_id in found.items():
        for party in owned.parties(owners[number]):
            if vm_id not in owned.has[party]:
                for pool in (None, pool_of[vm_id]):
                    new[party, pool].add(vm_id)
    assert all(len(new[key]) <= most for key, most in left.items())
