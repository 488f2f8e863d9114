"""The life of VMs: guarded moves, who is silent, who is closed, what becomes of their work."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, text

from remuda.errors import IllegalTransition, InstanceNotFound
from remuda.models import leases, machines, requests, vm_life
from remuda.models.database import transact
from remuda.models.states import VM_EDGES, VmState
from tests.integration.builders import (
    OWNER,
    age,
    assert_sound,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    reach_vm,
    record,
    row,
    running_job,
    state,
    together,
)


@pytest.mark.parametrize("here", VmState)
def test_moves(engine: Engine, here: VmState) -> None:
    """Every legal move is made, every other refused with the state found, changing nothing."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        for target in VmState:
            [vm] = make_vms(connection, pool, state=VmState.NEW)
            reach_vm(connection, vm, here)
            before = row(connection, "vms", vm)
            if target in VM_EDGES[here]:
                vm_life.move_vm(connection, vm, target)
                assert state(connection, "vm", vm) == target
            else:
                with pytest.raises(
                    IllegalTransition, match=f"is {here} and cannot become {target}"
                ):
                    vm_life.move_vm(connection, vm, target)
                assert row(connection, "vms", vm) == before
        assert_sound(connection)


def test_a_move_sets_its_fields(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool, state=VmState.NEW)
        address = {"home": "/a b/ü", "n": [1]}
        fields = {"provider_id": "p", "address": address, "private_ip": None, "public_ip": "::1"}
        vm_life.move_vm(connection, vm, VmState.SUBMITTED, fields=fields)
        found = row(connection, "vms", vm)
        assert {name: found[name] for name in fields} == fields
        assert found["submitted_at"] is not None
        with pytest.raises(IllegalTransition):
            vm_life.move_vm(
                connection, vm, VmState.RUNNING, allowed=[VmState.NEW], fields={"public_ip": "::2"}
            )
        assert row(connection, "vms", vm) == found
        vm_life.move_vm(connection, vm, VmState.RUNNING)
        assert row(connection, "vms", vm)["heartbeat_at"] is not None
        with pytest.raises(InstanceNotFound, match="12345"):
            vm_life.move_vm(connection, 12345, VmState.STOPPING)


def test_moving_at_the_same_time(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))

    def move(target: VmState) -> str:
        try:
            transact(engine, lambda c: vm_life.move_vm(c, vm, target, allowed=[VmState.RUNNING]))
        except IllegalTransition:
            return "refused"
        return str(target)

    found = together(
        *[lambda t=t: move(t) for t in (VmState.STOPPING, VmState.STALLED, VmState.ERROR)]
    )
    assert sorted(found).count("refused") == 2
    with engine.begin() as connection:
        assert state(connection, "vm", vm) in found
        assert_sound(connection)


def test_vms_take_after_their_pool(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=3, memory_bytes_per_vm=77)
        made = vm_life.insert_vms(connection, pool, 3)
        found = [row(connection, "vms", vm) for vm in made]
        assert {(r["slots"], r["memory_bytes"], r["state"]) for r in found} == {(3, 77, "NEW")}
        assert len({r["name"] for r in found}) == len({r["token"] for r in found}) == 3
        assert all(r["name"].startswith("herd-") for r in found)
        assert vm_life.insert_vms(connection, pool, 0) == []


def test_a_halted_vm_ends_its_watch_and_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        lease = leases.acquire(
            connection,
            pool_ids=[pool],
            owner=OWNER,
            sandbox="",
            slots=1,
            ttl_s=600,
        )
        assert lease is not None
        connection.execute(text("UPDATE vms SET watcher = 'w', watch_expires_at = now()"))
        vm_life.move_vm(connection, vm, VmState.STOPPING)
        vm_life.move_vm(connection, vm, VmState.HALTED)
        found = row(connection, "vms", vm)
        assert (found["watcher"], found["watch_expires_at"]) == (None, None)
        assert found["halted_at"] is not None
        assert row(connection, "leases", lease["id"])["released_at"] is not None


def test_close_idle(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        busy, exited, leased, idle = make_vms(connection, pool, 4)
        jobs = make_jobs(connection, pool, 2)
        placed = {p.vm_id: p for p in dispatch(connection)}
        assert sorted(placed) == [busy, exited]
        record(
            connection,
            exited,
            ended(placed[exited].attempt_id, state="EXITED", job_state="TERMINATING"),
        )
        connection.execute(
            text(
                """INSERT INTO leases (vm_id, owner_id, for_jobs, slots, expires_at)
                   SELECT :vm, id, false, 1, now() + interval '1 hour' FROM owners"""
            ),
            {"vm": leased},
        )
        [fresh] = make_vms(connection, pool, state=VmState.NEW)
        [gone] = make_vms(connection, pool, state=VmState.NEW)
        vm_life.move_vm(connection, gone, VmState.STOPPING)
        vm_life.move_vm(connection, gone, VmState.HALTED)
        everything = [busy, exited, leased, idle, fresh, gone, 12345]
        assert sorted(vm_life.close_idle(connection, everything)) == [idle, fresh]
        assert vm_life.close_idle(connection, everything) == []
        assert vm_life.close_idle(connection, []) == []
        assert [state(connection, "vm", vm) for vm in (busy, leased, idle)] == [
            "RUNNING",
            "RUNNING",
            "STOPPING",
        ]
        assert len(jobs) == 2
        assert_sound(connection)


def test_drain_and_stop(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        busy, idle, hasty = make_vms(connection, pool, 3)
        make_jobs(connection, pool)
        assert [p.vm_id for p in dispatch(connection)] == [busy]
        requests.drain_vm(connection, busy)
        assert row(connection, "vms", busy)["draining"]
        assert requests.stop_vm(connection, busy) is False
        assert state(connection, "vm", busy) == "RUNNING"
        assert requests.stop_vm(connection, idle) is True
        assert requests.stop_vm(connection, hasty, now=True) is True
        make_jobs(connection, pool)
        assert dispatch(connection) == []
        with pytest.raises(IllegalTransition):
            requests.drain_vm(connection, idle)
        with pytest.raises(InstanceNotFound):
            requests.stop_vm(connection, 12345)
        assert_sound(connection)


def test_overdue_steps(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        new, submitted, stopping, failed = make_vms(connection, pool, 4, state=VmState.NEW)
        reach_vm(connection, submitted, VmState.SUBMITTED)
        reach_vm(connection, stopping, VmState.STOPPING)
        reach_vm(connection, failed, VmState.ERROR)
        make_vms(connection, pool)
        assert machines.unfinished_vms(connection) == []
        age(connection, "vms", [new, submitted, stopping, failed], "state_changed_at", 21)
        found = {r["id"]: r["state"] for r in machines.unfinished_vms(connection)}
        assert found == {
            new: "NEW",
            submitted: "SUBMITTED",
            stopping: "STOPPING",
            failed: "ERROR",
        }


def test_a_vm_with_what_its_pool_says(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, settings={"a": 1})
        live, gone = make_vms(connection, pool, 2)
        vm_life.move_vm(connection, gone, VmState.STOPPING)
        vm_life.move_vm(connection, gone, VmState.HALTED)
        found = machines.vm_with_pool(connection, live)
        assert found is not None
        assert found["provider"] == "local"
        assert json.dumps(found["settings"]) == '{"a": 1}'
        assert machines.vm_with_pool(connection, 12345) is None


def test_a_vm_with_work_is_seen_whole(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        _, placed = running_job(connection, pool)
        assert vm_life.lock_vms(connection, [placed.vm_id, 12345]) == {placed.vm_id: "RUNNING"}
