"""Leases: slots of a VM for a while; never given twice, over when they are over."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import StaleHolder
from remuda.models import leases
from remuda.models.database import rows, transact
from remuda.models.pool_life import close_pool
from remuda.models.states import VmState
from remuda.models.submit import owner_id
from remuda.models.vm_life import move_vm
from tests.integration.builders import (
    age,
    assert_sound,
    dispatch,
    make_jobs,
    make_pool,
    make_vms,
    row,
    running_job,
    together,
)


def _acquire(
    connection: Connection, *pools: int, owner: str = "bob", sandbox: str = "", slots: int = 1
) -> dict[str, Any] | None:
    return leases.acquire(
        connection,
        pool_ids=pools,
        owner=owner,
        sandbox=sandbox,
        slots=slots,
        ttl_s=60,
    )


def test_a_lease_tells_where_its_vm_is(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        connection.execute(text("""UPDATE vms SET address = '{"home": "/x"}', public_ip = '::1'"""))
        found = _acquire(connection, pool, slots=2)
        assert found is not None
        assert (found["vm_id"], found["address"], found["public_ip"]) == (vm, {"home": "/x"}, "::1")
        now = connection.scalar(text("SELECT now()"))
        assert (found["expires_at"] - now).total_seconds() == 60
        assert _acquire(connection, pool) is None
        assert leases.release(connection, found["id"], found["token"]).done is True
        assert leases.release(connection, found["id"], found["token"]).done is False
        assert row(connection, "vms", vm)["busy_at"] == now
        assert _acquire(connection, pool) is not None
        assert_sound(connection)


def test_where_there_is_none(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        assert _acquire(connection, pool) is None
        assert _acquire(connection) is None
        [vm] = make_vms(connection, pool)
        assert _acquire(connection, pool, slots=3) is None
        connection.execute(text("UPDATE vms SET draining = true"))
        assert _acquire(connection, pool) is None
        connection.execute(text("UPDATE vms SET draining = false"))
        running_job(connection, pool)
        make_jobs(connection, pool)
        dispatch(connection)
        assert _acquire(connection, pool) is None
        move_vm(connection, vm, VmState.STALLED)
        make_vms(connection, pool, state=VmState.SUBMITTED)
        assert _acquire(connection, pool) is None
        make_vms(connection, pool)
        close_pool(connection, pool)
        assert _acquire(connection, pool) is None


def test_pools_in_their_order_then_the_vm_used_before(engine: Engine) -> None:
    with engine.begin() as connection:
        first, second = (make_pool(connection, name) for name in ("a", "b"))
        [there] = make_vms(connection, second)
        here = make_vms(connection, first, 3)
        assert (_acquire(connection, second, first) or {})["vm_id"] == there
        assert (_acquire(connection, first, second, slots=2) or {})["vm_id"] == here[0]
        mine = _acquire(connection, first, sandbox="s")
        assert mine is not None
        assert mine["vm_id"] == here[1]
        leases.release(connection, mine["id"], mine["token"])
        before = _acquire(connection, first, slots=2, sandbox="s")
        assert before is not None
        assert before["vm_id"] == here[1]  # the sandbox was there
        leases.release(connection, before["id"], before["token"])
        connection.execute(text("UPDATE leases SET released_at = now()"))
        assert (_acquire(connection, first, sandbox="t") or {})["vm_id"] == here[0]


def test_only_the_holder_renews_and_releases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        lease = _acquire(connection, pool)
        assert lease is not None
        before = row(connection, "leases", lease["id"])
        with pytest.raises(StaleHolder):
            leases.renew(connection, lease["id"], uuid4(), ttl_s=600)
        assert not leases.release(connection, lease["id"], uuid4()).done
        assert row(connection, "leases", lease["id"]) == before
        leases.renew(connection, lease["id"], lease["token"], ttl_s=600)
        later = row(connection, "leases", lease["id"])["expires_at"]
        assert (later - before["expires_at"]).total_seconds() == 540
        leases.release(connection, lease["id"], lease["token"])
        with pytest.raises(StaleHolder, match="over"):
            leases.renew(connection, lease["id"], lease["token"], ttl_s=600)


def test_a_lease_ends_with_its_time(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        old = _acquire(connection, pool, slots=2)
        assert old is not None
        assert leases.expire(connection) == 0
        age(connection, "leases", [old["id"]], "expires_at", 61)
        assert _acquire(connection, pool) is None  # until the sweep
        assert leases.expire(connection) == 1
        assert leases.expire(connection) == 0
        new = _acquire(connection, pool, slots=2)
        assert new is not None
        with pytest.raises(StaleHolder):
            leases.renew(connection, old["id"], old["token"], ttl_s=60)
        assert leases.release(connection, old["id"], old["token"]).done is False
        leases.renew(connection, new["id"], new["token"], ttl_s=60)
        assert_sound(connection)


@pytest.mark.parametrize("target", [VmState.STOPPING, VmState.ERROR])
def test_a_lease_on_a_vm_that_goes_is_not_renewed(engine: Engine, target: VmState) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        lease = _acquire(connection, pool)
        assert lease is not None
        move_vm(connection, vm, VmState.STALLED)
        leases.renew(connection, lease["id"], lease["token"], ttl_s=60)  # it may come back
        move_vm(connection, vm, target)
        with pytest.raises(StaleHolder):
            leases.renew(connection, lease["id"], lease["token"], ttl_s=60)


def test_acquiring_at_the_same_time_oversubscribes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=3)
        make_vms(connection, pool, 4)
        make_jobs(connection, pool, 4)
        for n in range(6):
            owner_id(connection, f"o{n}")

    def take(name: str) -> int:
        got = 0
        for _ in range(4):
            got += transact(engine, lambda c: _acquire(c, pool, owner=name)) is not None
        return got

    def place() -> int:
        return sum(len(transact(engine, dispatch)) for _ in range(4))

    found = together(place, *[lambda n=n: take(f"o{n}") for n in range(5)])
    with engine.begin() as connection:
        used = rows(
            connection,
            """SELECT v.id, v.slots, (SELECT coalesce(sum(slots), 0) FROM leases
                 WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL)
               + (SELECT coalesce(sum(cores), 0) FROM attempts WHERE vm_id = v.id) AS used
               FROM vms v""",
        )
        assert all(r["used"] <= r["slots"] for r in used), used
        assert sum(r["used"] for r in used) == sum(found) <= 12
        while _acquire(connection, pool):
            pass
        assert_sound(connection)


def test_a_slower_acquirer_looks_at_the_next_vm(engine: Engine) -> None:
    """The first VM is locked by a transaction in progress: the second one is taken instead."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        one, two = make_vms(connection, pool, 2)
        owner_id(connection, "bob")
    with engine.connect() as first, engine.connect() as second:
        assert (_acquire(first, pool) or {})["vm_id"] == one
        assert (_acquire(second, pool) or {})["vm_id"] == two
        assert _acquire(second, pool) is None
        first.commit()
        assert _acquire(second, pool) is None


def test_a_rolled_back_acquisition_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
    with engine.connect() as connection:
        assert _acquire(connection, pool) is not None
        connection.rollback()
        assert rows(connection, "SELECT FROM leases") == []
        assert _acquire(connection, pool) is not None
