"""Flex pools make room for others' work, against a real database: who goes, who comes back, when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from remuda import Client
from remuda.config import load_settings
from remuda.errors import BadInput
from remuda.models import exits, preempting, retiring
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.vm_life import insert_vms, move_vm
from remuda.tasks import recording, sizing
from remuda.tasks import retiring as retire
from tests.integration.builders import OWNER, dispatch, make_jobs, make_pool
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard
from tests.invariants import INVARIANTS

__all__ = ["yard"]
PREEMPTION = [name for name in INVARIANTS if "reempt" in name or "reserved" in name]


@pytest.fixture
def herd(yard: Yard) -> Iterator[Yard]:
    """A flex pool of four VMs of two slots, which is all that pools may have together."""
    yard.pool(instance_count=4, slots_per_vm=2, scheduling_type="flex")
    for vm in yard.vms(4):
        assert yard.launch(vm)["state"] == "RUNNING"
    kept = yard.runtime.settings
    yard.runtime.settings = load_settings(**{**kept.model_dump(), "max_total_slots": 8})
    yield yard
    assert len(PREEMPTION) == 3
    for name in PREEMPTION:
        assert not yard.runtime.transact(partial(rows, statement=INVARIANTS[name])), name


def all_rows(yard: Yard, query: str, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in yard.runtime.transact(lambda c: rows(c, query, **values))]


def another(yard: Yard, name: str = "urgent", **fields: Any) -> int:
    more = {"slots_per_vm": 2, "is_elastic": True, "elastic_maximum_slots": 8, **fields}
    return yard.runtime.transact(lambda c: make_pool(c, name, **more))


def jobs(yard: Yard, pool: int, count: int, **fields: Any) -> None:
    yard.runtime.transact(lambda c: make_jobs(c, pool, count, **fields))


def work(yard: Yard) -> dict[int, int]:
    """Fill the flex pool with jobs that run, later ones for less time; return their VMs by attempt."""

    def place(connection: Any) -> dict[int, int]:
        make_jobs(connection, yard.pool_id, 8)
        placed = dispatch(connection)
        for attempt in placed:
            age_s = 100.0 - 10 * attempt.vm_id
            exits.record_starts(connection, attempt.vm_id, {attempt.attempt_id: age_s})
        return {attempt.attempt_id: attempt.vm_id for attempt in placed}

    return yard.runtime.transact(place)


def preempted(yard: Yard) -> list[int]:
    query = "SELECT id FROM vms WHERE preempted_for IS NOT NULL ORDER BY id"
    return [row["id"] for row in all_rows(yard, query)]


def ended(yard: Yard, vm: int, attempts: list[int], **how: Any) -> None:
    """Have the VM's runner say that attempts ended."""
    now = time.time()
    entries = [
        {
            "n": n,
            "t": "exit",
            "a": a,
            "e": 1,
            "why": "CANCELLED",
            "sig": 15,
            "s": now,
            "x": now,
            **how,
        }
        for n, a in enumerate(attempts, 1)
    ]
    batch = recording.Batch()
    batch.add({"now": now, "entries": entries}, came_at=time.monotonic())
    recording.record(yard.runtime, vm, batch, None)


def test_as_many_make_room_as_are_needed_and_their_jobs_go_first(herd: Yard) -> None:
    where = work(herd)
    urgent = another(herd)
    jobs(herd, urgent, 2)
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]  # the youngest work: least is lost
    mine = [attempt for attempt, vm in where.items() if vm == 4]
    assert ("remuda.cancel_job", 4, mine) in herd.sent
    assert herd.row("pools", urgent)["short_slots"] == 2
    with Client(herd.runtime.settings, owner="alice") as client:
        told = {pool.name: " ".join(pool.explain()) for pool in client.pools()}
    assert "It is flex: its VMs make room" in told["herd"]
    assert "needs 2 slots that only others keep from it, since 2" in told["urgent"]
    for _ in range(2):
        sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]
    assert herd.sent.count(("remuda.cancel_job", 4, mine)) == 3  # until it is heard, whoever dies
    ended(herd, 4, mine[:1])
    ended(herd, 4, mine[1:], why="OK", st=0, sig=None, n=9)  # in its grace it came to its end
    found = all_rows(herd, "SELECT a.reason, j.* FROM attempts a JOIN jobs j ON j.id = a.job_id"
                           " WHERE a.id = ANY(:ids) ORDER BY a.id", ids=mine)  # fmt: skip
    assert [(row["state"], row["displaced"]) for row in found] == [
        ("NEW", True),
        ("TERMINATED", False),
    ]
    attempts = all_rows(herd, "SELECT * FROM attempts WHERE id = ANY(:ids) ORDER BY id", ids=mine)
    assert [row["reason"] for row in attempts] == ["PREEMPTED", "OK"]
    assert "pool urgent needs its place" in attempts[0]["message"]
    assert (found[0]["failures"], found[0]["losses"]) == (0, 0)
    sizing.resize_pools(herd.runtime)
    assert herd.vm(4)["state"] == "STOPPING"
    assert ("remuda.terminate_vm", 4) in herd.sent
    herd.runtime.transact(lambda c: move_vm(c, 4, VmState.HALTED))
    sizing.resize_pools(herd.runtime)
    there = all_rows(herd, "SELECT pool_id FROM vms WHERE state = 'NEW'")
    assert there == [{"pool_id": urgent}]  # not the flex pool, which lacks one, too
    assert herd.row("pools", urgent)["short_slots"] == 0
    for _ in range(3):
        sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]
    assert "8 slots over several pools" in herd.the_pool["decision"]["reason"]


def test_the_flex_pool_leaves_room_to_who_waits_for_it(herd: Yard) -> None:
    work(herd)
    urgent = another(herd)
    jobs(herd, urgent, 2)
    sizing.resize_pools(herd.runtime)
    herd.runtime.transact(lambda c: recording.lose_attempts(c, 4, "gone"))
    herd.runtime.transact(lambda c: move_vm(c, 4, VmState.STOPPING))
    herd.runtime.transact(lambda c: move_vm(c, 4, VmState.HALTED))
    sizing.resize_pools(herd.runtime)
    said = herd.the_pool["decision"]["reason"]
    assert "2 kept for others whose work goes first" in said
    assert all_rows(herd, "SELECT pool_id FROM vms WHERE state = 'NEW'") == [{"pool_id": urgent}]


def test_at_the_end_of_the_grace_what_is_left_is_requeued(herd: Yard) -> None:
    where = work(herd)
    jobs(herd, another(herd), 2)
    sizing.resize_pools(herd.runtime)
    left_s = all_rows(
        herd, "SELECT extract(epoch FROM interruption_at - now()) AS s FROM vms WHERE id = 4"
    )[0]["s"]
    assert 30 < left_s <= 40  # the grace, and what a runner takes to tell
    herd.sql("UPDATE vms SET interruption_at = now() WHERE id = 4")
    retire.retire_vms(herd.runtime)
    assert herd.vm(4)["state"] == "STOPPING"
    lost = [attempt for attempt, vm in where.items() if vm == 4]
    found = all_rows(herd, "SELECT a.state, a.reason, j.displaced, j.losses FROM attempts a"
                           " JOIN jobs j ON j.id = a.job_id WHERE a.id = ANY(:ids)", ids=lost)  # fmt: skip
    assert found == [{"state": "LOST", "reason": "PREEMPTED", "displaced": True, "losses": 0}] * 2


def test_only_flex_and_only_what_is_needed(herd: Yard) -> None:
    jobs(herd, another(herd), 2)
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]  # idle: it is closed at once
    assert herd.vm(4)["state"] == "STOPPING"
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]
    herd.sql("UPDATE pools SET scheduling_type = 'on_demand' WHERE id = :id", id=herd.pool_id)
    jobs(herd, another(herd, "more"), 8)
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [4]
    herd.sql(
        """UPDATE pools SET scheduling_type = 'flex', short_slots = 0, short_since = NULL
           WHERE id = :id""",
        id=herd.pool_id,
    )


def test_what_is_leased_frozen_or_flex_itself_makes_no_difference(herd: Yard) -> None:
    jobs(herd, another(herd, "flexible", scheduling_type="flex"), 2)
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == []
    herd.sql("INSERT INTO leases (vm_id, owner_id, for_jobs, slots, token, expires_at)"
             " SELECT v.id, o.id, false, 2, gen_random_uuid(), now() + interval '1 h' FROM vms v,"
             " owners o WHERE o.name = :owner AND v.id > 1", owner=OWNER)  # fmt: skip
    jobs(herd, another(herd), 8)
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [1]


# ---- shelves


def host(address: str, **more: Any) -> dict[str, Any]:
    return {"address": address, **more}


def shelf(yard: Yard, name: str, hosts: list[dict[str, Any]], **fields: Any) -> int:
    def work(connection: Any) -> int:
        made = make_pool(connection, name, slots_per_vm=2, settings={"hosts": hosts}, **fields)
        connection.exec_driver_sql(f"UPDATE pools SET provider = 'static' WHERE id = {made}")
        return made

    return yard.runtime.transact(work)


def launched(connection: Any, *, vm: int, **fields: Any) -> None:
    for target in (VmState.SUBMITTED, VmState.RUNNING):
        move_vm(connection, vm, target, fields=fields)


def test_a_full_shelf_is_shared_like_a_limit(herd: Yard) -> None:
    herd.runtime.settings = load_settings(
        **{**herd.runtime.settings.model_dump(), "max_total_slots": None}
    )
    hosts = [host("a"), host("b")]
    flex = shelf(herd, "cheap", hosts, instance_count=2, scheduling_type="flex")
    herd.runtime.transact(lambda c: insert_vms(c, flex, 2))
    made = all_rows(herd, "SELECT id FROM vms WHERE pool_id = :pool ORDER BY id", pool=flex)
    for vm, where in zip(made, "ab", strict=True):
        fields = {"provider_id": f"{where}#0123456789ab"}
        herd.runtime.transact(partial(launched, vm=vm["id"], **fields))
    urgent = shelf(herd, "urgent", hosts, instance_count=1)
    herd.sql(
        """INSERT INTO offer_refusals (pool_id, offer, reason, refused_at, expires_at)
           VALUES (:pool, '', 'all 2 hosts are taken', now(), now() + interval '5 min')""",
        pool=urgent,
    )
    herd.sql("UPDATE pools SET paused_until = now() + interval '5 min' WHERE id = :id", id=urgent)
    sizing.resize_pools(herd.runtime)
    [gone] = preempted(herd)
    assert gone in {vm["id"] for vm in made}
    assert herd.vm(gone)["state"] == "STOPPING"
    sizing.resize_pools(herd.runtime)
    assert preempted(herd) == [gone]
    herd.runtime.transact(lambda c: move_vm(c, gone, VmState.HALTED))
    sizing.resize_pools(
        herd.runtime
    )  # the flex pool does not take it again; the other asks at once
    assert "waits for one, whose work goes first" in herd.row("pools", flex)["decision"]["reason"]
    assert herd.row("pools", urgent)["paused_until"] is None
    sizing.resize_pools(herd.runtime)
    there = all_rows(herd, "SELECT pool_id FROM vms WHERE state = 'NEW'")
    assert there == [{"pool_id": urgent}]
    sizing.resize_pools(herd.runtime)
    assert all_rows(herd, "SELECT pool_id FROM vms WHERE state = 'NEW'") == there


def test_hosts_of_a_group_are_reserved_in_all_pools(bench: Workbench) -> None:
    free, lab = host("10.0.0.1"), host("10.0.0.2", group="lab")
    with bench.client() as client:
        reserved: dict[str, Any] = {"scheduling_type": "Reserved", "reserved_group": "lab"}
        pool = client.create_pool("lab", provider="static", settings={"hosts": [lab]}, **reserved)
        assert (pool.scheduling_type, pool.reserved_group) == ("reserved", "lab")
        assert "the hosts of group lab for itself" in " ".join(pool.explain())
        client.create_pool("open", provider="static", settings={"hosts": [free, lab]})
        before = [pool.name for pool in client.pools()]
        for fields, message in WRONG_SHELVES:
            with pytest.raises(BadInput, match=message):
                client.create_pool("wrong", **{"provider": "static", **fields})
        assert [pool.name for pool in client.pools()] == before
        other = client.create_pool("other", provider="static", settings={"hosts": [free]})
        with pytest.raises(BadInput, match="has no group here, and group lab in pool lab"):
            other.set(settings={"hosts": [free, host("10.0.0.2")]})
        other.scheduling_type = "reserved"
        with pytest.raises(BadInput, match="reserved_group is missing"):
            other.commit()
        other.reserved_group = "lab"
        with pytest.raises(BadInput, match="none is of the reserved_group lab"):
            other.commit()
        other.settings = {"hosts": [lab]}
        other.commit()
        assert other.reserved_group == "lab"


WRONG_SHELVES: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"hosts": [host("10.0.0.2")]}}, "10.0.0.2 has no group here, and group lab in"),
    (
        {"settings": {"hosts": [host("10.0.0.2", group="x"), host("9")]}},
        "group x here, and group lab",
    ),
    ({"settings": {"hosts": [host("9", group="x")]}}, "none is without a group"),
    ({"settings": {"hosts": [host("9", group="a b")]}}, r"hosts\[0\].group must be a short name"),
    (
        {"settings": {"hosts": [host("9")]}, "scheduling_type": "reserved"},
        "reserved_group is missing",
    ),
    (
        {"settings": {"hosts": [host("9")]}, "reserved_group": "x"},
        "goes with scheduling_type reserved",
    ),
    (
        {"provider": "local", "scheduling_type": "reserved", "reserved_group": "x"},
        "needs given hosts",
    ),
    ({"provider": "local", "scheduling_type": "cheap"}, "scheduling_type must be one of flex"),
    ({"provider": "local", "scheduling_type": 7}, "scheduling_type must be one of flex"),
]


def test_who_waits_for_nothing_preempts_nothing(herd: Yard) -> None:
    assert herd.runtime.transact(preempting.wishes) == []
    retiring_pools = herd.runtime.transact(retiring.concerned_pools)
    assert retiring_pools == []
    assert len(herd.runtime.transact(preempting.flex_vms)) == 4
