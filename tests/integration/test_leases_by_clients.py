"""Leases as clients have them: which pool, how long, until when; woken, revoked, held back."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text

from remuda import BadInput, NoVmAvailable, Refused, StaleHolder
from remuda.errors import IllegalTransition, UnknownLease
from remuda.models import lease_requests, leases
from remuda.models.states import VmState
from remuda.tasks import leasing
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.noop import NoopProvider
from tests.integration.builders import (
    make_pool,
    make_vms,
    row,
    state,
)
from tests.integration.holding import free, hold, lease
from tests.integration.workbench import Workbench
from tests.system import eventually


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
        eventually("it waits", client.lease_requests)
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
        eventually("it waits", client.lease_requests)
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
        eventually("it listens", lambda: client._context.leases._next_at > 0)
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
        one, two = hold(connection, pool), hold(connection, pool)
        free(connection, one)
        assert leases.due_releases(connection) == []  # it is in use still
        free(connection, two)
        assert leases.due_releases(connection) == [vm]
        assert lease(connection, pool) is None
    runtime = Runtime(bench.settings)
    try:
        assert leasing.release_vm(runtime, vm)
        assert not leasing.release_vm(runtime, vm)
        assert called == [f"local-{vm}"]
        with bench.engine.begin() as connection:
            free(connection, hold(connection, pool))

        def fails(self: NoopProvider, vm: str) -> None:
            raise BadInput("no")

        monkeypatch.setattr(NoopProvider, "release", fails)
        assert not leasing.release_vm(runtime, vm)
    finally:
        runtime.close()
    with bench.engine.begin() as connection:
        assert state(connection, "vm", vm) == VmState.STOPPING
        assert "made ready" in row(connection, "vms", vm)["error"]


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
