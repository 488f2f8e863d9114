"""Leases through the client: a VM without a job, renewed while it is held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import text

from remuda import (
    BadInput,
    InstanceNotFound,
    JobSpec,
    NoVmAvailable,
    Refused,
    StaleHolder,
    UnknownPool,
)
from remuda.client import leases
from remuda.models import lease_requests
from remuda.models.database import rows
from tests.integration.builders import make_vms
from tests.integration.workbench import Workbench


def _requests(bench: Workbench) -> list[int]:
    with bench.engine.connect() as connection:
        found = rows(connection, "SELECT slots FROM lease_requests ORDER BY id")
        return [row["slots"] for row in found]


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.01)


def test_a_lease_holds_slots_until_it_is_released(bench: Workbench) -> None:
    bench.pool()
    with bench.engine.begin() as connection:
        connection.execute(
            text("""UPDATE vms SET private_ip = '127.0.0.1', address = '{"home": "/vms/herd-1"}'""")
        )
    with bench.client() as client:
        with client.acquire(pools=["herd"], sandbox="alice/project", ttl_s=900) as lease:
            assert (lease.vm.name, lease.vm.address) == ("herd-1", "127.0.0.1")
            assert (lease.vm.user, lease.vm.port) == (None, None)
            assert client.vm(lease.vm.id).leased_slots == 1
            with client.acquire(pools=["herd"]), pytest.raises(NoVmAvailable):
                client.acquire(pools=["herd"])
            until = lease.expires_at
            lease.renew()
            assert lease.expires_at > until
        assert client.vm(lease.vm.id).leased_slots == 0
        assert not lease.release()
        with pytest.raises(StaleHolder):
            lease.renew()


def test_an_address_with_a_host_is_for_ssh(bench: Workbench) -> None:
    bench.pool()
    with bench.engine.begin() as connection:
        connection.execute(
            text("""UPDATE vms SET address = '{"host": "10.0.0.7", "user": "debian"}'""")
        )
    with bench.client() as client, client.acquire(pools=["herd"]) as lease:
        assert (lease.vm.address, lease.vm.user, lease.vm.port) == ("10.0.0.7", "debian", 22)


def test_pools_are_tried_in_the_order_given(bench: Workbench) -> None:
    bench.pool("builders")
    bench.pool("spare")
    with bench.client() as client:
        first = client.acquire(pools=["spare", "builders"], slots=2)
        second = client.acquire(pools=["spare", "builders"], slots=2)
        assert [lease.vm.name.split("-")[0] for lease in (first, second)] == ["spare", "builders"]
        first.release()
        second.release()


def test_who_waits_makes_the_pool_grow_and_gets_the_vm_at_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_POLL_S", 3600.0)
    pool = bench.pool(vms=0)
    with bench.client() as client:
        found: list[leases.Lease] = []
        waiter = threading.Thread(
            target=lambda: found.append(client.acquire(pools=["herd"], slots=2, timeout=20))
        )
        waiter.start()
        _until(lambda: _requests(bench) == [2])
        with bench.engine.begin() as connection:
            make_vms(connection, pool)
        with bench.engine.begin() as connection:
            assert lease_requests.serve(connection) == 1
        waiter.join(timeout=20)
        assert found[0].vm.name == "herd-1"
        assert _requests(bench) == []
        later: list[leases.Lease] = []
        waiter = threading.Thread(
            target=lambda: later.append(client.acquire(pools=["herd"], timeout=20))
        )
        waiter.start()
        _until(lambda: _requests(bench) == [1])
        found[0].release()
        waiter.join(timeout=20)
        later[0].release()


def test_not_in_time(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        with pytest.raises(NoVmAvailable, match="now"):
            client.acquire(pools=["herd"])
        with pytest.raises(NoVmAvailable, match=r"in 0\.1 s"):
            client.acquire(pools=["herd"], timeout=0.1)
        assert _requests(bench) == []


def test_it_renews_itself_and_tells_when_it_was_lost(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        lease = client.acquire(pools=["herd"], ttl_s=0.3)
        first = lease.expires_at

        def renewed() -> bool:
            with bench.engine.connect() as connection:
                return bool(connection.scalar(text("SELECT max(expires_at) FROM leases")) > first)

        _until(renewed)
        assert not lease.lost
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE leases SET released_at = now(), ended = 'expired'"))
        _until(lambda: lease.lost)
        assert not lease.release()


def test_a_call_back_that_fails_costs_no_other_lease(bench: Workbench) -> None:
    bench.pool(vms=2, slots_per_vm=1)
    told = threading.Event()

    def fail() -> None:
        raise ValueError("of the caller's own")

    with bench.client() as client:
        lost, kept = (client.acquire(pools=["herd"], ttl_s=0.5) for _ in range(2))
        lost.when_lost(fail)
        lost.when_lost(told.set)
        with bench.engine.begin() as connection:  # nobody is told: the next renewal finds it
            connection.execute(
                text("UPDATE leases SET released_at = now(), ended = 'expired' WHERE id = :id"),
                {"id": lost.id},
            )
        assert told.wait(20)
        since = kept.expires_at
        _until(lambda: kept.expires_at > since)
        assert lost.lost
        assert not kept.lost
        late: list[str] = []
        lost.when_lost(lambda: late.append("called"))
        assert late == ["called"]


def test_what_can_never_be_leased(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        client.create_pool("new")
        with pytest.raises(UnknownPool):
            client.acquire(pools=["nowhere"])
        with pytest.raises(Refused, match="submit it first"):
            client.acquire(pools=["herd", "new"])
        with pytest.raises(BadInput, match="slots_per_vm"):
            client.acquire(pools=["herd"], slots=3, timeout=5)
        with pytest.raises(BadInput, match="list"):
            client.acquire(pools="herd")
        with pytest.raises(BadInput, match="ttl_s"):
            client.acquire(pools=["herd"], ttl_s=0)
        with pytest.raises(BadInput, match="slots"):
            client.acquire(pools=["herd"], slots=0)


def test_a_leased_vm_takes_no_more_jobs_than_it_has_slots_left(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client, client.acquire(pools=["herd"]):
        jobs = client.submit_many([JobSpec(["true"], cores=2)], pool="herd")
        with bench.engine.connect() as connection:
            used = rows(connection, "SELECT slots FROM leases WHERE released_at IS NULL")
        assert [row["slots"] for row in used] == [1]
        assert "the freest has 1" in " ".join(client.explain(jobs[0]))
        with pytest.raises(InstanceNotFound):
            client.vm(999)
