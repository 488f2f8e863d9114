"""Limits of VMs per owner: of jobs and leases together, in all and in a pool, exact in a crowd."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, text

from remuda import BadInput, JobSpec, NoVmAvailable, Refused
from remuda.cli.app import root
from remuda.models import demand, lease_requests, owners, vm_quotas
from remuda.models.database import rows, transact
from remuda.models.dispatch import take_snapshot
from remuda.models.lease_requests import Wanted
from remuda.models.submit import owner_id
from remuda.owned_vms import OwnedVms
from tests.integration.builders import assert_sound, make_jobs, make_pool, make_vms, row, together
from tests.integration.deciding import place
from tests.integration.workbench import Workbench
from tests.unit.cli import stand_in


def vms_of(connection: Connection) -> Counter[tuple[str, str]]:
    """Return how many VMs each owner has in each pool, by its jobs and leases."""
    found = rows(
        connection,
        """SELECT DISTINCT o.name AS owner, p.name AS pool, v.id FROM leases l
           JOIN owners o ON o.id = l.owner_id JOIN vms v ON v.id = l.vm_id
           JOIN pools p ON p.id = v.pool_id WHERE l.released_at IS NULL""",
    )
    return Counter((r["owner"], r["pool"]) for r in found)


@pytest.mark.parametrize("isolation", ["shared", "owner"])
def test_they_are_exact_in_a_crowd(engine: Engine, isolation: str) -> None:
    """Four dispatchers and four who lease, at once."""
    with engine.begin() as connection:
        a, b = (
            make_pool(connection, name, slots_per_vm=4, isolation=isolation) for name in ("a", "b")
        )
        for pool in (a, b):
            make_vms(connection, pool, 6)
            for owner in ("all", "one", "free"):
                make_jobs(connection, pool, 20, owner=owner)
        owners.change(connection, "all", {"max_vms": 3})
        owners.change(connection, "one", {"max_vms": 1}, pool_id=a)

    def lease() -> None:
        for owner in ("all", "one"):
            wanted = Wanted(pool_ids=(a, b), owner=owner)
            transact(engine, lambda c, w=wanted: lease_requests.request(c, w))  # type: ignore[misc]

    def jobs() -> None:
        for _ in range(3):
            transact(engine, place)

    together(*[jobs, lease] * 4)
    with engine.begin() as connection:
        found = vms_of(connection)
        assert 0 < found["all", "a"] + found["all", "b"] <= 3
        assert found["one", "a"] <= 1
        assert found["one", "b"] > 0
        assert_sound(connection)
    transact(engine, place)
    with engine.begin() as connection:  # and what they let it have it gets, sooner or later
        found = vms_of(connection)
        assert found["all", "a"] + found["all", "b"] <= 3
        connection.execute(text("UPDATE owners SET max_vms = NULL"))
        connection.execute(text("DELETE FROM quotas"))
        place(connection)
        more = vms_of(connection)
        assert more["free", "a"] >= found["free", "a"]


def test_a_limit_of_a_pool_holds_for_jobs_too(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, max_vms_per_owner=2)
        make_vms(connection, pool, 4)
        for owner in ("ann", "ben"):
            make_jobs(connection, pool, 9, owner=owner)
        assert len(place(connection)) >= 4
        assert set(vms_of(connection).values()) == {2}
        assert place(connection) == []
        assert_sound(connection)


def test_a_limit_that_is_reached_makes_no_pool_grow(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4, instance_count=9)
        make_vms(connection, pool)
        make_jobs(connection, pool, 50, owner="alice")
        make_jobs(connection, pool, 3, owner="bob")
        owners.change(connection, "alice", {"max_vms": 2}, pool_id=pool)
        slots, _ = demand.demand_of(connection, row(connection, "pools", pool))
        assert slots == 2 * 4 + 3
        owners.change(connection, "alice", {"max_vms": 1}, pool_id=pool)
        owners.change(connection, "bob", {"max_vms": 0})
        assert len(place(connection)) == 4
        slots, _ = demand.demand_of(connection, row(connection, "pools", pool))
        assert slots == 0


@pytest.mark.parametrize(
    "limit", [("ann", {"max_vms": 1}), ("team", {"max_vms": 1}), ("ann", {"max_slots": 2})]
)
def test_at_a_limit_in_one_pool_another_one_of_the_jobs_grows(
    engine: Engine, limit: tuple[str, dict[str, int]]
) -> None:
    with engine.begin() as connection:
        a, b = (
            make_pool(connection, name, slots_per_vm=2, instance_count=9) for name in ("a", "b")
        )
        make_vms(connection, a)
        make_jobs(connection, a, 2, owner="ann")
        owners.change(connection, "ann", {"group": "team"})
        owners.change(connection, limit[0], limit[1], pool_id=a)
        assert len(place(connection)) == 2
        for owner in ("ann", "bob"):
            for job in make_jobs(connection, a, 3, owner=owner):
                connection.execute(
                    text("UPDATE jobs SET pool_ids = :pools WHERE id = :id"),
                    {"id": job, "pools": [a, b]},
                )
        for wanted in ([a, b], [a], [b]):  # whichever are looked at
            found = demand.demands_of(connection, [row(connection, "pools", i) for i in wanted])
            assert {i: slots for i, (slots, _) in found.items()} == dict.fromkeys(wanted, 3)


def test_at_a_limit_in_one_pool_another_one_of_a_lease_grows(engine: Engine) -> None:
    with engine.begin() as connection:
        a, b = (
            make_pool(connection, name, slots_per_vm=1, instance_count=9) for name in ("a", "b")
        )
        make_vms(connection, a, 2)
        owners.change(connection, "ann", {"group": "team"})
        owners.change(connection, "team", {"max_vms": 1}, pool_id=a)
    for _ in range(2):
        wanted = Wanted(pool_ids=(a, b), owner="ann")
        transact(engine, lambda c, w=wanted: lease_requests.request(c, w, wait_s=60))  # type: ignore[misc]
    with engine.begin() as connection:
        pools = [row(connection, "pools", i) for i in (a, b)]
        assert [slots for slots, _ in demand.demands_of(connection, pools).values()] == [0, 1]


def test_jobs_that_came_after_the_locks_are_for_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their owner was not held: somebody else may just count its VMs."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        make_jobs(connection, pool, 1, owner="bob")
        owners.change(connection, "alice", {"max_vms": 1})
    lock = vm_quotas.lock

    def and_then(connection: Connection, pools: list[int], *, wait: bool = True) -> OwnedVms:
        found = lock(connection, pools, wait=wait)
        with engine.begin() as other:
            make_jobs(other, pool, 1, owner="alice")
        return found

    monkeypatch.setattr(vm_quotas, "lock", and_then)
    with engine.begin() as connection:
        snapshot = take_snapshot(connection, max_ahead=0)
        assert [job.owner_id for job in snapshot.jobs] == [owner_id(connection, "bob")]
    monkeypatch.setattr(vm_quotas, "lock", lock)
    with engine.begin() as connection:
        assert len(take_snapshot(connection, max_ahead=0).jobs) == 2


def test_who_is_just_counted_by_another_is_left_to_it(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        make_vms(connection, pool)
        make_jobs(connection, pool, 1, owner="alice")
        make_jobs(connection, pool, 1, owner="bob")
        owners.change(connection, "alice", {"max_vms": 1})
    with engine.connect() as first, engine.connect() as second:
        vm_quotas.lock(first, [pool])
        snapshot = take_snapshot(second, max_ahead=0, wait=False)
        assert [job.owner_id for job in snapshot.jobs] == [owner_id(second, "bob")]
        assert snapshot.owned.skipped
        second.rollback()
        first.rollback()
        assert len(take_snapshot(second, max_ahead=0, wait=False).jobs) == 2


def vms_of_group(connection: Connection, group: str) -> dict[str, set[int]]:
    """Return the VMs that the group's members together have, in all ("") and by pool."""
    found = rows(
        connection,
        """SELECT DISTINCT p.name AS pool, v.id FROM leases l
           JOIN owners o ON o.id = l.owner_id JOIN owners g ON g.id IN (o.id, o.group_id)
           JOIN vms v ON v.id = l.vm_id JOIN pools p ON p.id = v.pool_id
           WHERE l.released_at IS NULL AND g.name = :group""",
        group=group,
    )
    by: dict[str, set[int]] = defaultdict(set)
    for r in found:
        by[""].add(r["id"])
        by[r["pool"]].add(r["id"])
    return by


@pytest.mark.parametrize("isolation", ["shared", "owner"])
def test_what_members_share_is_exact_in_a_crowd(engine: Engine, isolation: str) -> None:
    """Two dispatchers of each pool and four who lease, for the members of a group."""
    with engine.begin() as connection:
        a, b = (
            make_pool(connection, name, slots_per_vm=2, isolation=isolation) for name in ("a", "b")
        )
        for pool in (a, b):
            make_vms(connection, pool, 6)
            for owner in ("ann", "ben", "team", "free"):
                make_jobs(connection, pool, 8, owner=owner)
        for member in ("ann", "ben"):
            owners.change(connection, member, {"group": "team"})
        owners.change(connection, "ben", {"max_vms": 2})
        owners.change(connection, "team", {"max_vms": 4})
        owners.change(connection, "team", {"max_vms": 1}, pool_id=a)

    def lease() -> None:
        for owner in ("ann", "ben", "team"):
            wanted = Wanted(pool_ids=(a, b), owner=owner)
            transact(engine, lambda c, w=wanted: lease_requests.request(c, w))  # type: ignore[misc]

    def jobs(pool: int) -> None:
        for _ in range(3):
            transact(engine, lambda c: place(c, pools=[pool]))

    crowd: list[Callable[[], None]] = [partial(jobs, a), partial(jobs, b), lease, lease]
    together(*crowd * 2)
    transact(engine, place)
    with engine.begin() as connection:  # and what they let it have it gets, sooner or later
        found = vms_of_group(connection, "team")
        assert (len(found["a"]), len(found[""])) == (1, 4)
        assert sum(n for (owner, _), n in vms_of(connection).items() if owner == "ben") <= 2
        assert_sound(connection)
        owners.change(connection, "team", {"max_vms": None})
        owners.change(connection, "team", {"max_vms": None}, pool_id=a)
        place(connection)
        if isolation == "shared":
            assert len(vms_of_group(connection, "team")[""]) > 4


def test_who_joins_a_group_that_is_then_over_its_limit_keeps_what_it_has(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, instance_count=9)
        make_vms(connection, pool, 4)
        for owner in ("ann", "ben"):
            make_jobs(connection, pool, 4, owner=owner)
        assert len(place(connection)) == 8
        make_jobs(connection, pool, 3, owner="ann")
        make_vms(connection, pool, 2)
        owners.change(connection, "team", {"max_vms": 3})
        for member in ("ann", "ben"):
            owners.change(connection, member, {"group": "team"})
        assert place(connection) == []
        assert len(vms_of_group(connection, "team")[""]) == 4
        assert demand.demand_of(connection, row(connection, "pools", pool))[0] == 0
        [told] = [o for o in owners.listing(connection, half_life_s=60) if o["name"] == "team"]
        assert (told["vms"], told["max_vms"]) == (4, 3)
        owners.change(connection, "team", {"max_vms": 5})
        assert demand.demand_of(connection, row(connection, "pools", pool))[0] == 2
        assert len(place(connection)) == 2
        assert_sound(connection)


def test_a_limit_of_a_pool_is_not_of_its_group_together(engine: Engine) -> None:
    """Everybody may have two, the group as an owner too, whatever its members have."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1, max_vms_per_owner=2)
        make_vms(connection, pool, 9)
        for owner in ("ann", "ben", "team"):
            make_jobs(connection, pool, 4, owner=owner)
        for member in ("ann", "ben"):
            owners.change(connection, member, {"group": "team"})
        owners.change(connection, "team", {"max_vms": 5})
        assert len(place(connection)) == 5
        assert set(vms_of(connection).values()) <= {1, 2}
        owners.change(connection, "team", {"max_vms": 9})
        assert len(place(connection)) == 1
        assert set(vms_of(connection).values()) == {2}


def test_who_joins_between_the_locks_and_the_count_is_for_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        make_jobs(connection, pool, 1, owner="ann")
        make_jobs(connection, pool, 1, owner="bob")
        owners.change(connection, "ann", {"max_vms": 1})
        owners.change(connection, "team", {"max_vms": 1})
    limits = vm_quotas.limits

    def joined(*given: Any) -> Any:
        with engine.begin() as other:
            owners.change(other, "ann", {"group": "team"})
        return limits(*given)

    monkeypatch.setattr(vm_quotas, "limits", joined)
    with engine.begin() as connection:
        snapshot = take_snapshot(connection, max_ahead=0)
        assert [job.owner_id for job in snapshot.jobs] == [owner_id(connection, "bob")]
    monkeypatch.setattr(vm_quotas, "limits", limits)
    with engine.begin() as connection:
        assert len(take_snapshot(connection, max_ahead=0).jobs) == 2


def test_it_is_told_that_it_is_the_groups_limit(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.pool(vms=2, slots_per_vm=1)
    with bench.client() as client:
        for member in ("alice", "bob"):
            client.set_owner(member, group="team")
        stand_in(monkeypatch, client)
        said = CliRunner().invoke(root, ["owner", "set", "team", "--max-vms", "1"]).output
        assert said == "owner team: max vms 1\n"
        with client.acquire(pools=["herd"], owner="bob"):
            listed = CliRunner().invoke(root, ["owner", "list"]).output.splitlines()
            vms = {
                line.split()[0]: line[listed[0].index("QUOTAS") :].split() for line in listed[1:]
            }
            assert vms["bob"][0] == "1"
            assert vms["team"][:2] == ["1", "1"]  # VMS, MAX VMS
            with pytest.raises(NoVmAvailable, match=r"group team has as many VMs .*max_vms 1\)"):
                client.acquire(pools=["herd"], owner="alice")
            job = client.submit(JobSpec("true"), pool="herd")
            [reason] = [r for r in client.why(job).reasons if r.kind == "quota"]
            told = "Owner team, its owner's group, has as many VMs as it may (max_vms 1)"
            assert told in reason.text
            assert reason.blocks
            told_of = {owner["name"]: owner["vms"] for owner in client.owners()}
            assert told_of == {"alice": 0, "bob": 1, "team": 1}
            client.set_owner("team", max_vms=None)
            client.set_owner("team", max_vms=1, pool="herd")
            [reason] = [r for r in client.why(job).reasons if r.kind == "quota"]
            assert "group, has as many VMs of pool herd as it may (max_vms 1)" in reason.text
            client.set_owner("alice", group=None)
            assert not [r for r in client.why(job).reasons if r.kind == "quota"]
            client.acquire(pools=["herd"], owner="alice").release()
        client.set_owner("team", max_vms=0)
        with pytest.raises(Refused, match=r"group team may have no VM \(max_vms is 0\)"):
            client.acquire(pools=["herd"], owner="bob", timeout=5)


def test_it_is_told_why_a_job_and_a_lease_wait(bench: Workbench) -> None:
    bench.pool(vms=2, slots_per_vm=1)
    with bench.client() as client:
        with pytest.raises(BadInput, match="weight"):
            client.set_owner("alice", pool="herd", weight=2)
        client.set_owner("alice", pool="herd", max_vms=1)
        [told] = [owner for owner in client.owners() if owner["name"] == "alice"]
        assert told["quotas"] == [
            {"pool": "herd", "max_slots": None, "max_queued": None, "max_vms": 1}
        ]
        with client.acquire(pools=["herd"], owner="alice"):
            with pytest.raises(NoVmAvailable, match=r"as many VMs .*max_vms in the pool 1"):
                client.acquire(pools=["herd"], owner="alice")
            job = client.submit(JobSpec("true"), pool="herd")
            reasons = [reason.text for reason in client.why(job).reasons]
            assert any("has as many VMs of pool herd as it may (max_vms 1)" in r for r in reasons)
            client.set_owner("alice", pool="herd", max_vms=None)
            reasons = [reason.text for reason in client.why(job).reasons]
            assert not any("as many VMs" in r for r in reasons)
        client.set_owner("alice", pool="herd", max_vms=0)
        with pytest.raises(
            Refused, match=r"may have no VM of these pools \(max_vms in the pool is 0"
        ):
            client.acquire(pools=["herd"], owner="alice", timeout=5)
