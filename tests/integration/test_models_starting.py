"""What a runner is told to start, what is recalled from it, and what comes to no turn there."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from remuda.models import exits, starting
from remuda.models.database import rows
from remuda.models.dispatch import take_snapshot
from tests.integration.builders import (
    age,
    assert_sound,
    dispatch,
    ended,
    lost,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
    row,
    running_job,
    state,
)


def test_what_the_runner_is_told(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        [waiting] = make_jobs(connection, pool, follow=True, walltime_s=9, array_index=None)
        [second] = dispatch(connection)
        [told] = starting.to_start(connection, vm)
        assert (told["attempt_id"], told["job_id"], told["epoch"]) == (
            second.attempt_id,
            waiting,
            1,
        )
        assert (told["command"], told["follow"], told["walltime_s"]) == (["/bin/true"], True, 9)
        assert starting.to_start(connection, vm, attempt_ids=[placed.attempt_id]) == []
        assert starting.to_start(connection, vm, attempt_ids=[]) == []
        assert starting.to_start(connection, vm, older_than_s=5) == []
        age(connection, "attempts", [second.attempt_id], "placed_at", 6)
        assert len(starting.to_start(connection, vm, older_than_s=5)) == 1
        assert starting.floor(connection, vm) == placed.attempt_id
        record(connection, vm, ended(placed.attempt_id))
        assert starting.floor(connection, vm) == second.attempt_id
        record(connection, vm, ended(second.attempt_id))
        assert starting.floor(connection, vm) == second.attempt_id + 1
        assert state(connection, "job", job) == "TERMINATED"


def test_recalling_what_has_not_started(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        running, started = running_job(connection, pool)
        [job] = make_jobs(connection, pool)
        [placed] = dispatch(connection)
        both = [started.attempt_id, placed.attempt_id]
        assert starting.take_back(connection, vm, both) == [placed.attempt_id]
        assert path(connection, "job", job) == "NEW SUBMITTED NEW"
        assert path(connection, "attempt", placed.attempt_id) == "PLACED CANCELLED"
        assert state(connection, "job", running) == "RUNNING"
        assert starting.take_back(connection, vm, both) == []
        record(connection, vm, ended(placed.attempt_id))  # too late: changes nothing
        [again] = dispatch(connection)
        assert (again.job_id, row(connection, "attempts", again.attempt_id)["epoch"]) == (job, 2)
        assert_sound(connection)


def test_recalling_the_last_one_ends_the_lease(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        make_jobs(connection, pool)
        [placed] = dispatch(connection)
        exits.lock_journal(connection, vm)
        starting.take_back(connection, vm, [placed.attempt_id])
        assert rows(connection, "SELECT FROM leases WHERE released_at IS NULL") == []
        assert len(dispatch(connection)) == 1  # under a new lease
        assert_sound(connection)


def test_losing_and_placing_in_turn(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        [job] = make_jobs(connection, pool)
        for epoch in range(1, 6):
            [placed] = dispatch(connection)
            assert row(connection, "attempts", placed.attempt_id)["epoch"] == epoch
            record(connection, vm, lost(placed.attempt_id))
        assert row(connection, "jobs", job)["losses"] == 5
        assert_sound(connection)


def _running_for(connection: Connection, attempt: int, seconds: float, expected: float) -> None:
    connection.execute(
        text(
            """UPDATE attempts SET started_at = now() - make_interval(secs => :seconds),
                 expected_wall_s = :expected WHERE id = :id"""
        ),
        {"id": attempt, "seconds": seconds, "expected": expected},
    )


def test_nothing_is_placed_ahead_of_what_takes_long(engine: Engine) -> None:
    """Neither behind what is known to be long nor behind what was thought to be over by now."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        both = [running_job(connection, pool)[1].attempt_id for _ in range(2)]
        connection.execute(text("UPDATE owners SET mean_wall_s = 0.01"))
        make_jobs(connection, pool, 9)
        make_jobs(connection, pool, 9, cores=2)

        def ahead() -> tuple[list[int], int]:
            snapshot = take_snapshot(connection, max_ahead=100, horizon_s=0.5)
            return sorted(job.cores for job in snapshot.jobs), snapshot.vms[0].ahead_slots

        for attempt in both:
            _running_for(connection, attempt, 0.1, 0.01)
        assert ahead() == ([1] * 9 + [2] * 9, 2)
        _running_for(connection, both[0], 3.0, 0.01)
        assert ahead() == ([1] * 9, 1)
        _running_for(connection, both[1], 0.1, 100.0)
        assert ahead() == ([], 0)


def test_what_does_not_come_to_its_turn_is_stuck(engine: Engine) -> None:
    """Behind what takes long; what has free slots, or will soon, stays."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        [vm] = make_vms(connection, pool)
        attempt = running_job(connection, pool)[1].attempt_id
        _running_for(connection, attempt, 0.1, 0.01)
        connection.execute(text("UPDATE owners SET mean_wall_s = 0.01"))
        make_jobs(connection, pool)
        [direct] = dispatch(connection, max_ahead=3)
        make_jobs(connection, pool, 2)
        queued = [placed.attempt_id for placed in dispatch(connection, max_ahead=3)]
        assert len(queued) == 2

        def stuck() -> list[int]:
            return starting.stuck(connection, vm, horizon_s=0.5)

        _running_for(connection, attempt, 3.0, 0.01)
        assert stuck() == []
        exits.record_starts(connection, vm, {direct.attempt_id: 3.0})
        assert stuck() == queued
        _running_for(connection, direct.attempt_id, 0.1, 0.01)
        assert stuck() == []
        for table, memory in (("vms", 100), ("attempts", 60)):  # slots alone are no use
            connection.execute(text(f"UPDATE {table} SET memory_bytes = {memory}"))
        assert stuck() == queued
        assert starting.take_back(connection, vm, queued) == queued
        assert stuck() == []
        assert_sound(connection)
