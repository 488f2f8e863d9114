"""Several dispatchers: each has pools in hand, none waits for another, and nothing is given out twice."""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, Engine, text

from remuda.config import Settings
from remuda.models import cancel, free_vms, owners
from remuda.models.database import rows, transact
from remuda.models.dispatch import apply_placements, take_snapshot
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from remuda.tasks import placements
from tests.integration.builders import (
    OWNER,
    assert_sound,
    fit,
    make_jobs,
    make_pool,
    make_vms,
    row,
    running_job,
    together,
)
from tests.integration.workbench import Workbench

take = partial(free_vms.take_pools, max_ahead=0, horizon_s=0.5)


def place_all(engine: Engine, settings: Settings) -> int:
    """Dispatch as a process of its own would; return how many jobs were placed."""
    return sum(map(len, placements.placements(partial(transact, engine), settings)))


def test_a_pool_is_in_the_hand_of_one(engine: Engine) -> None:
    with engine.begin() as connection:
        pools = [make_pool(connection, name) for name in "abc"]
        for pool in pools:
            make_vms(connection, pool)
    with engine.connect() as first, engine.connect() as second:
        assert take(first, pools[:2]) == pools[:2]
        assert take(second, pools) == pools[2:]
        first.commit()
        assert take(second, pools) == pools


def test_full_pools_are_passed_over_and_free_to_others(engine: Engine) -> None:
    """Nobody holds what is full: who sees it get room finds it free."""
    with engine.begin() as connection:
        full, partly, empty = [make_pool(connection, name, slots_per_vm=2) for name in "abc"]
        make_vms(connection, full)
        make_vms(connection, partly, 2)
        for pool in (full, full, partly):
            running_job(connection, pool)
        connection.execute(text("UPDATE attempts SET started_at = now() + interval '1 h'"))
    with engine.connect() as first, engine.connect() as second:
        pools = [full, partly, empty]
        free = partial(free_vms.free_slots, first, pools, horizon_s=0.5)
        assert free(max_ahead=0) == {partly: 3}
        assert free(max_ahead=1) == {full: 0, partly: 3}  # as nothing takes long there
        assert take(first, pools) == [partly]
        held = """SELECT count(*) AS count FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                  WHERE l.locktype = 'advisory' AND d.datname = current_database()"""
        assert rows(second, held)[0]["count"] == 1


def limited_array(connection: Connection, pool: int, count: int, *, most: int) -> list[int]:
    owner = owner_id(connection, OWNER)
    array = new_array(connection, owner=owner, name="", size=count, max_running=most)
    return insert_jobs(
        connection,
        [NewSpec(command=["x"])],
        [NewJob(spec=0)] * count,
        pool_id=pool,
        owner=owner,
        array_id=array,
    )


def test_an_array_that_another_holds_is_left_to_it(engine: Engine) -> None:
    """Others' jobs go on, those of the array wait for its holder; its limit holds."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        make_vms(connection, pool, 2)
        limited = limited_array(connection, pool, 9, most=3)
        others = make_jobs(connection, pool, 2, owner="bob")
    with engine.connect() as first, engine.connect() as second:
        first.execute(text("SELECT FROM arrays FOR NO KEY UPDATE"))
        snapshot = take_snapshot(second, max_ahead=0, wait=False)
        assert [job.id for job in snapshot.jobs] == others
        assert (snapshot.skipped_free, snapshot.skipped_ahead) == (True, False)
        second.rollback()
        first.rollback()
        snapshot = take_snapshot(second, max_ahead=0, wait=False)
        assert [job.id for job in snapshot.jobs] == [*limited[:3], *others]
        assert not snapshot.skipped_free


def test_no_array_is_locked_that_nothing_can_be_placed_of(engine: Engine) -> None:
    with engine.begin() as connection:
        busy, free = [make_pool(connection, name, slots_per_vm=1) for name in "ab"]
        make_vms(connection, busy)
        make_vms(connection, free)
        running_job(connection, busy)
        limited_array(connection, busy, 2, most=1)
        make_jobs(connection, free)
    with engine.connect() as first, engine.connect() as second:
        assert len(take_snapshot(first, max_ahead=0).jobs) == 1
        second.execute(text("SELECT FROM arrays FOR UPDATE NOWAIT"))


def test_who_was_cancelled_or_taken_meanwhile_is_passed_over(engine: Engine) -> None:
    """Between the look and the claim, by others: no attempt, no lease, nothing bound."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4, isolation="owner")
        [vm] = make_vms(connection, pool)
        gone, held, locked = make_jobs(connection, pool, 3)
    with engine.connect() as first, engine.connect() as second:
        snapshot = take_snapshot(first, max_ahead=0)
        assert len(snapshot.jobs) == 3
        cancel.request_cancel(second, [gone])
        second.execute(text("UPDATE jobs SET held = true WHERE id = :id"), {"id": held})
        second.commit()
        second.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": locked})
        assert apply_placements(first, snapshot, fit(snapshot)) == []
        first.commit()
        assert row(first, "vms", vm)["bound_owner_id"] is None
        assert rows(first, "SELECT * FROM leases") == []
        second.rollback()
        first.rollback()
        snapshot = take_snapshot(first, max_ahead=0)
        assert [each.job_id for each in apply_placements(first, snapshot, fit(snapshot))] == [
            locked
        ]
        first.commit()
        assert_sound(second)


def test_many_dispatchers_fill_many_pools(bench: Workbench) -> None:
    """Quotas over pools, arrays with limits, jobs for several pools: all slots are used, none twice."""
    engine = bench.engine
    with engine.begin() as connection:
        pools = [make_pool(connection, f"p{number}", slots_per_vm=4) for number in range(8)]
        for pool in pools:
            make_vms(connection, pool, 3)
            for owner in ("alice", "bob", "carol"):
                make_jobs(connection, pool, 20, owner=owner)
            limited_array(connection, pool, 5, most=2)
        owners.change(connection, "bob", {"max_slots": 7})
    work = partial(place_all, engine, bench.settings)
    assert sum(together(*[work] * 4)) == 8 * 12
    with engine.begin() as connection:
        used = rows(
            connection,
            """SELECT o.name, sum(a.cores)::int AS slots FROM attempts a JOIN jobs j ON j.id = a.job_id
               JOIN owners o ON o.id = j.owner_id WHERE a.state = 'PLACED' GROUP BY 1""",
        )
        assert {each["name"]: each["slots"] for each in used}["bob"] <= 7
        over = """
            SELECT j.array_id FROM attempts a JOIN jobs j ON j.id = a.job_id
            JOIN arrays r ON r.id = j.array_id WHERE a.state = 'PLACED'
            GROUP BY 1, r.max_running HAVING count(*) > r.max_running"""
        assert rows(connection, over) == []
        full = "SELECT vm_id FROM attempts WHERE state = 'PLACED' GROUP BY 1 HAVING sum(cores) <> 4"
        assert rows(connection, full) == []
        assert_sound(connection)
