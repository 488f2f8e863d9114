"""Retries by policy: by cause, with more memory, counted over an array, the pool's as default."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models.cancel import request_cancel
from remuda.models.database import transact
from remuda.models.starting import next_retry_s
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from remuda.retries import RetryPolicy, RetryRule, retry_row
from remuda.tasks import decisions
from tests.integration.builders import (
    assert_sound,
    dispatch,
    make_jobs,
    make_pool,
    make_vms,
    record,
    row,
    running_job,
    together,
)

GIB = 1 << 30


def _fail(connection: Connection, vm: int, attempt: int, why: str, **entry: Any) -> None:
    told: dict[str, Any] = {"a": attempt, "why": why, "s": 10.0, "x": 11.0, **entry}
    record(connection, vm, *decisions.of_entries(connection, [(told, 12.0)]))


def _again(connection: Connection) -> int:
    connection.execute(text("UPDATE jobs SET not_before = NULL"))
    [placed] = dispatch(connection)
    return placed.attempt_id


def test_causes_are_told_apart_over_several_attempts(engine: Engine) -> None:
    policy = RetryPolicy(
        max_retries=5,
        rules=[RetryRule(exit_codes=[75], delay_s=0), RetryRule(signals=["SEGV"], max_retries=1)],
    )
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        [job] = make_jobs(connection, pool, retry=retry_row(policy))
        for why, entry in (
            ("SIGNALLED", {"sig": 11}),
            ("NONZERO", {"st": 75}),
            ("NONZERO", {"st": 75}),
        ):
            _fail(connection, vm, _again(connection), why, **entry)
            assert row(connection, "jobs", job)["state"] == "NEW"
        assert row(connection, "jobs", job)["not_before"] is None  # 75 waits for nothing
        _fail(connection, vm, _again(connection), "SIGNALLED", sig=11)
        found = row(connection, "jobs", job)
        assert (found["state"], found["reason"], found["failures"]) == (
            "TERMINATED",
            "SIGNALLED",
            4,
        )
        assert "failed 2 times, of at most 2 times in this way" in found["message"]
        assert_sound(connection)


def test_out_of_memory_is_tried_with_more_until_there_is_no_more(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, memory_bytes_per_vm=3 * GIB)
        [vm] = make_vms(connection, pool)
        policy = retry_row(RetryPolicy(max_retries=9))
        [job] = make_jobs(connection, pool, memory_bytes=GIB, retry=policy)
        asked = []
        while row(connection, "jobs", job)["state"] == "NEW":
            attempt = _again(connection)
            asked.append(row(connection, "attempts", attempt)["memory_bytes"])
            _fail(connection, vm, attempt, "OUT_OF_MEMORY", sig=9, peak=asked[-1])
        assert asked == [GIB, 2 * GIB, 3 * GIB]
        found = row(connection, "jobs", job)
        assert (found["state"], found["reason"]) == ("TERMINATED", "OUT_OF_MEMORY")
        assert "more cannot be had" in found["message"]
        assert row(connection, "attempts", attempt)["peak_memory_bytes"] == 3 * GIB
        assert_sound(connection)


@pytest.mark.parametrize(
    ("of_pool", "of_job", "max_attempts", "again"),
    [
        ({"max_retries": 2}, None, 1, True),
        ({"max_retries": 2}, {"max_retries": 0}, 1, False),
        (None, {"max_retries": 1}, 1, True),
        ({"max_retries": 0}, None, 2, True),
        (None, None, 1, False),
    ],
)
def test_the_jobs_own_policy_goes_before_the_pools(
    engine: Engine, of_pool: Any, of_job: Any, max_attempts: int, again: bool
) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        if of_pool:
            policy = retry_row(RetryPolicy(**of_pool))
            connection.execute(
                text("UPDATE pools SET retry = CAST(:retry AS jsonb)"),
                {"retry": json.dumps(policy)},
            )
        [vm] = make_vms(connection, pool)
        own = retry_row(RetryPolicy(**of_job)) if of_job else None
        job, placed = running_job(connection, pool, retry=own, max_attempts=max_attempts)
        _fail(connection, vm, placed.attempt_id, "NONZERO", st=1)
        assert row(connection, "jobs", job)["state"] == ("NEW" if again else "TERMINATED")


def _array(connection: Connection, pool: int, count: int, policy: RetryPolicy) -> list[int]:
    owner = owner_id(connection, "somebody")
    array = new_array(connection, owner=owner, name="a", size=count)
    job = NewJob(spec=0, retry=retry_row(policy))
    return insert_jobs(
        connection,
        [NewSpec(command=["/bin/false"])],
        [job] * count,
        pool_id=pool,
        owner=owner,
        array_id=array,
    )


def test_the_retries_of_an_array_are_exact_when_vms_report_at_once(engine: Engine) -> None:
    policy = RetryPolicy(max_retries=3, max_total_retries=5)
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        vms = make_vms(connection, pool, 2)
        jobs = _array(connection, pool, 8, policy)
        placed = dispatch(connection)
        assert len(placed) == 8

    def fail(vm: int) -> int:
        mine = [p.attempt_id for p in placed if p.vm_id == vm]
        entries: list[Any] = [
            ({"a": a, "why": "NONZERO", "st": 1, "s": 1.0, "x": 2.0}, 3.0) for a in mine
        ]
        return transact(engine, lambda c: len(record(c, vm, *decisions.of_entries(c, entries))))

    assert together(lambda: fail(vms[0]), lambda: fail(vms[1])) == [4, 4]
    with engine.begin() as connection:
        states = [row(connection, "jobs", job)["state"] for job in jobs]
        assert sorted(states) == ["NEW"] * 5 + ["TERMINATED"] * 3
        assert connection.scalar(text("SELECT retried FROM arrays")) == 5
        assert_sound(connection)


def test_when_the_next_retry_is_due(engine: Engine) -> None:
    """The earliest of the pauses that are not over, of jobs that wait."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        assert next_retry_s(connection) is None
        jobs = make_jobs(connection, pool, 5)
        assert next_retry_s(connection) is None
        for job, pause_s in zip(jobs, (3600, 90, 0.5, -5, 30), strict=True):
            connection.execute(
                text(
                    "UPDATE jobs SET not_before = now() + make_interval(secs => :s) WHERE id = :id"
                ),
                {"s": pause_s, "id": job},
            )
        assert next_retry_s(connection) == pytest.approx(0.5)
        request_cancel(connection, [jobs[2], jobs[4]])
        assert next_retry_s(connection) == pytest.approx(90)
