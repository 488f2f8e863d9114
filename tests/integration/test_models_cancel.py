"""Cancelling and following, in whatever state a job is."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from remuda.models import calls, cancel, deadlines, outputs, pool_life, requests
from remuda.models.database import rows, transact
from tests.integration.builders import (
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
    together,
)


def test_a_waiting_job_ends_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        jobs = make_jobs(connection, pool, 3)
        assert sorted(cancel.request_cancel(connection, jobs[:2])) == jobs[:2]
        found = row(connection, "jobs", jobs[0])
        assert (found["state"], found["reason"], found["exit_code"]) == (
            "TERMINATED",
            "CANCELLED",
            None,
        )
        assert path(connection, "job", jobs[0]) == "NEW TERMINATED"
        assert state(connection, "job", jobs[2]) == "NEW"
        assert cancel.to_cancel(connection) == []
        assert_sound(connection)


def test_an_ended_job_is_left_as_it_is(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        record(connection, placed.vm_id, ended(placed.attempt_id))
        before = row(connection, "jobs", job)
        assert cancel.request_cancel(connection, [job, 12345]) == []
        assert cancel.request_cancel(connection, []) == []
        assert row(connection, "jobs", job) == before


@pytest.mark.parametrize("here", ["SUBMITTED", "RUNNING", "STOPPED", "UNKNOWN", "TERMINATING"])
def test_a_job_on_a_machine_is_asked_to_end(engine: Engine, here: str) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        if here == "SUBMITTED":
            [job] = make_jobs(connection, pool)
            [placed] = dispatch(connection)
        else:
            job, placed = running_job(connection, pool)
        if here in ("STOPPED", "UNKNOWN"):
            connection.execute(text("UPDATE jobs SET state = :here"), {"here": here})
        if here == "TERMINATING":
            record(
                connection, vm, ended(placed.attempt_id, state="EXITED", job_state="TERMINATING")
            )
        assert cancel.request_cancel(connection, [job]) == [job]
        first = row(connection, "jobs", job)
        assert first["state"] == here
        assert first["cancel_requested_at"] is not None
        assert cancel.request_cancel(connection, [job]) == [job]
        assert row(connection, "jobs", job) == first
        wanted = [] if here == "TERMINATING" else [(vm, placed.attempt_id, "RUNNING")]
        for found in (
            cancel.to_cancel(connection),
            cancel.to_cancel(connection, job_ids=[job, 12345]),
        ):
            assert [tuple(r.values()) for r in found] == wanted
        assert cancel.to_cancel(connection, job_ids=[]) == []
        assert_sound(connection)


def test_the_real_outcome_is_what_counts(engine: Engine) -> None:
    """It ended by itself before the kill reached it."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        cancel.request_cancel(connection, [job])
        record(connection, placed.vm_id, ended(placed.attempt_id))
        assert row(connection, "jobs", job)["reason"] == "OK"
        assert cancel.to_cancel(connection) == []


def test_a_cancelled_job_that_was_requeued_meanwhile(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        [other] = make_jobs(connection, pool)
        cancel.request_cancel(connection, [job])
        record(connection, placed.vm_id, lost(placed.attempt_id))
        assert state(connection, "job", job) == "NEW"
        assert cancel.cancel_requeued(connection) == 1
        assert cancel.cancel_requeued(connection) == 0
        assert row(connection, "jobs", job)["reason"] == "CANCELLED"
        assert state(connection, "job", other) == "NEW"
        assert_sound(connection)


def test_cancelling_races_the_dispatcher(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=100)
        make_vms(connection, pool)
    for _ in range(10):
        with engine.begin() as connection:
            jobs = make_jobs(connection, pool, 4)
        wishes, placed = together(
            lambda jobs=jobs: transact(engine, lambda c: cancel.request_cancel(c, jobs)),  # type: ignore[misc]
            lambda: [p.job_id for p in transact(engine, dispatch)],
        )
        assert sorted(wishes) == jobs
        with engine.begin() as connection:
            for job in jobs:
                assert state(connection, "job", job) == (
                    "SUBMITTED" if job in placed else "TERMINATED"
                )
                assert row(connection, "jobs", job)["cancel_requested_at"] is not None
            assert {r["attempt_id"] for r in cancel.to_cancel(connection, job_ids=jobs)} == {
                r["id"]
                for r in rows(
                    connection, "SELECT id FROM attempts WHERE job_id = ANY(:jobs)", jobs=jobs
                )
            }
            assert_sound(connection)


def test_follow(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        assert cancel.followed(connection, [vm]) == []
        requests.follow_job(connection, job)
        assert cancel.followed(connection, [vm]) == [{"vm_id": vm, "attempt_id": placed.attempt_id}]
        assert cancel.followed(connection, []) == []
        attempt = placed.attempt_id
        chunks = [
            {"attempt_id": attempt, "stream": stream, "at_byte": at, "data": data}
            for stream, at, data in [
                ("stdout", 0, b"abc"),
                ("stdout", 3, b"\0\xff"),
                ("stderr", 0, b"!"),
            ]
        ]
        cancel.insert_chunks(connection, chunks)
        cancel.insert_chunks(connection, chunks)  # repeated: nothing twice
        found = outputs.chunks_from(connection, attempt, offsets={})
        assert [(r["stream"], r["at_byte"], bytes(r["data"])) for r in found] == [
            ("stdout", 0, b"abc"),
            ("stdout", 3, b"\0\xff"),
            ("stderr", 0, b"!"),
        ]
        later = outputs.chunks_from(connection, attempt, offsets={"stdout": 3, "stderr": 1})
        assert [r["at_byte"] for r in later] == [3]
        record(connection, vm, ended(attempt))
        assert cancel.followed(connection, [vm]) == []


def test_once_more(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        other = make_pool(connection, "other")
        [job] = make_jobs(connection, pool, cores=2, name="n", idempotency_key="k")
        cancel.request_cancel(connection, [job])
        again = requests.submit_again(connection, job)
        there = requests.submit_again(connection, job, pool_id=other)
        first, second, third = (row(connection, "jobs", i) for i in (job, again, there))
        assert (second["state"], second["cores"], second["name"]) == ("NEW", 2, "n")
        assert second["spec_id"] == first["spec_id"]
        assert second["idempotency_key"] is None
        assert (second["pool_id"], third["pool_id"]) == (pool, other)
        assert_sound(connection)


@pytest.mark.parametrize("what", ["cancel", "hold", "deadline", "leave"])
def test_many_after_all_had_ended_take_no_time_squared(engine: Engine, what: str) -> None:
    size = 20_000
    with engine.begin() as connection:
        pool, other = make_pool(connection), make_pool(connection, "other")
        cancel.request_cancel(connection, make_jobs(connection, pool, 100))
        connection.execute(text("ANALYZE jobs"))  # now the planner expects that none is alive
    with engine.begin() as connection:
        jobs = make_jobs(connection, pool, size, max_queue_s=0.001)
        connection.execute(text("UPDATE jobs SET pool_ids = :ids"), {"ids": [pool, other]})
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '12s'"))
        if what == "cancel":
            assert len(cancel.cancel_matching(connection, pool_id=pool)) == size
        elif what == "hold":
            assert calls.hold(connection, jobs) == set(jobs)
        elif what == "deadline":
            assert len(deadlines.end_overdue(connection)) == size // 2  # so many at a time
        else:
            assert pool_life.leave_pool(connection, pool) == size
