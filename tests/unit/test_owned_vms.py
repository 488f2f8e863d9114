"""How many more VMs owners may have, by itself and in what placement makes of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from remuda.owned_vms import OwnedVms
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
    wide = replace(job(1, cores=2), reserves=True)
    vms = [replace(vm(1, free=1), releases=())]
    assert where([wide, job(2, owner=2)], vms, OwnedVms({1: set()}, {(1, None): 0})) == {2: 1}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)), max_size=25),
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3)), max_size=8),
    st.dictionaries(st.tuples(st.integers(1, 2), st.sampled_from([None, 1, 2])), st.integers(0, 3)),
    st.data(),
)
def test_no_limit_is_exceeded(
    wanted: list[tuple[int, int, int]],
    there: list[tuple[int, int]],
    left: dict[tuple[int, int | None], int],
    data: st.DataObject,
) -> None:
    vms = [vm(n, pool, 3, free) for n, (pool, free) in enumerate(there, 1)]
    jobs = [job(n, owner, (pool,), cores) for n, (owner, pool, cores) in enumerate(wanted, 1)]
    ids = st.sets(st.sampled_from([v.id for v in vms])) if vms else st.just(set())
    owned = OwnedVms({owner: data.draw(ids) for owner, _ in left}, dict(left))
    found = where(jobs, vms, owned, ahead=data.draw(st.sampled_from([0, 4])))
    owners = {one.id: one.owner_id for one in jobs}
    pool_of = {one.id: one.pool_id for one in vms}
    new: dict[tuple[int, int | None], set[int]] = defaultdict(set)
    for number, vm_id in found.items():
        owner = owners[number]
        if vm_id not in owned.has.get(owner, set()):
            for pool in (None, pool_of[vm_id]):
                new[owner, pool].add(vm_id)
    assert all(len(new[key]) <= most for key, most in left.items())
