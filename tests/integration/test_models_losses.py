"""A VM is lost: in the same transaction its attempts are, and each job goes on by its policy."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models import cancel, exits
from remuda.models.database import transact
from remuda.models.states import VmState
from remuda.models.vm_life import lock_vms, move_vm
from remuda.retries import RetryPolicy
from remuda.tasks import decisions, recording
from tests.integration.builders import (
    assert_sound,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
    row,
    running_job,
    state,
    together,
)

MAX_LOSSES = RetryPolicy().max_losses


def _lose(connection: Connection, vm: int) -> int:
    lock_vms(connection, [vm])
    move_vm(connection, vm, VmState.STALLED)
    return recording.lose_attempts(connection, vm, "its VM sent no heartbeats")


def test_every_kind_of_attempt_is_lost_and_its_job_placed_anew(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        exited, gone = running_job(connection, pool)
        record(connection, vm, ended(gone.attempt_id, state="EXITED", job_state="TERMINATING"))
        started, _ = running_job(connection, pool)
        [placed] = make_jobs(connection, pool)
        dispatch(connection)
        assert _lose(connection, vm) == 3
        losses = {}
        for job in (exited, started, placed):
            found = row(connection, "jobs", job)
            assert (found["state"], found["failures"], found["exit_code"]) == ("NEW", 0, None)
            losses[job] = found["losses"]
        assert losses == {exited: 1, started: 1, placed: 0}  # what never started took no VM with it
        assert dispatch(connection) == []
        assert_sound(connection)
        make_vms(connection, pool)
        connection.execute(text("UPDATE jobs SET not_before = NULL"))
        assert sorted(p.job_id for p in dispatch(connection)) == [exited, started, placed]
        assert_sound(connection)


def test_losing_nothing_is_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        assert _lose(connection, vm) == 0


def test_a_job_that_takes_vms_with_it_is_stopped(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [job] = make_jobs(connection, pool)
        for _ in range(MAX_LOSSES + 1):
            [vm] = make_vms(connection, pool)
            connection.execute(text("UPDATE jobs SET not_before = NULL"))
            placed = dispatch(connection)
            if not placed:
                break
            exits.record_starts(connection, vm, {placed[0].attempt_id: 1.0})
            _lose(connection, vm)
        found = row(connection, "jobs", job)
        assert (found["state"], found["reason"]) == ("TERMINATED", "LOST")
        assert found["losses"] <= MAX_LOSSES
        assert found["message"]
        assert_sound(connection)


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_whose_start_was_never_told_is_stopped_if_it_began(
    engine: Engine, begun: bool
) -> None:
    """It kills its runner at once: only the next runner's journal tells that it had been started."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [vm] = make_vms(connection, pool)
        [job] = make_jobs(connection, pool)
        for _ in range(MAX_LOSSES):
            connection.execute(text("UPDATE jobs SET not_before = NULL"))
            [placed] = dispatch(connection)
            entry = {"a": placed.attempt_id, "why": "LOST", "started": begun, "s": None, "x": 11.0}
            record(connection, vm, *decisions.of_entries(connection, [(entry, 12.0)]))
        found = row(connection, "jobs", job)
        wanted = ("TERMINATED", MAX_LOSSES) if begun else ("NEW", 0)
        assert (found["state"], found["losses"]) == wanted
        assert_sound(connection)


def test_a_job_that_takes_its_machines_before_they_can_tell_is_stopped(engine: Engine) -> None:
    """Nobody hears that it began, and no journal is left: after four times as many it is stopped."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [job] = make_jobs(connection, pool)
        for count in range(1, 4 * MAX_LOSSES + 1):
            [vm] = make_vms(connection, pool)
            connection.execute(text("UPDATE jobs SET not_before = NULL"))
            assert [placed.job_id for placed in dispatch(connection)] == [job]
            _lose(connection, vm)
            found = row(connection, "jobs", job)
            assert found["losses"] == 0
            assert (found["not_before"] is None) == (count < 8 or count == 4 * MAX_LOSSES)
            if count < 4 * MAX_LOSSES:
                assert found["state"] == "NEW"
        assert (found["state"], found["reason"]) == ("TERMINATED", "LOST")
        assert "20 times with VMs it had been sent to" in found["message"]
        assert_sound(connection)


def test_a_cancelled_job_does_not_run_again(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        cancel.request_cancel(connection, [job])
        _lose(connection, vm)
        found = row(connection, "jobs", job)
        assert (found["state"], found["reason"]) == ("TERMINATED", "CANCELLED")
        assert state(connection, "attempt", placed.attempt_id) == "LOST"


@pytest.mark.parametrize("retries", [0, 1])
def test_a_failure_is_no_loss(engine: Engine, retries: int) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool, max_attempts=1 + retries)
        entry: dict[str, Any] = {
            "a": placed.attempt_id,
            "why": "NONZERO",
            "st": 3,
            "s": 10.0,
            "x": 11.0,
        }
        outcomes = decisions.of_entries(connection, [(entry, 12.0)])
        record(connection, vm, *outcomes)
        found = row(connection, "jobs", job)
        assert (found["failures"], found["losses"]) == (1, 0)
        assert found["state"] == ("NEW" if retries else "TERMINATED")
        assert row(connection, "attempts", placed.attempt_id)["wall_s"] == 1.0
        assert_sound(connection)


def test_the_vm_comes_back_and_reports_what_was_given_up(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        _lose(connection, vm)
        move_vm(connection, vm, VmState.RUNNING)
        entry: dict[str, Any] = {
            "a": placed.attempt_id,
            "why": "OK",
            "st": 0,
            "s": 1.0,
            "x": 2.0,
            "o": "eA==",
        }
        outcomes = decisions.of_entries(connection, [(entry, 3.0)])
        outputs = decisions.inline_outputs(entry)
        assert record(connection, vm, *outcomes, outputs=outputs, journal_n=5) == set()
        assert state(connection, "job", job) == "NEW"
        assert path(connection, "attempt", placed.attempt_id) == "PLACED STARTED LOST"
        assert connection.scalar(text("SELECT count(*) FROM attempt_outputs")) == 0
        assert exits.lock_journal(connection, vm) == 5
        assert_sound(connection)


def test_losing_races_recording(engine: Engine) -> None:
    """Either the job ended well, or it runs again; the attempt has one end."""
    for number in range(8):
        with engine.begin() as connection:
            pool = make_pool(connection, f"p{number}")
            [vm] = make_vms(connection, pool)
            job, placed = running_job(connection, pool)

        def end(vm: int = vm, attempt: int = placed.attempt_id) -> int:
            return len(transact(engine, lambda c: record(c, vm, ended(attempt))))

        def lose(vm: int = vm) -> int:
            return transact(engine, lambda c: _lose(c, vm))

        ends, losses = together(end, lose)
        assert ends + losses == 1
        with engine.begin() as connection:
            assert state(connection, "job", job) == ("TERMINATED" if ends else "NEW")
            assert_sound(connection)
