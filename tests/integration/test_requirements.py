"""What jobs ask for, on a real database: dispatch, leases and sizing agree on who may go where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.models import deadlines, demand, leases, sizing
from remuda.models.database import rows, transact
from remuda.models.dispatch import anything_waiting, apply_placements, take_snapshot
from remuda.models.pool_life import close_pool
from remuda.models.states import VmState
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from remuda.tasks import placements
from remuda.tasks import sizing as sizing_task
from remuda.workers import placement, scaling
from tests.integration.builders import (
    OWNER,
    age,
    assert_sound,
    ended,
    lost,
    make_jobs,
    make_pool,
    make_vms,
    record,
    row,
    running_job,
    state,
    together,
)
from tests.invariants import INVARIANTS

GIB = 1 << 30
ISOLATED = next(query for name, query in INVARIANTS.items() if "isolates" in name)


def place(connection: Connection, *, max_ahead: int = 0) -> dict[int, int]:
    """Place as dispatch does; return the VM of each job."""
    snapshot = take_snapshot(connection, max_ahead=max_ahead, horizon_s=0.5)
    decided = placement.place(placements.for_placement(snapshot, 0.5, max_ahead), snapshot.now)
    placed = apply_placements(connection, snapshot, [(p.job_id, p.vm_id) for p in decided])
    return {p.job_id: p.vm_id for p in placed}


def measured(connection: Connection, vm: int, **fields: Any) -> None:
    """Let the VM be what its runner measured."""
    facts = {k: fields.pop(k) for k in ("cores", "disk_bytes", "cpu_model", "ssd") if k in fields}
    values = {"architecture": "x86_64", "gpus": 0, "memory_bytes": None, **fields}
    connection.execute(
        text(
            """UPDATE vms SET architecture = :architecture, gpus = :gpus, facts = CAST(:facts AS jsonb),
                 memory_bytes = :memory_bytes WHERE id = :vm"""
        ),
        {**values, "facts": json.dumps(facts), "vm": vm},
    )


def decide(connection: Connection, pool: int) -> scaling.Decision:
    """Return what sizing would do with the pool."""
    [found] = [d for d in sizing.due_pools(connection) if d.pool["id"] == pool]
    return scaling.decide(sizing_task.snapshot_of(found), found.now)


def several(connection: Connection, pools: list[int], count: int = 1, **fields: Any) -> list[int]:
    return insert_jobs(
        connection,
        [NewSpec(command=["x"])],
        [NewJob(spec=0, **fields)] * count,
        pool_id=pools[0],
        pool_ids=pools,
        owner=owner_id(connection, OWNER),
    )


def limited(connection: Connection, pool: int, count: int, most: int, **fields: Any) -> list[int]:
    """An array of jobs of which so many may be on machines."""
    owner = owner_id(connection, OWNER)
    array = new_array(connection, owner=owner, name="", size=count, max_running=most)
    return insert_jobs(
        connection,
        [NewSpec(command=["x"])],
        [NewJob(spec=0, **fields)] * count,
        pool_id=pool,
        owner=owner,
        array_id=array,
    )


def test_machines_are_matched_as_measured(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=8)
        intel, arm, big = make_vms(connection, pool, 3)
        measured(connection, intel, gpus=2, cpu_model="Intel Xeon", ssd=True)
        measured(connection, arm, architecture="aarch64")
        measured(connection, big, memory_bytes=64 * GIB, disk_bytes=900 * GIB, cores=16)
        wishes: list[tuple[dict[str, Any], int | None]] = [
            ({"architecture": "aarch64"}, arm),
            ({"gpus": 1}, intel),
            ({"constraints": {"gpu": True}}, intel),
            ({"constraints": {"cpu_model": "*xeon*", "ssd": True}}, intel),
            ({"constraints": {"min_memory_bytes": 32 * GIB, "min_disk_bytes": GIB}}, big),
            ({"constraints": {"min_memory_per_core_bytes": 4 * GIB, "min_cores": 9}}, big),
            ({"architecture": "riscv64"}, None),
            ({"gpus": 3}, None),
            ({"constraints": {"ssd": False}}, None),
        ]
        jobs = [make_jobs(connection, pool, **wish)[0] for wish, _ in wishes]
        found = place(connection)
        assert [found.get(job) for job in jobs] == [vm for _, vm in wishes]
        attempt = rows(connection, "SELECT gpus FROM attempts WHERE job_id = :id", id=jobs[1])
        assert attempt[0]["gpus"] == 1
        assert_sound(connection)


def test_several_pools_in_order(engine: Engine) -> None:
    with engine.begin() as connection:
        first = make_pool(connection, "first", slots_per_vm=1)
        second = make_pool(connection, "second", slots_per_vm=1)
        third = make_pool(connection, "third", slots_per_vm=1)
        [a] = make_vms(connection, first)
        [b] = make_vms(connection, second)
        jobs = several(connection, [first, second], 3)
        [other] = several(connection, [third, second])
        assert anything_waiting(connection)
        found = place(connection)
        assert found == {jobs[0]: a, jobs[1]: b}
        assert [row(connection, "jobs", job)["pool_id"] for job in jobs] == [first, second, first]
        make_vms(connection, third)
        assert list(place(connection)) == [other]
        assert place(connection) == {}
        close_pool(connection, first)  # what waits is left to the others
        left = row(connection, "jobs", jobs[2])
        assert (left["state"], left["pool_id"], left["pool_ids"]) == ("NEW", second, None)
        assert_sound(connection)


def test_a_job_for_several_pools_is_demand_of_one(engine: Engine) -> None:
    elastic: dict[str, Any] = {"is_elastic": True, "elastic_maximum_slots": 2, "slots_per_vm": 2}
    with engine.begin() as connection:
        small = make_pool(
            connection, "small", is_elastic=True, elastic_maximum_slots=1, slots_per_vm=1
        )
        first = make_pool(connection, "first", **elastic)
        second = make_pool(connection, "second", **elastic)
        several(connection, [small, first, second], 3, cores=2)
        assert [decide(connection, p).grow_vms for p in (small, first, second)] == [0, 1, 0]
        connection.execute(
            text("UPDATE pools SET paused_until = now() + interval '1 minute' WHERE id = :id"),
            {"id": first},
        )
        assert [decide(connection, p).grow_vms for p in (small, first, second)] == [0, 0, 1]
        connection.execute(text("UPDATE pools SET paused_until = NULL"))
        make_vms(connection, first, state=VmState.SUBMITTED)  # at its ceiling: it is another's
        assert [decide(connection, p).grow_vms for p in (small, first, second)] == [0, 0, 1]


def test_sizing_sees_shapes(engine: Engine) -> None:
    """A free slot on each of two VMs is none for a job of two cores."""
    with engine.begin() as connection:
        pool = make_pool(
            connection, slots_per_vm=2, is_elastic=True, elastic_maximum_slots=10, gpus_per_vm=1
        )
        vms = make_vms(connection, pool, 2)
        for vm in vms:
            measured(connection, vm, gpus=1)
        make_jobs(connection, pool, 3, gpus=0)
        assert len(place(connection)) == 3
        connection.execute(
            text(
                """UPDATE attempts SET state = 'LOST', ended_at = now(), reason = 'LOST' WHERE id =
                   (SELECT max(id) FROM attempts WHERE vm_id = :vm)"""
            ),
            {"vm": vms[0]},
        )
        connection.execute(
            text(
                """UPDATE jobs SET state = 'NEW' WHERE state = 'SUBMITTED' AND NOT EXISTS (
                     SELECT FROM attempts WHERE job_id = jobs.id AND state = 'PLACED')"""
            )
        )
        connection.execute(text("UPDATE jobs SET held = true WHERE state = 'NEW'"))
        assert decide(connection, pool).grow_vms == 0
        [wide] = make_jobs(connection, pool, cores=2)
        assert place(connection) == {}
        assert decide(connection, pool).grow_vms == 1
        [new] = make_vms(connection, pool)
        settled = decide(connection, pool)
        assert (settled.grow_vms, settled.close_vm_ids) == (0, ())  # the new one is spoken for
        assert place(connection) == {wide: new}
        make_jobs(connection, pool, gpus=2)  # what no VM of it will have makes it not grow
        assert decide(connection, pool).grow_vms == 0


def test_blocked_and_later_and_limited_jobs_are_no_demand(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1, is_elastic=True, elastic_maximum_slots=99)
        blocked, held, later, *_ = make_jobs(connection, pool, 3)
        limited(connection, pool, 10, 2)
        connection.execute(text("UPDATE jobs SET unmet = 1 WHERE id = :id"), {"id": blocked})
        connection.execute(text("UPDATE jobs SET held = true WHERE id = :id"), {"id": held})
        connection.execute(
            text("UPDATE jobs SET not_before = now() + interval '1 hour' WHERE id = :id"),
            {"id": later},
        )
        assert decide(connection, pool).grow_vms == 2
        pool_row = rows(connection, "SELECT * FROM pools")[0]
        assert demand.demand_of(connection, pool_row)[0] == 2


@pytest.mark.parametrize("isolation", ["owner", "sandbox", "single_use"])
def test_a_used_vm_serves_nobody_else(engine: Engine, isolation: str) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, isolation=isolation, instance_count=1)
        [vm] = make_vms(connection, pool)
        [mine] = make_jobs(connection, pool, sandbox="a")
        [theirs] = make_jobs(connection, pool, owner="bob", sandbox="a")
        [other] = make_jobs(connection, pool, sandbox="b")
        found = place(connection)
        found |= place(connection)  # bound by now, it hides nobody any more
        assert found == ({mine: vm, other: vm} if isolation == "owner" else {mine: vm})
        used = row(connection, "vms", vm)
        assert used["bound_owner_id"] == owner_id(connection, OWNER)
        assert used["draining"] == (isolation == "single_use")
        wanted: dict[str, Any] = {"pool_ids": [pool], "slots": 1, "ttl_s": 60}
        assert leases.acquire(connection, owner="bob", sandbox="a", **wanted) is None
        again = leases.acquire(connection, owner=OWNER, sandbox="a", **wanted)
        assert (again is not None) == (isolation == "sandbox")  # of an owner's, both slots are used
        if again is not None:
            leases.release(connection, again["id"], again["token"])
        for attempt in rows(connection, "SELECT id FROM attempts"):
            record(connection, vm, ended(attempt["id"]))
        # Idle, but not for the one who waits: it is replaced, though the pool is as large as may be.
        assert state(connection, "job", theirs) == "NEW"
        place(connection)
        decision = decide(connection, pool)
        assert decision.replace_vm_ids == (() if isolation == "single_use" else (vm,))
        assert rows(connection, "SELECT FROM attempts WHERE state = 'PLACED'") == []
        assert rows(connection, ISOLATED) == []
        assert_sound(connection)


def test_a_lease_binds_too(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="sandbox")
        [vm] = make_vms(connection, pool)
        lease = leases.acquire(
            connection,
            pool_ids=[pool],
            owner=OWNER,
            sandbox="a",
            slots=1,
            ttl_s=60,
        )
        assert lease is not None
        make_jobs(connection, pool, owner="bob", sandbox="a")
        [mine] = make_jobs(connection, pool, sandbox="a")
        assert place(connection) == {mine: vm}
        assert rows(connection, ISOLATED) == []


def test_dispatchers_and_leases_in_a_crowd(engine: Engine) -> None:
    """Isolation, GPUs and the limits of arrays hold when everybody is at it at once."""
    with engine.begin() as connection:
        mixed = make_pool(connection, "mixed", slots_per_vm=4, gpus_per_vm=2)
        apart = make_pool(connection, "apart", slots_per_vm=4, isolation="owner")
        for pool, gpus in ((mixed, 2), (apart, 0)):
            for vm in make_vms(connection, pool, 4):
                measured(connection, vm, gpus=gpus)
        limited(connection, mixed, 40, 3, priority=5)
        make_jobs(connection, mixed, 12, gpus=1)
        several(connection, [apart, mixed], 10)
        for owner in ("alice", "bob", "carol"):
            make_jobs(connection, apart, 6, owner=owner)

    def work() -> int:
        return sum(len(transact(engine, place)) for _ in range(5))

    def lease(name: str) -> int:
        def once(connection: Connection) -> Any:
            return leases.acquire(
                connection, pool_ids=[apart], owner=name, sandbox="", slots=1, ttl_s=60
            )

        return sum(transact(engine, once) is not None for _ in range(5))

    together(*[work] * 4, lambda: lease("dave"), lambda: lease("bob"))
    with engine.begin() as connection:
        counts = rows(
            connection,
            """SELECT count(*) FILTER (WHERE j.array_id IS NOT NULL) AS of_array, sum(a.gpus) AS gpus
               FROM attempts a JOIN jobs j ON j.id = a.job_id""",
        )[0]
        assert counts["of_array"] == 3
        assert 4 <= counts["gpus"] <= 8
        over = """SELECT vm_id FROM attempts a JOIN vms v ON v.id = a.vm_id GROUP BY vm_id, v.gpus,
                  v.slots HAVING sum(a.gpus) > v.gpus OR sum(a.cores) > v.slots"""
        assert rows(connection, over) == []
        assert rows(connection, ISOLATED) == []
        assert_sound(connection)


def test_jobs_over_the_limit_of_their_array_hide_nobody(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        many = limited(connection, pool, 60, 2, priority=9)
        small = make_jobs(connection, pool, 3)
        assert place(connection) == {many[0]: vm, many[1]: vm, small[0]: vm, small[1]: vm}
        attempt = rows(connection, "SELECT id FROM attempts WHERE job_id = :id", id=many[0])[0][
            "id"
        ]
        record(connection, vm, ended(attempt))
        assert place(connection) == {many[2]: vm}


def test_who_does_not_start_in_time_is_ended(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=3)
        [vm] = make_vms(connection, pool)
        retried, started = running_job(connection, pool, max_queue_s=10)
        record(connection, vm, lost(started.attempt_id))
        late, patient, blocked = [
            make_jobs(connection, pool, max_queue_s=limit)[0] for limit in (10, 1000, 10)
        ]
        age(connection, "jobs", [late, patient, blocked, retried], "submitted_at", 60)
        connection.execute(text("UPDATE jobs SET unmet = 1 WHERE id = :id"), {"id": blocked})
        snapshot = take_snapshot(connection, max_ahead=9)
        assert [job.id for job in snapshot.jobs] == [retried, patient]
        ended_job = row(connection, "jobs", late)
        assert (ended_job["state"], ended_job["reason"]) == ("TERMINATED", "QUEUE_TIMEOUT")
        assert "10 s" in ended_job["message"]
        [other] = make_jobs(connection, pool, max_queue_s=10)
        age(connection, "jobs", [other], "submitted_at", 60)
        assert deadlines.end_overdue(connection) == [other]
        # Ready as of now: its time begins, whenever it was submitted.
        parent = make_jobs(connection, pool)[0]
        connection.execute(
            text(
                """INSERT INTO dependencies (job_id, parent_id, met) VALUES (:job, :parent, true);"""
            ),
            {"job": blocked, "parent": parent},
        )
        connection.execute(
            text(
                """UPDATE jobs SET state = 'TERMINATED', reason = 'CANCELLED', ended_at = now()
                   WHERE id = :id"""
            ),
            {"id": parent},
        )
        connection.execute(text("UPDATE jobs SET unmet = 0 WHERE id = :id"), {"id": blocked})
        assert deadlines.end_overdue(connection) == []
        age(connection, "jobs", [parent], "ended_at", 11)
        assert deadlines.end_overdue(connection) == [blocked]
        assert state(connection, "job", retried) == "NEW"
