"""Waiting for a lease: order, reasons, limits, reuse, health, and what ends a wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda import BadInput, NoVmAvailable, Refused, StaleHolder
from remuda.client.reasons import waiting_reasons
from remuda.errors import IllegalTransition, UnknownLease
from remuda.models import explanation, lease_requests, leases, owners, sizing
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from remuda.tasks import leasing
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.noop import NoopProvider
from tests.integration.builders import (
    age,
    assert_sound,
    dispatch,
    make_jobs,
    make_pool,
    make_vms,
    make_wish,
    row,
    state,
)
from tests.integration.workbench import Workbench


def _lease(connection: Connection, *pools: int, **more: Any) -> dict[str, Any] | None:
    wanted = {"owner": "bob", "sandbox": "", "slots": 1, "ttl_s": 60.0, **more}
    return leases.acquire(connection, pool_ids=pools, **wanted)


def _held(connection: Connection, *pools: int, **more: Any) -> dict[str, Any]:
    found = _lease(connection, *pools, **more)
    assert found is not None
    return found


def _free(connection: Connection, lease: dict[str, Any]) -> leases.Released:
    return leases.release(connection, lease["id"], lease["token"])


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.01)


def test_who_waits_longest_comes_first_and_nobody_overtakes(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
        held = _held(connection, pool)
        first, second = (make_wish(connection, pool, owner=name) for name in ("ann", "ben"))
        urgent = make_wish(connection, pool, owner="eve", priority=1)
        for served in (urgent, first, second):
            _free(connection, held)
            assert _lease(connection, pool, owner="quick") is None  # others wait for it
            assert lease_requests.serve(connection) == 1
            answer = lease_requests.pick_up(connection, served, stay=True)
            assert answer.lease is not None
            held = dict(answer.lease)
        assert lease_requests.waiting(connection) == []


def test_what_nobody_can_be_given_holds_nobody_up(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, isolation="owner")
        make_vms(connection, pool, 2)
        _held(connection, pool, slots=1)
        _held(connection, pool, owner="full", slots=2)
        owners.change(connection, "full", {"max_vms": 1})
        stuck = [make_wish(connection, pool, owner="full") for _ in range(20)]
        assert lease_requests.serve(connection) == 0
        told = {r["id"]: r["reason"] for r in lease_requests.waiting(connection)}
        assert told == dict.fromkeys(stuck, "owner full has as many VMs as it may (max_vms 1)")
        # One who can be served is, at once, though twenty came before.
        mine = make_wish(connection, pool, owner="bob")
        assert lease_requests.serve(connection) == 1
        assert lease_requests.pick_up(connection, mine, stay=True).lease is not None
        # And no pool grows for those whose owner may have no more.
        [demand] = sizing.due_pools(connection)
        assert demand.queued_slots == 0


def _waited(connection: Connection, wish: int, seconds: float) -> None:
    query = (
        "UPDATE lease_requests SET created_at = now() - make_interval(secs => :s) WHERE id = :id"
    )
    connection.execute(text(query), {"s": seconds, "id": wish})


def test_a_whole_vm_is_had_under_a_stream_of_small_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool, 2)
        held = [_held(connection, pool) for _ in range(4)]
        whole = make_wish(connection, pool, owner="ann", slots=None)

        def turn() -> list[int]:
            """The oldest small lease ends, and the next is waited for already."""
            wish = make_wish(connection, pool)
            _free(connection, held.pop(0))
            lease_requests.serve(connection)
            answer = lease_requests.pick_up(connection, wish, stay=True)
            held.extend([dict(answer.lease)] if answer.lease else [])
            return [lease["vm_id"] for lease in held]

        for _ in range(5):  # each slot that comes free is taken again
            assert len(turn()) == 4
        _waited(connection, whole, lease_requests.RESERVE_AFTER_S)
        assert len(turn()) < 4  # from here on one of the VMs is kept
        [told, *_] = lease_requests.waiting(connection)
        assert (told["id"], "is kept for it" in told["reason"]) == (whole, True)
        kept = row(connection, "lease_requests", whole)["vm_id"]
        turns = 0
        while kept in [lease["vm_id"] for lease in held]:  # nothing new comes there
            turn()
            turns += 1
            assert turns <= 4
        answer = lease_requests.pick_up(connection, whole, stay=True)
        assert answer.lease is not None
        assert (answer.lease["vm_id"], answer.lease["slots"]) == (kept, 2)
        assert_sound(connection)


def test_jobs_leave_alone_what_is_kept(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        held = _held(connection, pool)
        whole = make_wish(connection, pool, owner="ann", slots=None, ttl_s=60.0)
        _waited(connection, whole, 1000)
        lease_requests.serve(connection)
        [job] = make_jobs(connection, pool)
        assert dispatch(connection) == []
        facts = explanation.explain_facts(connection, job)
        told = [reason.text for reason in waiting_reasons(facts)]
        assert any("the freest has 0, 1 too few" in text for text in told)
        assert any("1 VM of pool herd kept for a lease" in text for text in told)
        assert lease_requests.pick_up(connection, whole, stay=False).lease is None  # it gives up
        assert len(dispatch(connection)) == 1
        _free(connection, held)
        assert_sound(connection)


def test_of_a_short_wait_a_third_is_long(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        _held(connection, pool)
        answer = lease_requests.request(
            connection, lease_requests.Wanted(pool_ids=(pool,), owner="ann", slots=None), wait_s=6.0
        )
        assert answer.waits is not None
        for age_s, kept in ((1.0, False), (2.5, True)):
            query = """UPDATE lease_requests SET created_at = now() - make_interval(secs => :s),
                         deadline_at = now() + make_interval(secs => 6 - :s)"""
            connection.execute(text(query), {"s": age_s})
            lease_requests.serve(connection)
            found = row(connection, "lease_requests", answer.waits)["vm_id"]
            assert (found is not None) is kept


def test_the_pool_that_can_grow_grows_for_a_request_once(engine: Engine) -> None:
    with engine.begin() as connection:
        full = make_pool(connection, "full", instance_count=0)
        spare = make_pool(connection, "spare", instance_count=2)
        make_wish(connection, full, spare, slots=None)
        assert lease_requests.serve(connection) == 0
        demand = {d.pool["name"]: d.queued_slots for d in sizing.due_pools(connection)}
        assert demand == {"full": 0, "spare": 2}
        make_vms(connection, spare)
        assert lease_requests.serve(connection) == 1
        assert [d.queued_slots for d in sizing.due_pools(connection)] == [0, 0]


def test_a_vm_that_is_not_well_or_not_heard_of_is_skipped(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [vm] = make_vms(connection, pool)
        for change, undo in [
            ("check_failures = 1", "check_failures = 0"),
            ("listening_since = now() + interval '1 s'", "listening_since = NULL"),
            ("heartbeat_at = now() - interval '1 day'", "heartbeat_at = now()"),
            ("release_due_at = now()", "release_due_at = NULL"),
            ("draining = true", "draining = false"),
        ]:
            connection.execute(text(f"UPDATE vms SET {change} WHERE id = {vm}"))
            assert _lease(connection, pool) is None, change
            wish = make_wish(connection, pool)
            assert lease_requests.serve(connection) == 0
            assert lease_requests.pick_up(connection, wish, stay=False).reason, change
            connection.execute(text(f"UPDATE vms SET {undo} WHERE id = {vm}"))
            _free(connection, _held(connection, pool))
        # Who runs no jobs has no runner to be heard.
        connection.execute(text("UPDATE vms SET heartbeat_at = NULL"))
        connection.execute(text("UPDATE pools SET backend = 'none'"))
        _held(connection, pool)


def test_reuse_ends_after_so_many_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="sandbox", slots_per_vm=1, reuse_max_count=1)
        [vm] = make_vms(connection, pool)
        assert not _free(connection, _held(connection, pool)).over
        assert _lease(connection, pool, owner="eve") is None  # it is bob's
        released = _free(connection, _held(connection, pool))
        assert list(released.over) == [vm]
        assert _lease(connection, pool) is None
        assert leases.end_vms(connection, released.over) == [vm]
        assert state(connection, "vm", vm) == "STOPPING"


def test_reuse_ends_after_its_time_and_its_opportunity(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(
            connection, isolation="sandbox", slots_per_vm=1, reuse_max_s=600, reuse_opportunity_s=45
        )
        old, idle, clean = make_vms(connection, pool, 3)
        for vm in (old, idle):
            assert _held(connection, pool, sandbox=f"s{vm}")["vm_id"] == vm
        for lease in rows(connection, "SELECT id, token FROM leases"):
            assert not leases.release(connection, lease["id"], lease["token"]).over
        assert leases.end_worn(connection) == []
        age(connection, "vms", [old], "leased_at", 601)
        age(connection, "vms", [idle], "busy_at", 46)
        assert _held(connection, pool, sandbox=f"s{old}")["vm_id"] == clean
        assert leases.end_worn(connection) == [old, idle]
        assert_sound(connection)


def test_no_opportunity_is_no_reuse(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="owner", slots_per_vm=1, reuse_opportunity_s=0)
        [vm] = make_vms(connection, pool)
        assert list(_free(connection, _held(connection, pool)).over) == [vm]


def test_a_dead_holder_holds_nothing_for_long(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
        lost = _held(connection, pool)
        wish = make_wish(connection, pool, owner="ann")
        age(connection, "leases", [lost["id"]], "expires_at", 61)
        assert leases.expire(connection) == 1
        assert lease_requests.serve(connection) == 1
        got = lease_requests.pick_up(connection, wish, stay=True).lease
        assert got is not None
        assert not _free(connection, lost).done  # the dead one comes back, too late
        with pytest.raises(StaleHolder):
            leases.renew(connection, lost["id"], lost["token"], ttl_s=60)
        assert row(connection, "leases", got["id"])["ended"] is None


def test_a_dead_waiter_is_passed_over_and_what_it_was_given_is_short(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool, 2)
        dead = make_wish(connection, pool, ttl_s=3600.0)
        age(connection, "lease_requests", [dead], "expires_at", 61)
        gone = make_wish(connection, pool, ttl_s=3600.0)
        assert lease_requests.serve(connection) == 1
        found = rows(connection, "SELECT expires_at - now() AS left FROM leases")
        assert [lease["left"].total_seconds() for lease in found] == [30]
        assert lease_requests.forget_dead(connection) == 1
        assert [r["id"] for r in rows(connection, "SELECT id FROM lease_requests")] == [gone]


def test_tags_choose_the_pools_and_their_worth_the_order(bench: Workbench) -> None:
    bench.pool("slow", tags=["arm64"])
    bench.pool("fast", tags=["big"], tag_priorities={"arm64": 10})
    bench.pool("other", tags=["amd64"])
    with bench.client() as client:
        with client.acquire(pools=["slow", "fast", "other"], tags=["arm64"]) as lease:
            assert lease.vm.name.startswith("fast-")
        with client.acquire(tags=["amd64"]) as lease:
            assert lease.vm.name.startswith("other-")
        began = time.monotonic()
        with pytest.raises(Refused, match="in vain"):
            client.acquire(pools=["slow"], tags=["riscv"], timeout=3600)
        with pytest.raises(BadInput, match="slots_per_vm"):
            client.acquire(pools=["slow"], slots=99, timeout=3600)
        client.set_owner("alice", max_vms=0)
        with pytest.raises(Refused, match="max_vms is 0"):
            client.acquire(pools=["slow"], timeout=3600)
        assert time.monotonic() - began < 30  # nobody waited for what can never be


def test_a_wait_ends_with_its_deadline_the_reason_told(bench: Workbench) -> None:
    bench.pool(vms=1)
    with bench.client() as client, client.acquire(pools=["herd"], slots=None):
        with pytest.raises(NoVmAvailable, match=r"in 0.2 s: of the VMs of herd some are in use"):
            client.acquire(pools=["herd"], timeout=0.2)
        assert client.lease_requests() == []


def test_it_is_woken_by_a_release_in_another_client(bench: Workbench) -> None:
    bench.pool(vms=1)
    found: list[str] = []
    with bench.client() as client, bench.client() as other:
        held = other.acquire(pools=["herd"], slots=2)
        waiter = threading.Thread(
            target=lambda: found.append(client.acquire(pools=["herd"], timeout=60).vm.name)
        )
        waiter.start()
        _until(client.lease_requests)
        [waits] = client.lease_requests()
        assert (waits["owner"], waits["pools"]) == ("alice", ["herd"])
        held.release()
        waiter.join(timeout=20)
        assert found == ["herd-1"]


def test_a_wait_is_given_up_when_its_pools_are_closed(bench: Workbench) -> None:
    bench.pool(vms=0)
    told: list[str] = []

    def wait() -> None:
        with bench.client() as client, pytest.raises(Refused) as error:
            client.acquire(pools=["herd"], timeout=60)
        told.append(str(error.value))

    waiter = threading.Thread(target=wait)
    waiter.start()
    with bench.client() as client:
        _until(client.lease_requests)
        client.pool("herd").close()
    with bench.engine.begin() as connection:
        lease_requests.serve(connection)
    waiter.join(timeout=20)
    assert "none of its pools is open" in told[0]


def test_a_revoked_lease_is_lost_at_once(bench: Workbench) -> None:
    bench.pool(vms=1)
    with bench.client() as client, bench.client() as operator:
        lease = client.acquire(pools=["herd"], ttl_s=3600, task_id="t-1", labels={"a": "b"})
        [known] = operator.leases(task_id="t-1")
        assert (known["id"], known["labels"], "token" in known) == (lease.id, {"a": "b"}, False)
        assert [vm.name for vm in operator.vms(task_id="t-1")] == ["herd-1"]
        _until(lambda: client._context.leases._next_at > 0)  # it listens
        operator.revoke_lease(lease.id)
        assert lease.wait_lost(20)
        assert not lease.release()
        with pytest.raises(IllegalTransition, match="revoked"):
            operator.revoke_lease(lease.id)
        with pytest.raises(UnknownLease):
            operator.revoke_lease(999)


def test_leases_by_id_and_token(bench: Workbench) -> None:
    bench.pool(vms=1)
    with bench.client() as client:
        lease = client.acquire(pools=["herd"])
        lease.detach()
        client.renew_lease(lease.id, lease.token, ttl_s=60)
        other = "00000000-0000-0000-0000-000000000000"
        assert not client.release_lease(lease.id, other)
        with pytest.raises(BadInput):
            client.release_lease(lease.id, "a secret")
        with pytest.raises(StaleHolder):
            client.renew_lease(lease.id, other)
        assert client.release_lease(lease.id, lease.token)


def test_vms_are_found_by_what_is_known_of_them(bench: Workbench) -> None:
    bench.pool("own", vms=2, isolation="owner")
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE vms SET private_ip = '10.0.0.' || id"))
    with bench.client() as client:
        lease = client.acquire(pools=["own"], build_id="b-7")
        assert [vm.id for vm in client.vms(ip=f"10.0.0.{lease.vm.id}")] == [lease.vm.id]
        assert [vm.id for vm in client.vms(owner="alice")] == [lease.vm.id]
        assert [vm.id for vm in client.vms(build_id="b-7")] == [lease.vm.id]
        assert len(client.vms(ready=True, pool="own", state=["RUNNING"])) == 2
        assert client.start_vm_termination(lease.vm.name, allowed_pre_state="RUNNING")
        with pytest.raises(IllegalTransition, match="STOPPING"):
            client.start_vm_termination(lease.vm.name)
        assert not client.start_vm_termination(lease.vm.name, allowed_pre_state="STOPPING")
        assert lease.wait_lost(20)
        assert client.write_pool_info("own", a=1, b="x") == {"a": 1, "b": "x"}
        assert client.write_pool_info("own", a=None) == {"b": "x"} == client.pool_info("own")
        with pytest.raises(BadInput):
            client.write_pool_info("own", a="x" * 100_000)


def test_a_vm_is_made_ready_for_its_next_user(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its provider's hook runs once, in a task, before others get it; a VM it fails on is ended."""
    called: list[str] = []
    monkeypatch.setattr(NoopProvider, "release", lambda self, vm: called.append(vm))
    with bench.engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        connection.execute(text("UPDATE pools SET provider = 'noop', backend = 'noop'"))
        [vm] = make_vms(connection, pool)
        connection.execute(text("UPDATE vms SET release_hook = true"))
        one, two = _held(connection, pool), _held(connection, pool)
        _free(connection, one)
        assert leases.due_releases(connection) == []  # it is in use still
        _free(connection, two)
        assert leases.due_releases(connection) == [vm]
        assert _lease(connection, pool) is None
    runtime = Runtime(bench.settings)
    try:
        assert leasing.release_vm(runtime, vm)
        assert not leasing.release_vm(runtime, vm)
        assert called == [f"local-{vm}"]
        with bench.engine.begin() as connection:
            _free(connection, _held(connection, pool))

        def fails(self: NoopProvider, vm: str) -> None:
            raise BadInput("no")

        monkeypatch.setattr(NoopProvider, "release", fails)
        assert not leasing.release_vm(runtime, vm)
    finally:
        runtime.close()
    with bench.engine.begin() as connection:
        assert state(connection, "vm", vm) == VmState.STOPPING
        assert "made ready" in row(connection, "vms", vm)["error"]


def test_leases_end_with_their_vm(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        lease = _held(connection, pool)
        move_vm(connection, vm, VmState.STOPPING)
        assert row(connection, "leases", lease["id"])["ended"] == "gone"


@pytest.mark.parametrize("table", ["owners", "pools"])
def test_a_used_up_budget_holds_leases_back(bench: Workbench, table: str) -> None:
    def stop(why: str | None) -> None:
        with bench.engine.begin() as connection:
            statement = text(f"UPDATE {table} SET budget_stop = :why")
            connection.execute(statement, {"why": why})

    bench.pool()
    with bench.client() as client:
        with client.acquire(pools=["herd"]):  # what is held goes on
            stop("the budget is used up")
            for timeout in (None, 0.1):
                with pytest.raises(NoVmAvailable, match="nothing is leased: the budget is used up"):
                    client.acquire(pools=["herd"], timeout=timeout)
            [held] = client.leases()
            assert held["released_at"] is None
        stop(None)
        client.acquire(pools=["herd"]).release()
