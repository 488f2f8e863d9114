"""VMs that have to go or to restart, against a real database and noop machines."""

from __future__ import annotations

from typing import Any

import pytest

from remuda.errors import IllegalTransition, Refused
from remuda.models import ceilings, exits, vm_life
from remuda.models import retiring as models
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.tasks import machines, placing, recording, retiring, sizing
from remuda.testing import world
from tests.integration.builders import dispatch, make_jobs
from tests.integration.yard import Yard, yard

__all__ = ["yard"]


@pytest.fixture
def herd(yard: Yard) -> Yard:
    """Four running VMs of two slots."""
    yard.pool(instance_count=4, slots_per_vm=2)
    for vm in yard.vms(4):
        assert yard.launch(vm)["state"] == "RUNNING"
    return yard


def jobs(yard: Yard) -> list[dict[str, Any]]:
    query = "SELECT * FROM jobs ORDER BY id"
    return [dict(row) for row in yard.runtime.transact(lambda c: rows(c, query))]


def states(yard: Yard) -> list[str]:
    query = "SELECT state FROM vms ORDER BY id"
    return [row["state"] for row in yard.runtime.transact(lambda c: rows(c, query))]


def serving(yard: Yard) -> int:
    query = "SELECT count(*) AS n FROM vms WHERE state = 'RUNNING' AND NOT draining"
    return int(yard.runtime.transact(lambda c: rows(c, query))[0]["n"])


def work(yard: Yard, count: int = 8, **fields: Any) -> dict[int, int]:
    """Have jobs that run for long started; return their VMs by job."""

    def place(connection: Any) -> dict[int, int]:
        make_jobs(connection, yard.pool_id, count, **fields)
        placed = dispatch(connection)
        for attempt in placed:
            exits.record_starts(connection, attempt.vm_id, {attempt.attempt_id: 0.0})
        return {attempt.job_id: attempt.vm_id for attempt in placed}

    return yard.runtime.transact(place)


def test_an_interrupted_vm_drains_and_its_jobs_go_first(herd: Yard) -> None:
    where = work(herd)
    herd.runtime.transact(lambda c: make_jobs(c, herd.pool_id, 3))  # wait behind them
    herd.runtime.transact(lambda c: models.interrupt_vm(c, 1, in_s=120))
    retiring.retire_vms(herd.runtime)
    assert (herd.vm(1)["state"], herd.vm(1)["draining"]) == ("RUNNING", True)
    assert {job["state"] for job in jobs(herd)[:8]} == {"RUNNING"}  # they have the time until then
    herd.sql("UPDATE vms SET interruption_at = now() WHERE id = 1")
    retiring.retire_vms(herd.runtime)
    assert herd.vm(1)["state"] == "STOPPING"
    lost = {job["id"] for job in jobs(herd) if job["state"] == "NEW" and job["displaced"]}
    assert lost == {job for job, vm in where.items() if vm == 1}
    assert all(job["losses"] == 0 for job in jobs(herd))
    assert ("remuda.terminate_vm", 1) in herd.sent
    herd.runtime.transact(lambda c: recording.lose_attempts(c, 2, "gone"))  # room for two
    placing.dispatch(herd.runtime)
    again = {job["id"] for job in jobs(herd) if job["displaced"] and job["state"] != "NEW"}
    assert again == lost


def test_what_has_not_started_leaves_an_interrupted_vm_at_once(herd: Yard) -> None:
    def place(connection: Any) -> list[int]:
        make_jobs(connection, herd.pool_id, 8)
        return [attempt.job_id for attempt in dispatch(connection) if attempt.vm_id == 3]

    waiting = herd.runtime.transact(place)
    herd.runtime.transact(lambda c: models.interrupt_vm(c, 3, in_s=120))
    retiring.retire_vms(herd.runtime)
    found = {job["id"]: job for job in jobs(herd)}
    # The runner was never told of them, so it cannot recall them: they are lost at the end.
    herd.sql("UPDATE vms SET interruption_at = now() WHERE id = 3")
    retiring.retire_vms(herd.runtime)
    found = {job["id"]: job for job in jobs(herd)}
    assert all(found[job]["state"] == "NEW" and found[job]["displaced"] for job in waiting)
    assert all(found[job]["losses"] == 0 for job in waiting)


def test_a_vm_that_vanishes_after_its_notice_costs_no_losses(herd: Yard) -> None:
    from remuda.tasks.attaching import vanish

    where = work(herd)
    herd.runtime.transact(lambda c: models.interrupt_vm(c, 2, in_s=60))
    vanish(herd.runtime, 2, "it was quicker")
    vanish(herd.runtime, 3, "without notice")
    losses = {where[job["id"]]: job["losses"] for job in jobs(herd)}
    assert (losses[2], losses[3]) == (0, 1)


def test_old_vms_go_half_of_them_at_a_time(herd: Yard) -> None:
    herd.sql("UPDATE pools SET max_vm_age_s = 3600")
    retiring.retire_vms(herd.runtime)
    assert states(herd) == ["RUNNING"] * 4
    herd.sql("UPDATE vms SET created_at = now() - interval '2 hours'")
    retiring.retire_vms(herd.runtime)
    assert states(herd) == ["STOPPING"] * 2 + ["RUNNING"] * 2
    retiring.retire_vms(herd.runtime)
    assert states(herd) == ["STOPPING"] * 3 + ["RUNNING"]


def test_a_vm_has_so_many_jobs_and_no_more(herd: Yard) -> None:
    herd.sql("UPDATE pools SET max_jobs_per_vm = 3")
    herd.runtime.transact(lambda c: make_jobs(c, herd.pool_id, 40))
    for _ in range(6):
        placing.dispatch(herd.runtime)
        herd.sql("UPDATE attempts SET state = 'STARTED', started_at = now() WHERE state = 'PLACED'")
        herd.sql(
            "UPDATE attempts SET state = 'EXITED', ended_at = now(), exit_code = 0,"
            " reason = 'OK' WHERE state = 'STARTED'"
        )
    query = "SELECT vm_id, count(*) AS n FROM attempts GROUP BY 1 ORDER BY 1"
    had = {row["vm_id"]: row["n"] for row in herd.runtime.transact(lambda c: rows(c, query))}
    assert had == {1: 3, 2: 3, 3: 3, 4: 3}
    assert all(herd.vm(vm)["draining"] for vm in had)


def replace(yard: Yard) -> None:
    """Do what workers do: end what is stopping, size, launch."""
    for number, state in enumerate(states(yard), 1):
        if state == "STOPPING":
            assert machines.terminate_vm(yard.runtime, number)
    sizing.resize_pools(yard.runtime)
    for number, state in enumerate(states(yard), 1):
        if state == "NEW":
            yard.launch(number)


def test_a_rolling_update(herd: Yard) -> None:
    """Never more than so many are missing; a restart of everything forgets nothing."""
    work(herd, 2)  # one VM is busy
    query = "SELECT vm_id FROM attempts LIMIT 1"
    busy = herd.runtime.transact(lambda c: rows(c, query))[0]["vm_id"]
    herd.runtime.transact(lambda c: models.change_image(c, herd.pool_id, "new", max_unavailable=1))
    for _ in range(12):
        retiring.retire_vms(herd.runtime)
        assert serving(herd) >= 3
        replace(herd)
    state = herd.runtime.transact(lambda c: models.rollout(c, herd.pool_id))
    assert (state["under_way"], state["current"], state["outdated"]) == (True, 3, 1)
    assert (herd.vm(busy)["state"], herd.vm(busy)["draining"]) == ("RUNNING", True)
    herd.runtime.transact(lambda c: recording.lose_attempts(c, busy, "done"))
    for _ in range(3):
        replace(herd)
        retiring.retire_vms(herd.runtime)
    state = herd.runtime.transact(lambda c: models.rollout(c, herd.pool_id))
    assert (state["under_way"], state["running"], state["outdated"]) == (False, 4, 0)


def test_an_update_of_new_vms_only(herd: Yard) -> None:
    """It replaces none, and ends a rolling one that was under way."""
    herd.runtime.transact(lambda c: models.change_image(c, herd.pool_id, "old", max_unavailable=1))
    herd.runtime.transact(
        lambda c: models.change_image(c, herd.pool_id, "new", max_unavailable=None)
    )
    state = herd.runtime.transact(lambda c: models.rollout(c, herd.pool_id))
    assert (state["under_way"], state["image"], state["current"]) == (False, "new", 0)
    retiring.retire_vms(herd.runtime)
    drained = "SELECT id FROM vms WHERE draining OR state <> 'RUNNING'"
    assert herd.runtime.transact(lambda c: rows(c, drained)) == []


def test_an_update_to_an_image_that_does_not_work_stops_by_itself(herd: Yard) -> None:
    herd.runtime.transact(lambda c: models.change_image(c, herd.pool_id, "bad", max_unavailable=1))
    herd.faults.spawn.extend(["ImageError"] * 50)
    for _ in range(5):
        retiring.retire_vms(herd.runtime)
        replace(herd)
    assert states(herd)[:4].count("RUNNING") == 3
    with pytest.raises(Refused):
        herd.runtime.transact(
            lambda c: models.change_image(c, herd.pool_id, "bad", max_unavailable=1)
        )


def test_a_reboot_loses_what_runs_and_comes_back(herd: Yard) -> None:
    where = work(herd)
    before = herd.vm(1)["boot"]
    herd.runtime.transact(lambda c: models.ask_reboot(c, 1, drain=False))
    retiring.retire_vms(herd.runtime)
    assert (herd.vm(1)["state"], herd.vm(1)["reboot"]) == ("WAIT_SSH_CONTEXT", "TOLD")
    lost = [job["id"] for job in jobs(herd) if job["state"] == "NEW"]
    assert lost == [job for job, vm in where.items() if vm == 1]
    for _ in range(50):
        herd.due()
        if herd.launch(1)["state"] == "RUNNING":
            break
    found = herd.vm(1)
    assert (found["state"], found["reboot"], found["draining"]) == ("RUNNING", None, False)
    assert found["boot"] != before


def test_a_drained_reboot_waits_for_its_jobs(herd: Yard) -> None:
    work(herd)
    herd.runtime.transact(lambda c: models.ask_reboot(c, 1, drain=True))
    retiring.retire_vms(herd.runtime)
    sizing.resize_pools(herd.runtime)
    assert (herd.vm(1)["state"], herd.vm(1)["reboot"]) == ("RUNNING", "DRAIN")
    herd.runtime.transact(lambda c: recording.lose_attempts(c, 1, "done"))
    sizing.resize_pools(herd.runtime)
    assert herd.vm(1)["state"] == "RUNNING"  # it drains to restart, not to go
    retiring.retire_vms(herd.runtime)
    assert (herd.vm(1)["state"], herd.vm(1)["reboot"]) == ("WAIT_SSH_CONTEXT", "TOLD")


def sized(yard: Yard) -> dict[str, Any]:
    """Size the pool, whether due or not; return what was decided."""
    yard.sql("UPDATE pools SET last_resize_at = NULL")
    sizing.resize_pools(yard.runtime)
    decision: dict[str, Any] = yard.the_pool["decision"]
    return decision


def come_back(yard: Yard, vm_id: int) -> dict[str, Any]:
    for _ in range(50):
        yard.due()
        if yard.launch(vm_id)["state"] == "RUNNING":
            break
    return yard.vm(vm_id)


@pytest.mark.parametrize("drain", [False, True])
def test_an_idle_vm_that_reboots_is_not_replaced(yard: Yard, drain: bool) -> None:
    yard.pool(slots_per_vm=2, is_elastic=True, elastic_minimum_slots=2, elastic_maximum_slots=8)
    [vm] = yard.vms(1)
    assert yard.launch(vm)["state"] == "RUNNING"
    yard.runtime.transact(lambda c: models.ask_reboot(c, vm, drain=drain))
    for step in ("asked", "told"):
        found = sized(yard)
        assert (found["alive"], found["inputs"]["booting"], states(yard)) == (
            2,
            2,
            [yard.vm(vm)["state"]],
        ), step
        assert "1 VM" in str(found["outlook"]), found["outlook"]
        retiring.retire_vms(yard.runtime)
    used = yard.runtime.transact(ceilings.usage)
    assert (used[0]["used"], used[0]["alive"]) == (2, 2)
    assert come_back(yard, vm)["state"] == "RUNNING"
    assert (sized(yard)["alive"], states(yard)) == (2, ["RUNNING"])


def test_what_waits_does_not_count_on_a_vm_that_still_works_before_it_restarts(yard: Yard) -> None:
    yard.pool(slots_per_vm=2, is_elastic=True, elastic_minimum_slots=2, elastic_maximum_slots=4)
    [vm] = yard.vms(1)
    assert yard.launch(vm)["state"] == "RUNNING"
    work(yard, 1)
    yard.runtime.transact(lambda c: models.ask_reboot(c, vm, drain=True))
    assert (sized(yard)["grow_vms"], len(states(yard))) == (0, 1)
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 1))
    assert (sized(yard)["grow_vms"], len(states(yard))) == (1, 2)


def test_a_vm_that_does_not_come_back_from_its_reboot_is_replaced(yard: Yard) -> None:
    yard.pool(
        slots_per_vm=2,
        is_elastic=True,
        elastic_minimum_slots=2,
        elastic_maximum_slots=8,
        launch_timeout_s=600,
    )
    [vm] = yard.vms(1)
    assert yard.launch(vm)["state"] == "RUNNING"
    yard.runtime.transact(lambda c: models.ask_reboot(c, vm, drain=False))
    retiring.retire_vms(yard.runtime)
    yard.sql("UPDATE vms SET asked_at = now() - interval '601 seconds'")
    world().vanish(yard.vm(vm)["provider_id"])
    yard.due()
    assert yard.launch(vm)["state"] in ("ERROR", "STOPPING")
    yard.due()
    assert (sized(yard)["grow_vms"], len(states(yard))) == (1, 2)


def test_an_interrupted_vm_goes_though_it_restarts(herd: Yard) -> None:
    herd.runtime.transact(lambda c: models.ask_reboot(c, 1, drain=False))
    retiring.retire_vms(herd.runtime)
    herd.runtime.transact(lambda c: models.interrupt_vm(c, 1, in_s=120))
    assert sized(herd)["alive"] == 6
    found = come_back(herd, 1)
    assert (found["state"], found["reboot"], found["draining"]) == ("RUNNING", None, True)


def test_a_used_vm_of_a_single_use_serves_nobody_after_its_reboot(yard: Yard) -> None:
    yard.pool(instance_count=1, slots_per_vm=1, isolation="single_use")
    [vm] = yard.vms(1)
    assert yard.launch(vm)["state"] == "RUNNING"
    work(yard, 1)
    yard.runtime.transact(lambda c: models.ask_reboot(c, vm, drain=False))
    retiring.retire_vms(yard.runtime)
    found = come_back(yard, vm)
    assert (found["state"], found["draining"]) == ("RUNNING", True)


def test_a_worker_that_dies_in_the_middle_of_a_reboot(herd: Yard) -> None:
    """The rows were told, the machine was not: the next sweep tells it."""

    def half(connection: Any) -> None:
        models.ask_reboot(connection, 1, drain=False)
        assert models.begin_reboot(connection, 1) == "RUNNING"
        vm_life.move_vm(connection, 1, VmState.WAIT_SSH_CONTEXT)

    herd.runtime.transact(half)
    assert herd.launch(1)["state"] == "WAIT_SSH_CONTEXT"  # nobody meets it before it was told
    retiring.retire_vms(herd.runtime)
    assert herd.vm(1)["reboot"] == "TOLD"


def test_what_is_on_its_way_out_is_neither_rebooted_nor_interrupted(herd: Yard) -> None:
    herd.sql("UPDATE vms SET state = 'STOPPING' WHERE id = 1")
    for ask in (
        lambda c: models.ask_reboot(c, 1, drain=False),
        lambda c: models.interrupt_vm(c, 1, in_s=1),
    ):
        with pytest.raises(IllegalTransition):
            herd.runtime.transact(ask)
    assert herd.vm(1)["reboot"] is None
    world().vanish(herd.vm(1)["provider_id"])
