"""What sizing sees of a pool, when, and what its decisions do."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models import leases, sizing
from remuda.models.database import transact
from remuda.models.pool_life import close_pool
from remuda.models.states import PoolState, VmState
from remuda.models.submit import owner_id
from remuda.models.vm_life import move_vm
from tests.integration.builders import (
    OWNER,
    age,
    assert_sound,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    make_wish,
    path,
    record,
    row,
    running_job,
    state,
    together,
)

ELASTIC: dict[str, Any] = {
    "is_elastic": True,
    "elastic_maximum_slots": 8,
    "elastic_resize_period_s": 90,
}


def _due(connection: Connection, **more: Any) -> list[int]:
    return [demand.pool["id"] for demand in sizing.due_pools(connection, **more)]


def _one(connection: Connection) -> sizing.PoolDemand:
    [demand] = sizing.due_pools(connection)
    return demand


def test_when_an_elastic_pool_is_due(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, **ELASTIC)
        assert _due(connection) == [pool]
        demand = _one(connection)
        sizing.apply_decision(connection, demand, grow_vms=0, close_vm_ids=[], decision={})
        assert row(connection, "pools", pool)["last_resize_at"] == demand.now
        assert _due(connection) == []
        age(connection, "pools", [pool], "last_resize_at", 89)
        assert _due(connection) == []
        age(connection, "pools", [pool], "last_resize_at", 1)
        assert _due(connection) == [pool]
        assert _due(connection, pool_id=pool) == [pool]
        assert _due(connection, pool_id=pool + 1) == []
        sizing.apply_decision(
            connection, _one(connection), grow_vms=0, close_vm_ids=[], decision={}
        )
        close_pool(connection, pool)
        assert _due(connection) == [pool]  # closing does not wait for the period


def test_a_static_pool_is_always_due(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_pool(connection, "unsubmitted", submitted=False)
        for _ in range(2):
            demand = _one(connection)
            assert demand.pool["id"] == pool
            sizing.apply_decision(connection, demand, grow_vms=0, close_vm_ids=[], decision={})


def test_closed_pools_are_never_due(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        close_pool(connection, pool)
        demand = _one(connection)
        sizing.store_state(connection, demand, sizing.compute_state(demand, []))
        assert state(connection, "pool", pool) == "CLOSED"
        assert row(connection, "pools", pool)["ended_at"] is not None
        assert _due(connection) == []


def test_two_beats_size_a_pool_once(engine: Engine) -> None:
    with engine.begin() as connection:
        for name in ("a", "b", "c"):
            make_pool(connection, name, **ELASTIC)

    def work() -> int:
        def size(connection: Connection) -> int:
            born = 0
            for demand in sizing.due_pools(connection):
                made, _ = sizing.apply_decision(
                    connection, demand, grow_vms=2, close_vm_ids=[], decision={}
                )
                born += len(made)
            return born

        return transact(engine, size)

    assert sum(together(*[work] * 5)) == 6
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM vms")) == 6


def test_what_it_sees(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, memory_bytes_per_vm=100)
        busy, leased, idle = make_vms(connection, pool, 3)
        [new] = make_vms(connection, pool, state=VmState.NEW)
        [halted] = make_vms(connection, pool, state=VmState.NEW)
        move_vm(connection, halted, VmState.STOPPING)
        move_vm(connection, halted, VmState.HALTED)
        running_job(connection, pool)
        connection.execute(
            text(
                """INSERT INTO leases (vm_id, owner_id, for_jobs, slots, expires_at)
                   SELECT :vm, id, false, 2, now() + interval '1 hour' FROM owners"""
            ),
            {"vm": leased},
        )
        make_jobs(connection, pool, 3, cores=2)
        make_jobs(connection, pool, 5, cores=3)  # never fits: no demand
        make_jobs(connection, pool, 5, memory_bytes=101)  # neither
        [later] = make_jobs(connection, pool)
        connection.execute(
            text("UPDATE jobs SET not_before = now() + interval '1 hour' WHERE id = :id"),
            {"id": later},
        )
        wish = make_wish(connection, pool, slots=2)
        make_wish(connection, pool, slots=3)
        demand = _one(connection)
        assert demand.queued_slots == 3 * 2 + 2
        seen = {vm["id"]: vm for vm in demand.vms}
        assert sorted(seen) == [busy, leased, idle, new]
        assert {vm: seen[vm]["busy_slots"] for vm in seen} == {busy: 1, leased: 2, idle: 0, new: 0}
        assert seen[new]["idle_since"] is None
        assert seen[idle]["idle_since"] == row(connection, "vms", idle)["running_at"]
        age(connection, "lease_requests", [wish], "expires_at", 61)
        assert _one(connection).queued_slots == 3 * 2
        assert sizing.due_vms(connection, pool) == demand.vms


def test_work_placed_ahead_is_demand(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        owner_id(connection, OWNER)
        connection.execute(text("UPDATE owners SET mean_wall_s = 0.01"))
        make_jobs(connection, pool, 6)
        assert len(dispatch(connection, max_ahead=4)) == 4 + 2
        demand = _one(connection)
        assert (demand.queued_slots, demand.vms[0]["busy_slots"]) == (4, 2)


def test_an_exited_attempt_keeps_the_vm_busy(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        _, placed = running_job(connection, pool)
        record(connection, vm, ended(placed.attempt_id, state="EXITED", job_state="TERMINATING"))
        assert _one(connection).vms[0]["busy_slots"] == 1


def test_a_decision_is_applied_and_kept(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        idle, busy, stalled = make_vms(connection, pool, 3)
        make_jobs(connection, pool, 2)
        snapshot_placed = {p.vm_id for p in dispatch(connection)}
        [taken] = snapshot_placed
        free = next(vm for vm in (idle, busy) if vm != taken)
        move_vm(connection, stalled, VmState.STALLED)
        demand = _one(connection)
        born, closed = sizing.apply_decision(
            connection,
            demand,
            grow_vms=2,
            close_vm_ids=[taken, free],
            decision={"reason": "because", "at": demand.now},
        )
        assert len(born) == 2
        assert closed == [free]  # the other became busy
        assert [state(connection, "vm", vm) for vm in born] == ["NEW", "NEW"]
        assert row(connection, "vms", stalled)["replaced"]
        assert row(connection, "pools", pool)["decision"]["reason"] == "because"
        assert_sound(connection)


@pytest.mark.parametrize(
    ("vms", "expected"),
    [
        ("", PoolState.SUBMITTED),
        ("NEW NEW", PoolState.SUBMITTED),
        ("NEW SUBMITTED", PoolState.PARTIALLY_DISPATCHED),
        ("SUBMITTED SUBMITTED", PoolState.FULLY_DISPATCHED),
        ("RUNNING SUBMITTED", PoolState.PARTIALLY_EXECUTING),
        ("RUNNING NEW", PoolState.PARTIALLY_EXECUTING),
        ("RUNNING RUNNING", PoolState.FULLY_EXECUTING),
        ("RUNNING STOPPING", PoolState.FULLY_EXECUTING),
        ("STALLED ERROR STOPPING", PoolState.SUBMITTED),
    ],
)
def test_a_pools_state_follows_from_its_vms(engine: Engine, vms: str, expected: PoolState) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        demand = _one(connection)
        seen = [{"state": s} for s in vms.split()]
        assert sizing.compute_state(demand, seen) == expected
        sizing.store_state(connection, demand, expected)
        assert state(connection, "pool", pool) == expected
        again = _one(connection)
        sizing.store_state(connection, again, expected)
        if expected != PoolState.SUBMITTED:
            assert path(connection, "pool", pool) == f"UNSUBMITTED SUBMITTED {expected}"
            assert row(connection, "pools", pool)["previous_state_changed_at"] is not None
        close_pool(connection, pool)
        closing = _one(connection)
        assert sizing.compute_state(closing, seen) == (
            PoolState.CLOSING if seen else PoolState.CLOSED
        )


def test_failing_launches_back_off_then_fail_loudly(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        age(connection, "pools", [pool], "state_changed_at", 100)
        pauses = []
        for number in range(1, 13):
            sizing.note_launch(connection, pool, error="no quota " + "x" * 5000)
            found = row(connection, "pools", pool)
            assert found["launch_failures"] == number
            assert found["state"] == ("FAILURE" if number >= 5 else "SUBMITTED")
            pauses.append((found["paused_until"] - _one(connection).now).total_seconds())
        assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
        assert len(found["message"]) == 2000
        assert path(connection, "pool", pool) == "UNSUBMITTED SUBMITTED FAILURE"
        now = connection.scalar(text("SELECT now()"))
        assert found["state_changed_at"] == now
        assert (now - found["previous_state_changed_at"]).total_seconds() == 100
        assert sizing.compute_state(_one(connection), []) == PoolState.FAILURE
        age(connection, "pools", [pool], "paused_until", 301)
        demand = _one(connection)
        assert sizing.compute_state(demand, []) == PoolState.SUBMITTED
        sizing.store_state(connection, demand, PoolState.SUBMITTED)
        sizing.note_launch(connection, pool, error="still none")
        assert state(connection, "pool", pool) == "FAILURE"
        sizing.note_launch(connection, pool, error=None)
        found = row(connection, "pools", pool)
        assert (found["launch_failures"], found["paused_until"], found["message"]) == (
            0,
            None,
            None,
        )
        assert sizing.compute_state(_one(connection), []) == PoolState.SUBMITTED
        assert_sound(connection)


def test_a_closing_pool_does_not_fail(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        close_pool(connection, pool)
        for _ in range(6):
            sizing.note_launch(connection, pool, error="x")
        assert state(connection, "pool", pool) == "CLOSING"


def test_leases_keep_vms_from_being_closed(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        lease = leases.acquire(
            connection,
            pool_ids=[pool],
            owner=OWNER,
            sandbox="",
            slots=1,
            ttl_s=60,
        )
        assert lease is not None
        decided: dict[str, Any] = {"grow_vms": 0, "close_vm_ids": [vm], "decision": {}}
        assert sizing.apply_decision(connection, _one(connection), **decided) == ([], [])
        leases.release(connection, lease["id"], lease["token"])
        assert sizing.apply_decision(connection, _one(connection), **decided) == ([], [vm])
