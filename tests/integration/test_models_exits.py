"""What runners report is recorded once, whoever repeats it; late answers change nothing."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models import collect, exits
from remuda.models.database import rows, transact
from remuda.models.states import VmState
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from remuda.models.vm_life import move_vm
from tests.integration.builders import (
    OWNER,
    age,
    assert_sound,
    dispatch,
    ended,
    finish,
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


def _everything(connection: Connection) -> dict[str, object]:
    """Return all that a report could change, but for the journal's mark."""
    return {
        table: rows(connection, f"SELECT * FROM {table} ORDER BY 1")
        for table in ("jobs", "attempts", "events", "leases", "arrays", "owners")
    } | {"outputs": rows(connection, "SELECT * FROM attempt_outputs ORDER BY 1, 2, 3")}


def _output(attempt: int, data: bytes = b"hello\0\xff") -> dict[str, object]:
    return {
        "attempt_id": attempt,
        "kind": "stream",
        "name": "stdout",
        "size": len(data),
        "data": base64.b64encode(data).decode(),
        "url": None,
    }


def _one(connection: Connection, **fields: object) -> tuple[int, int, int]:
    """Return (VM, job, attempt) of a started job."""
    pool = make_pool(connection)
    make_vms(connection, pool)
    job, placed = running_job(connection, pool, **fields)
    return placed.vm_id, job, placed.attempt_id


def test_starts(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        found = row(connection, "attempts", attempt)
        assert found["state"] == "STARTED"
        assert (
            connection.scalar(text("SELECT now()")) - found["started_at"]
        ).total_seconds() == 0.5
        assert row(connection, "jobs", job)["started_at"] == found["started_at"]
        before = _everything(connection)
        exits.record_starts(connection, vm, {attempt: 3.0})
        exits.record_starts(connection, vm + 1, {attempt: 3.0})
        exits.record_starts(connection, vm, {})
        exits.record_starts(connection, vm, {12345: 1.0})
        assert _everything(connection) == before


def test_an_end_with_everything_known_of_it(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        outcome = ended(
            attempt,
            exit_code=200,
            reason="NONZERO",
            message="m",
            user_s=0.1,
            system_s=0.2,
            max_rss_bytes=1 << 33,
        )
        assert record(connection, vm, outcome, outputs=[_output(attempt)]) == {attempt}
        made = row(connection, "attempts", attempt)
        assert (made["exit_code"], made["reason"], made["wall_s"]) == (200, "NONZERO", 1.0)
        assert (made["user_s"], made["system_s"], made["max_rss_bytes"]) == (0.1, 0.2, 1 << 33)
        kept = row(connection, "jobs", job)
        assert (kept["state"], kept["exit_code"], kept["signal"]) == ("TERMINATED", 200, None)
        assert (kept["reason"], kept["message"]) == ("NONZERO", "m")
        assert kept["ended_at"] == connection.scalar(text("SELECT now()"))
        [output] = rows(connection, "SELECT * FROM attempt_outputs")
        assert (bytes(output["data"]), output["size"]) == (b"hello\0\xff", 7)
        [lease] = rows(connection, "SELECT released_at FROM leases")
        assert lease["released_at"] is not None
        assert row(connection, "vms", vm)["busy_at"] is not None
        assert_sound(connection)


def test_recording_again_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, _, attempt = _one(connection)
        record(connection, vm, ended(attempt), outputs=[_output(attempt)])
        before = _everything(connection)
        again = ended(attempt, exit_code=1, reason="NONZERO")
        assert record(connection, vm, again, outputs=[_output(attempt, b"other")]) == set()
        assert record(connection, vm, lost(attempt)) == set()
        exits.record_starts(connection, vm, {attempt: 1.0})
        assert _everything(connection) == before


def test_recording_at_the_same_time(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)

    def work() -> set[int]:
        return transact(engine, lambda c: record(c, vm, ended(attempt), journal_n=3))

    assert sorted(together(*[work] * 4), key=len) == [set(), set(), set(), {attempt}]
    with engine.begin() as connection:
        assert path(connection, "job", job) == "NEW SUBMITTED RUNNING TERMINATING TERMINATED"
        assert_sound(connection)


def test_a_late_answer_of_a_replaced_attempt(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, old = _one(connection)
        record(connection, vm, lost(old))
        [new] = dispatch(connection)
        before = _everything(connection)
        late = ended(old, exit_code=7, reason="NONZERO")
        assert record(connection, vm, late, outputs=[_output(old)]) == set()
        exits.record_starts(connection, vm, {old: 9.0})
        assert finish(connection, vm, late) == set()
        assert _everything(connection) == before
        record(connection, vm, ended(new.attempt_id))
        assert row(connection, "jobs", job)["exit_code"] == 0
        assert record(connection, vm, late) == set()
        assert_sound(connection)


def test_another_vm_cannot_end_it(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        [other] = make_vms(connection, row(connection, "vms", vm)["pool_id"])
        before = _everything(connection)
        assert record(connection, other, ended(attempt), outputs=[_output(attempt)]) == set()
        assert _everything(connection) == before
        assert state(connection, "job", job) == "RUNNING"


def test_the_journals_mark(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, _, _ = _one(connection)
        assert exits.lock_journal(connection, vm) == 0
        exits.record_ends(connection, vm, [], journal_n=7)
        assert exits.lock_journal(connection, vm) == 7
        exits.record_ends(connection, vm, [], journal_n=3)  # an older batch, repeated
        assert exits.lock_journal(connection, vm) == 7
        assert exits.lock_journal(connection, 12345) is None
        move_vm(connection, vm, VmState.STOPPING)
        assert exits.lock_journal(connection, vm) == 7  # may still report
        move_vm(connection, vm, VmState.HALTED)
        assert exits.lock_journal(connection, vm) is None


def test_the_mark_is_read_under_a_lock(engine: Engine) -> None:
    """Two watchers with one batch: the second sees what the first took."""
    with engine.begin() as connection:
        vm, _, _ = _one(connection)

    def work() -> int:
        def take(connection: Connection) -> int:
            mark = exits.lock_journal(connection, vm)
            assert mark is not None
            exits.record_ends(connection, vm, [], journal_n=mark + 1)
            return mark

        return transact(engine, take)

    assert sorted(together(*[work] * 5)) == [0, 1, 2, 3, 4]


def test_a_failed_attempt_that_is_tried_again(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection, max_attempts=2)
        outcome = ended(
            attempt,
            exit_code=1,
            reason="NONZERO",
            job_state="NEW",
            failure=True,
            delay_s=30.0,
            message="no luck",
        )
        record(connection, vm, outcome)
        found = row(connection, "jobs", job)
        assert (found["state"], found["failures"], found["losses"]) == ("NEW", 1, 0)
        assert (found["exit_code"], found["reason"], found["started_at"]) == (None, None, None)
        assert found["message"] == "no luck"
        assert dispatch(connection) == []  # not yet
        age(connection, "jobs", [job], "not_before", 31)
        [again] = dispatch(connection)
        record(connection, vm, ended(again.attempt_id))
        assert row(connection, "jobs", job)["message"] is None
        assert row(connection, "attempts", attempt)["message"] == "no luck"
        assert_sound(connection)


def test_an_exit_without_a_start(engine: Engine) -> None:
    """A command that was not found: the runner has an exit code and no start to tell."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        [job] = make_jobs(connection, pool)
        [placed] = dispatch(connection)
        outcome = ended(placed.attempt_id, exit_code=127, reason="NONZERO", started_age_s=None)
        assert record(connection, placed.vm_id, outcome) == {placed.attempt_id}
        found = row(connection, "attempts", placed.attempt_id)
        assert found["started_at"] == found["ended_at"]
        assert found["wall_s"] is None
        assert row(connection, "jobs", job)["exit_code"] == 127
        assert_sound(connection)


@pytest.mark.parametrize("in_array", [True, False])
def test_run_times_are_learned(engine: Engine, in_array: bool) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        owner = owner_id(connection, OWNER)
        array = new_array(connection, owner=owner, name="", size=4)
        insert_jobs(
            connection,
            [NewSpec(command=["x"])],
            [NewJob(spec=0)] * 4,
            pool_id=pool,
            owner=owner,
            array_id=array if in_array else None,
        )
        ids = [p.attempt_id for p in dispatch(connection)]

        def mean() -> float | None:
            table, key = ("arrays", array) if in_array else ("owners", owner)
            found = row(connection, table, key)["mean_wall_s"]
            return None if found is None else round(float(found), 6)

        record(connection, vm, lost(ids[0], job_state="TERMINATED"))
        assert mean() is None  # tells nothing
        record(connection, vm, ended(ids[1], started_age_s=2.0, ended_age_s=0.0))
        assert mean() == 2.0
        walls = [
            ended(i, started_age_s=float(w), ended_age_s=0.0)
            for i, w in zip(ids[2:], (3, 5), strict=True)
        ]
        record(connection, vm, *walls)
        assert mean() == round(0.7 * 2 + 0.3 * 4, 6)
        other = row(connection, *(("owners", owner) if in_array else ("arrays", array)))
        assert other["mean_wall_s"] is None


def test_leases_last_as_long_as_their_owners_attempts(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        make_jobs(connection, pool, 2)
        make_jobs(connection, pool, owner="bob")
        placed = dispatch(connection)

        def held() -> int:
            found = rows(connection, "SELECT FROM leases WHERE for_jobs AND released_at IS NULL")
            return len(found)

        assert held() == 2
        record(connection, vm, ended(placed[0].attempt_id))
        assert held() == 2
        record(
            connection,
            vm,
            ended(placed[1].attempt_id, state="EXITED", job_state="TERMINATING"),
            ended(placed[2].attempt_id),
        )
        assert held() == 1  # outputs are still on the VM
        finish(connection, vm, ended(placed[1].attempt_id))
        assert held() == 0
        assert_sound(connection)


def test_facts(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection, max_attempts=3)
        connection.execute(text("UPDATE jobs SET cancel_requested_at = now()"))
        known = exits.facts(connection, [attempt, 12345])
        assert known == {
            attempt: exits.AttemptFacts(
                attempt_id=attempt,
                job_id=job,
                state="STARTED",
                max_attempts=3,
                failures=0,
                losses=0,
                cancelled=True,
            )
        }
        assert exits.facts(connection, []) == {}
        record(connection, vm, lost(attempt))
        dispatch(connection)
        assert exits.facts(connection, [attempt]) == {}  # replaced


def test_outputs_to_fetch(engine: Engine) -> None:
    pending = {"files": {"out.txt": 3}, "streams": ["stdout"]}
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        outcome = ended(attempt, state="EXITED", job_state="TERMINATING", pending=pending)
        record(connection, vm, outcome, outputs=[{**_output(attempt), "name": "stderr"}])
        assert row(connection, "jobs", job)["reason"] is None
        [found] = collect.to_collect(connection, vm_id=vm)
        assert (found["attempt_id"], found["pending"], found["exit_code"]) == (attempt, pending, 0)
        assert found["reason"] == "OK"
        assert collect.to_collect(connection, vm_id=vm + 1) == []
        assert collect.to_collect(connection, attempt_ids=[]) == []
        assert collect.to_collect(connection, attempt_ids=[attempt], older_than_s=5) == []
        [live] = collect.live_attempts(connection, [vm])
        assert live["state"] == "EXITED"
        url = {
            "attempt_id": attempt,
            "kind": "file",
            "name": "out.txt",
            "size": 3,
            "data": None,
            "url": "file:///out",
        }
        assert finish(connection, vm, ended(attempt), outputs=[url]) == {attempt}
        assert state(connection, "job", job) == "TERMINATED"
        assert row(connection, "jobs", job)["exit_code"] == 0
        assert row(connection, "attempts", attempt)["pending"] is None
        before = _everything(connection)
        again = ended(attempt, state="FAILED", reason="STAGING")
        assert finish(connection, vm, again, outputs=[{**url, "name": "late"}]) == set()
        assert _everything(connection) == before
        assert collect.to_collect(connection) == collect.live_attempts(connection, [vm]) == []
        kept = rows(connection, "SELECT kind, name FROM attempt_outputs ORDER BY 1, 2")
        assert [(r["kind"], r["name"]) for r in kept] == [("file", "out.txt"), ("stream", "stderr")]
        assert_sound(connection)


def test_collecting_twice_at_the_same_time(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        record(connection, vm, ended(attempt, state="EXITED", job_state="TERMINATING"))

    def work() -> set[int]:
        return transact(engine, lambda c: finish(c, vm, ended(attempt)))

    assert sorted(together(*[work] * 3), key=len) == [set(), set(), {attempt}]
    with engine.begin() as connection:
        assert path(connection, "job", job) == "NEW SUBMITTED RUNNING TERMINATING TERMINATED"


@pytest.mark.parametrize("again", [True, False])
def test_outputs_lost_with_the_vm(engine: Engine, again: bool) -> None:
    with engine.begin() as connection:
        vm, job, attempt = _one(connection)
        record(connection, vm, ended(attempt, state="EXITED", job_state="TERMINATING"))
        outcome = lost(attempt, job_state="NEW" if again else "TERMINATED", delay_s=0.0)
        finish(connection, vm, outcome)
        found = row(connection, "jobs", job)
        assert found["losses"] == 1
        if again:
            assert (found["state"], found["exit_code"], found["started_at"]) == ("NEW", None, None)
        else:
            assert (found["state"], found["exit_code"]) == ("TERMINATED", 0)
            assert found["reason"] == "LOST"
        assert path(connection, "attempt", attempt) == "PLACED STARTED EXITED LOST"
        assert_sound(connection)


def test_a_rolled_back_report_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        vm, _, attempt = _one(connection)
        before = _everything(connection)
    with engine.connect() as connection:
        record(connection, vm, ended(attempt), outputs=[_output(attempt)], journal_n=4)
        connection.rollback()
    with engine.begin() as connection:
        assert _everything(connection) == before
        assert exits.lock_journal(connection, vm) == 0
