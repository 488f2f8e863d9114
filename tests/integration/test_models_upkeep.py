"""What the sweeps find, and what they remove when its time is over."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from remuda.models import cancel, upkeep
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from remuda.models.watches import record_heartbeats
from tests.integration.builders import (
    age,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    record,
    row,
    running_job,
)


def _count(connection: Connection, table: str) -> int:
    return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def _expire(connection: Connection) -> None:
    upkeep.expire(connection, heartbeat_retention_s=100, event_retention_s=200)


def test_attempts_without_news(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        _, exited = running_job(connection, pool)
        record(connection, vm, ended(exited.attempt_id, state="EXITED", job_state="TERMINATING"))
        _, started = running_job(connection, pool)
        make_jobs(connection, pool, 2)
        placed = [p.attempt_id for p in dispatch(connection)]
        found = upkeep.attempts_without_news(connection)
        assert (found.placed, found.exited, found.quiet) == ({}, {}, [])
        age(connection, "attempts", placed, "placed_at", 6)
        age(connection, "attempts", [exited.attempt_id], "ended_at", 11)
        found = upkeep.attempts_without_news(connection)
        assert (found.placed, found.exited) == ({vm: placed}, {vm: [exited.attempt_id]})
        assert started.attempt_id not in placed
        move_vm(connection, vm, VmState.STALLED)
        assert upkeep.attempts_without_news(connection) == upkeep.Missed()


def test_a_quiet_vm_is_compared_in_its_turn(engine: Engine) -> None:
    """Once in thirty seconds: each VM has its five."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        made = make_vms(connection, pool, 6)
        make_jobs(connection, pool, 6)
        ids = [p.attempt_id for p in dispatch(connection)]
        connection.execute(text("UPDATE attempts SET state = 'STARTED', started_at = now()"))
        assert upkeep.attempts_without_news(connection).quiet == []
        age(connection, "attempts", ids, "started_at", 31)
        # The six ids are six residues: just one of them is due in any five seconds.
        [due] = upkeep.attempts_without_news(connection).quiet
        assert due in made


def test_history_is_removed_after_its_time(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        beat = {
            "vm_id": vm,
            "load": 0.0,
            "running_jobs": 0,
            "memory_free_bytes": 0,
            "disk_free_bytes": 0,
            "uptime_s": 0.0,
        }
        connection.execute(
            text(
                """INSERT INTO heartbeats (vm_id, at, load, running_jobs, memory_free_bytes,
                     disk_free_bytes, uptime_s)
                   VALUES (:vm, now() - interval '101 s', 0, 0, 0, 0, 0)"""
            ),
            {"vm": vm},
        )
        record_heartbeats(connection, [beat])
        connection.execute(text("UPDATE events SET at = now() - interval '201 s'"))
        old = _count(connection, "events")
        record(connection, vm, ended(placed.attempt_id))
        _expire(connection)
        assert _count(connection, "heartbeats") == 1
        left = _count(connection, "events")
        assert 0 < left < old
        _expire(connection)
        assert _count(connection, "events") == left
        assert row(connection, "jobs", job)["state"] == "TERMINATED"  # the record stays


def test_followed_output_is_removed_once_the_record_is_complete(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        _, placed = running_job(connection, pool)
        attempt = placed.attempt_id
        cancel.insert_chunks(
            connection, [{"attempt_id": attempt, "stream": "stdout", "at_byte": 0, "data": b"x"}]
        )
        _expire(connection)
        assert _count(connection, "output_chunks") == 1
        record(connection, vm, ended(attempt))
        _expire(connection)
        assert _count(connection, "output_chunks") == 1  # somebody may still read it
        age(connection, "attempts", [attempt], "ended_at", 61)
        _expire(connection)
        assert _count(connection, "output_chunks") == 0
