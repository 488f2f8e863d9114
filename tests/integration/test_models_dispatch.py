"""The dispatcher's snapshot and its application, alone and in a crowd."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models import leases, starting
from remuda.models.database import rows, transact
from remuda.models.dispatch import anything_waiting, apply_placements, take_snapshot
from remuda.models.pool_life import close_pool
from remuda.models.states import VmState
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from remuda.models.vm_life import close_idle
from tests.integration.builders import (
    OWNER,
    age,
    assert_sound,
    dispatch,
    ended,
    fit,
    make_jobs,
    make_pool,
    make_vms,
    record,
    row,
    running_job,
    state,
    together,
    wait_for_a_lock,
)


def _live(connection: Connection) -> list[tuple[int, int]]:
    found = rows(connection, "SELECT job_id, vm_id FROM attempts ORDER BY id")
    return [(r["job_id"], r["vm_id"]) for r in found]


def test_a_placement_makes_attempts_with_a_lease(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        assert not anything_waiting(connection)
        jobs = make_jobs(connection, pool, 3, memory_bytes=5)
        assert anything_waiting(connection)
        placed = dispatch(connection)
        assert [p.job_id for p in placed] == jobs[:2]
        assert {p.vm_id for p in placed} == {vm}
        attempt = row(connection, "attempts", placed[0].attempt_id)
        assert (attempt["epoch"], attempt["cores"], attempt["memory_bytes"]) == (1, 1, 5)
        [lease] = rows(connection, "SELECT * FROM leases")
        assert lease["for_jobs"]
        assert lease["released_at"] is None
        assert dispatch(connection) == []
        assert_sound(connection)


def test_priority_then_age(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        low = make_jobs(connection, pool, 2, priority=-1)
        usual = make_jobs(connection, pool, 2)
        high = make_jobs(connection, pool, 2, priority=5)
        snapshot = take_snapshot(connection, max_ahead=0)
        assert [job.id for job in snapshot.jobs] == high
        connection.execute(text("UPDATE owners SET mean_wall_s = 0.01"))
        snapshot = take_snapshot(connection, max_ahead=100)
        assert [job.id for job in snapshot.jobs] == [*high, *usual, *low]
        assert snapshot.jobs[0].expected_wall_s == 0.01
        assert snapshot.now == connection.scalar(text("SELECT now()"))


@pytest.mark.parametrize("vm_state", [VmState.NEW, VmState.SUBMITTED])
def test_only_running_vms_take_work(engine: Engine, vm_state: VmState) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool, state=vm_state)
        make_jobs(connection, pool)
        assert take_snapshot(connection, max_ahead=4).vms == ()


def test_who_is_left_out(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        [waits] = make_jobs(connection, pool)
        connection.execute(text("UPDATE jobs SET not_before = now() + interval '1 hour'"))
        assert dispatch(connection) == []
        age(connection, "jobs", [waits], "not_before", 3601)
        connection.execute(text("UPDATE vms SET draining = true"))
        assert dispatch(connection) == []
        connection.execute(text("UPDATE vms SET draining = false"))
        other = make_pool(connection, "other")
        make_vms(connection, other)
        assert [vm.pool_id for vm in take_snapshot(connection, max_ahead=0).vms] == [pool]
        assert [p.job_id for p in dispatch(connection)] == [waits]


def test_what_is_used_already_counts(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=8, memory_bytes_per_vm=1000)
        [vm] = make_vms(connection, pool)
        running_job(connection, pool, cores=2, memory_bytes=300)
        make_jobs(connection, pool, cores=1, memory_bytes=100)
        dispatch(connection)
        leases.acquire(
            connection,
            pool_ids=[pool],
            owner="bob",
            sandbox="",
            slots=3,
            ttl_s=60,
        )
        make_jobs(connection, pool, 5)
        [room] = take_snapshot(connection, max_ahead=0).vms
        assert (room.id, room.used_slots, room.used_memory_bytes) == (vm, 6, 400)
        assert (room.backlog_count, room.backlog_s) == (1, 3600)
        assert len(dispatch(connection)) == 2
        assert_sound(connection)


def test_an_exited_attempt_leaves_its_slot(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [vm] = make_vms(connection, pool)
        _, placed = running_job(connection, pool)
        make_jobs(connection, pool)
        record(connection, vm, ended(placed.attempt_id, state="EXITED", job_state="TERMINATING"))
        assert len(dispatch(connection)) == 1


def test_jobs_that_fit_nowhere_hide_nobody(engine: Engine) -> None:
    """Too many cores, too much memory, or just not now: the others are seen past any number."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, memory_bytes_per_vm=100)
        [vm] = make_vms(connection, pool)
        running_job(connection, pool, memory_bytes=40)
        make_jobs(connection, pool, 50, cores=3, priority=9)
        make_jobs(connection, pool, 50, memory_bytes=101, priority=8)
        make_jobs(connection, pool, 50, cores=2, priority=7)  # not beside the one that runs
        make_jobs(connection, pool, 50, memory_bytes=61, priority=6)  # neither
        [small] = make_jobs(connection, pool, memory_bytes=60)
        snapshot = take_snapshot(connection, max_ahead=0)
        assert [job.id for job in snapshot.jobs] == [small]
        assert apply_placements(connection, snapshot, [(small, vm)])
        assert take_snapshot(connection, max_ahead=0).jobs == ()


def test_only_short_jobs_are_seen_for_the_queue(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
        running_job(connection, pool)
        owner = owner_id(connection, OWNER)
        made = {}
        for name, mean in (("long", 100.0), ("short", 0.01), ("unknown", None)):
            array = new_array(connection, owner=owner, name=name, size=3)
            connection.execute(
                text("UPDATE arrays SET mean_wall_s = :mean WHERE id = :id"),
                {"mean": mean, "id": array},
            )
            made[name] = insert_jobs(
                connection,
                [NewSpec(command=["x"])],
                [NewJob(spec=0)] * 3,
                pool_id=pool,
                owner=owner,
                array_id=array,
            )
        seen = take_snapshot(connection, max_ahead=2, horizon_s=0.5).jobs
        assert [job.id for job in seen] == made["short"][:2]
        assert take_snapshot(connection, max_ahead=0, horizon_s=0.5).jobs == ()


def test_the_order_of_the_queue_is_the_order_given(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        jobs = make_jobs(connection, pool, 4)
        snapshot = take_snapshot(connection, max_ahead=0)
        wanted = [jobs[i] for i in (2, 0, 3, 1)]
        placed = apply_placements(connection, snapshot, [(job, vm) for job in wanted])
        assert [p.job_id for p in sorted(placed, key=lambda p: p.attempt_id)] == wanted
        assert [r["job_id"] for r in starting.to_start(connection, vm)] == wanted


def test_dispatchers_in_a_crowd_place_each_job_once(engine: Engine) -> None:
    with engine.begin() as connection:
        for name in ("a", "b", "c"):
            pool = make_pool(connection, name, slots_per_vm=3)
            make_vms(connection, pool, 4)
            make_jobs(connection, pool, 30)

    def work() -> int:
        return sum(len(transact(engine, lambda c: dispatch(c))) for _ in range(6))

    together(*[work] * 6)
    with engine.begin() as connection:
        placed = _live(connection)
        assert len(placed) == len({job for job, _ in placed})
        per_vm = [sum(1 for _, v in placed if v == vm) for vm in {v for _, v in placed}]
        assert per_vm == [3] * 12
        assert_sound(connection)


def test_two_dispatchers_at_one_vm(engine: Engine) -> None:
    """The second, while the first is in the middle, sees no VM rather than one with room."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        make_vms(connection, pool)
        make_jobs(connection, pool, 8)
    with engine.connect() as first, engine.connect() as second:
        one = take_snapshot(first, max_ahead=0)
        two = take_snapshot(second, max_ahead=0)
        assert (len(one.vms), len(two.vms)) == (1, 0)
        assert apply_placements(second, two, fit(two)) == []
        assert len(apply_placements(first, one, fit(one))) == 4
        first.commit()
        second.commit()
        assert dispatch(second) == []


def test_a_job_cancelled_in_between_is_skipped(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        jobs = make_jobs(connection, pool, 2)
        snapshot = take_snapshot(connection, max_ahead=0)
        connection.execute(
            text(
                """UPDATE jobs SET state = 'TERMINATED', reason = 'CANCELLED', ended_at = now()
                   WHERE id = :id"""
            ),
            {"id": jobs[0]},
        )
        assert [p.job_id for p in apply_placements(connection, snapshot, fit(snapshot))] == [
            jobs[1]
        ]
        assert_sound(connection)


def test_closing_idle_vms_races_the_dispatcher(engine: Engine) -> None:
    """Either the VM stops, or it has work; never both, never neither."""
    for _ in range(12):
        with engine.begin() as connection:
            connection.execute(text("UPDATE pools SET name = 'old' || id WHERE name = 'herd'"))
            pool = make_pool(connection)
            [vm] = make_vms(connection, pool)
            [job] = make_jobs(connection, pool)

        def close(vm: int = vm) -> list[int]:
            return transact(engine, lambda c: close_idle(c, [vm]))

        def place() -> list[int]:
            return [p.vm_id for p in transact(engine, dispatch)]

        closed, placed = together(close, place)
        with engine.begin() as connection:
            if closed:
                assert (closed, placed) == ([vm], [])
                assert state(connection, "vm", vm) == "STOPPING"
                assert state(connection, "job", job) == "NEW"
            elif placed:
                assert state(connection, "vm", vm) == "RUNNING"
                assert state(connection, "job", job) == "SUBMITTED"
            else:
                pytest.fail("the VM was neither closed nor given work")
            assert_sound(connection)
            close_pool(connection, pool, now=True)


def test_close_idle_waits_for_the_dispatcher_and_looks_again(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        make_jobs(connection, pool)
    with engine.connect() as first:
        placed = dispatch(first)

        def close() -> list[int]:
            return transact(engine, lambda c: close_idle(c, [vm]))

        def commit() -> list[int]:
            wait_for_a_lock(engine)
            first.commit()
            return []

        assert together(close, commit) == [[], []]
    assert len(placed) == 1
    with engine.begin() as connection:
        assert state(connection, "vm", vm) == "RUNNING"
