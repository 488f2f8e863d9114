"""Fair shares and quotas on a real database: nobody is hidden, nothing is exceeded, nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda import JobSpec
from remuda.errors import BadInput, Refused
from remuda.models import demand, dispatch, owners, shapes, usage
from remuda.models.database import rows, transact
from remuda.models.dispatch import take_snapshot
from remuda.models.submit import owner_id
from tests.integration import deciding
from tests.integration.builders import (
    assert_sound,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    record,
    row,
    running_job,
    together,
)
from tests.integration.workbench import Workbench

HALF_LIFE_S = 1000.0


def place(connection: Connection, **more: Any) -> Counter[str]:
    """Place as dispatch does; return how many jobs of each owner."""
    placed = deciding.place(connection, half_life_s=HALF_LIFE_S, **more)
    names = rows(
        connection,
        "SELECT j.id, o.name FROM jobs j JOIN owners o ON o.id = j.owner_id WHERE j.id = ANY(:ids)",
        ids=[each.job_id for each in placed],
    )
    return Counter(each["name"] for each in names)


def slots_by_owner(connection: Connection) -> dict[str, int]:
    found = rows(
        connection,
        """SELECT o.name, sum(a.cores)::int AS slots FROM attempts a JOIN leases l ON l.id = a.lease_id
           JOIN owners o ON o.id = l.owner_id WHERE a.state IN ('PLACED', 'STARTED') GROUP BY 1""",
    )
    return {each["name"]: each["slots"] for each in found}


def test_a_flood_hides_nobody(engine: Engine) -> None:
    """Thousands of older jobs of one owner, and a few of others: each has its part at once."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=30)
        make_vms(connection, pool)
        make_jobs(connection, pool, 5000, owner="flood")
        make_jobs(connection, pool, 5, owner="few")
        make_jobs(connection, pool, 50, owner="some")
        owners.change(connection, "some", {"weight": 2.0})
        found = place(connection)
        assert found == {"flood": 9, "few": 5, "some": 16}
        assert_sound(connection)


def test_a_thousand_shapes_that_fit_nowhere_hide_nobody(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4, memory_bytes_per_vm=1000)
        make_vms(connection, pool)
        for number in range(100):
            make_jobs(connection, pool, 3, owner="huge", priority=9, memory_bytes=2000 + number)
        [small] = make_jobs(connection, pool, owner="small")
        assert [job.id for job in take_snapshot(connection, max_ahead=0).jobs] == [small]


def test_who_used_less_comes_first(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        [vm] = make_vms(connection, pool)
        _, placed = running_job(connection, pool, owner="alice")
        usage.fold(connection, half_life_s=HALF_LIFE_S)
        outcome = ended(placed.attempt_id, started_age_s=501.0, ended_age_s=1.0)
        connection.execute(text("UPDATE attempts SET started_at = now() - interval '501 s'"))
        record(connection, vm, outcome)
        connection.execute(text("UPDATE sweeps SET last_run_at = last_run_at - interval '9 s'"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET ended_at = now() - interval '3 s'"))
        assert usage.fold(connection, half_life_s=HALF_LIFE_S)
        make_jobs(connection, pool, 4, owner="alice")
        make_jobs(connection, pool, 4, owner="bob")
        assert place(connection) == {"bob": 4}


def test_use_is_counted_once_and_fades(engine: Engine) -> None:
    """An attempt of 2 slots and 500 s: worth h/ln 2 (1 - 2^(-w/h)) at its end; half after h."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        make_vms(connection, pool)
        _, placed = running_job(connection, pool, owner="alice", cores=2)
        assert not usage.fold(connection, half_life_s=HALF_LIFE_S)  # from now on
        alice = owner_id(connection, "alice")
        connection.execute(
            text(
                """UPDATE attempts SET state = 'COLLECTED', started_at = now() - interval '506 s',
                     ended_at = now() - interval '6 s' WHERE id = :id"""
            ),
            {"id": placed.attempt_id},
        )
        connection.execute(text("UPDATE sweeps SET last_run_at = now() - interval '10 s'"))
    for _ in range(2):
        together(*[lambda: transact(engine, lambda c: usage.fold(c, half_life_s=HALF_LIFE_S))] * 3)
    with engine.begin() as connection:
        worth = 2 * HALF_LIFE_S / 0.6931471805599453 * (1 - 2 ** (-500 / HALF_LIFE_S))
        found = usage.shares(connection, half_life_s=HALF_LIFE_S).owners[alice].usage_s
        assert found == pytest.approx(worth, rel=0.01)
        connection.execute(text("UPDATE usages SET until = until - interval '1000 s'"))
        faded = usage.shares(connection, half_life_s=HALF_LIFE_S).owners[alice].usage_s
        assert faded == pytest.approx(found / 2, rel=0.01)
        connection.execute(text("UPDATE usages SET until = until - interval '90 years'"))
        assert usage.shares(connection, half_life_s=1.0).owners[alice].usage_s < 1e-9


def test_what_runs_counts_too(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4)
        make_vms(connection, pool)
        running_job(connection, pool, owner="alice", cores=3)
        owners.change(connection, "alice", {"group": "lab"})
        alice, lab = owner_id(connection, "alice"), owner_id(connection, "lab")
        found = usage.shares(connection, half_life_s=1e6)
        assert found.owners[alice].usage_s == pytest.approx(180, rel=0.01)
        assert found.groups[lab].usage_s == pytest.approx(180, rel=0.01)
        assert found.group_of == {alice: lab, lab: lab}


def test_quotas_are_exact_in_a_crowd(engine: Engine) -> None:
    """Of an owner in all, in a pool, and of a group, with six dispatchers at once."""
    with engine.begin() as connection:
        pools = [make_pool(connection, name, slots_per_vm=10) for name in ("a", "b")]
        for pool in pools:
            make_vms(connection, pool, 3)
            for owner in ("all", "one", "member", "other", "free"):
                make_jobs(connection, pool, 30, owner=owner, cores=1)
            make_jobs(connection, pool, 5, owner="all", cores=4, priority=1)
        owners.change(connection, "all", {"max_slots": 7})
        owners.change(connection, "one", {"max_slots": 3}, pool_id=pools[0])
        for owner in ("member", "other"):
            owners.change(connection, owner, {"group": "team"})
        owners.change(connection, "team", {"max_slots": 5})
        owners.change(connection, "other", {"max_slots": 2}, pool_id=pools[1])
    together(*[lambda: [transact(engine, place) for _ in range(4)]] * 6)
    with engine.begin() as connection:
        found = slots_by_owner(connection)
        assert found["all"] == 7
        assert found["member"] + found["other"] == 5
        assert found["free"] + found["one"] == 60 - 12
        in_a = rows(
            connection,
            """SELECT count(*) AS count FROM attempts a JOIN jobs j ON j.id = a.job_id
               JOIN owners o ON o.id = j.owner_id WHERE o.name = 'one' AND j.pool_id = :pool""",
            pool=pools[0],
        )
        assert in_a[0]["count"] == 3
        assert_sound(connection)


def test_a_quota_that_is_full_makes_no_pool_grow(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=4, instance_count=9)
        make_vms(connection, pool)
        make_jobs(connection, pool, 50, owner="alice", cores=2)
        make_jobs(connection, pool, 3, owner="bob")
        owners.change(connection, "alice", {"max_slots": 5})
        slots, shapes = demand.demand_of(connection, row(connection, "pools", pool))
        assert (slots, sorted((s.count, s.cores, s.owner_id) for s in shapes)) == (
            7,
            [(2, 2, None), (3, 1, None)],
        )
        place(connection)
        owners.change(connection, "alice", {"max_slots": 2})
        slots, _ = demand.demand_of(connection, row(connection, "pools", pool))
        assert slots == 3 - slots_by_owner(connection).get("bob", 0)


def test_too_many_waiting_jobs_are_refused(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        client.set_owner("alice", max_queued=10)
        client.submit_many([JobSpec("true")] * 8, pool="herd")
        with pytest.raises(Refused, match=r"owner alice may have 10 jobs waiting \(max_queued\)"):
            client.submit_many([JobSpec("true")] * 3, pool="herd")
        assert client.count("jobs") == 8
        client.set_owner("alice", max_queued=None)
        client.set_owner("alice", pool="herd", max_queued=9)
        client.submit(JobSpec("true"), pool="herd")
        with pytest.raises(Refused, match="in pool herd"):
            client.submit(JobSpec("true"), pool="herd")
        bench.pool("other")
        client.submit(JobSpec("true"), pool="other")
        bench.place()
        client.submit_many([JobSpec("true")] * 2, pool="herd")  # what is on machines waits no more


def test_the_queue_is_exact_in_a_crowd(bench: Workbench) -> None:
    """Members of one group submit at once: as many as may wait get in."""
    bench.pool()
    with bench.client() as client:
        for name in ("a", "b", "c", "d"):
            client.set_owner(name, group="team")
        client.set_owner("team", max_queued=6)

    def submit(owner: str) -> int:
        with bench.client() as client:
            client._context.owner = owner
            made = 0
            for _ in range(4):
                try:
                    client.submit(JobSpec("true"), pool="herd")
                    made += 1
                except Refused:
                    pass
            return made

    assert sum(together(*[lambda o=o: submit(o) for o in ("a", "b", "c", "d")])) == 6


def test_what_cannot_be_set_is_refused_and_changes_nothing(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        client.set_owner("bob", weight=3, group="team", max_slots=4, max_vms=2)
        client.set_owner("bob", pool="herd", max_slots=1, max_queued=2)
        before = client.owners()
        for wrong in (
            {"weight": 0},
            {"weight": float("nan")},
            {"weight": "2"},
            {"weight": 1e7},
            {"max_slots": -1},
            {"max_slots": 1.5},
            {"max_queued": True},
            {"group": "x" * 10_000},
            {"group": "\0"},
            {"wieght": 1},
            {},
            {"pool": "herd", "weight": 1},
        ):
            with pytest.raises(BadInput):
                client.set_owner("bob", **wrong)
        for owner, group in (("bob", "bob"), ("team", "x"), ("x", "bob")):
            with pytest.raises(Refused, match=f"owner {owner} cannot be in group {group}"):
                client.set_owner(owner, group=group)
        assert client.owners() == before
        [bob] = [owner for owner in before if owner["name"] == "bob"]
        assert (bob["weight"], bob["group"], bob["max_vms"]) == (3, "team", 2)
        assert bob["quotas"] == [
            {"pool": None, "max_slots": 4, "max_queued": None, "max_vms": None},
            {"pool": "herd", "max_slots": 1, "max_queued": 2, "max_vms": None},
        ]
        client.set_owner("bob", group=None, max_slots=None)
        [bob] = [owner for owner in client.owners() if owner["name"] == "bob"]
        assert (bob["group"], len(bob["quotas"])) == (None, 1)


def test_the_next_job_of_each_owner_is_found_in_the_index(engine: Engine) -> None:
    """However many wait, and before anything is known of the tables: shape by shape, job by job."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_jobs(connection, pool, 3000, owner="alice")
        make_jobs(connection, pool, 10, owner="bob", cores=2)
    with engine.begin() as connection:
        connection.execute(dispatch._NOW)
        heads = rows(connection, shapes.SHAPES, pools=[pool])
        assert len(heads) == 2
        turns = [
            {
                "pool_id": pool,
                "owner_id": head["owner_id"],
                "most": 5,
                "shapes": [{"shape": head["shape"], "most": 5, "free": True}],
            }
            for head in heads
        ]
        values = {"turns": json.dumps(turns), "full_arrays": [], "horizon": 0.5}
        for statement, given in (
            (shapes.SHAPES, {"pools": [pool]}),
            (str(shapes.JOBS_OF_ONE), values),
        ):
            found = rows(connection, f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", **given)
            plan = "\n".join(line["QUERY PLAN"] for line in found)
            assert "Index Scan using ix_jobs_waiting" in plan
            assert "Scan on jobs" not in plan.replace(
                "Index Scan using ix_jobs_waiting on jobs", ""
            )
            assert "rows=3000" not in plan  # nothing reads all of them


def test_a_quota_that_another_dispatcher_holds_is_left_to_it(engine: Engine) -> None:
    """Others' jobs go on; it is told whether it is worth to wait for the holder."""
    with engine.begin() as connection:
        pools = [make_pool(connection, name, slots_per_vm=4) for name in ("a", "b")]
        for pool in pools:
            make_vms(connection, pool)
            make_jobs(connection, pool, 9, owner="alice")
            make_jobs(connection, pool, 1, owner="bob")
        owners.change(connection, "alice", {"max_slots": 2})
    with engine.connect() as first, engine.connect() as second:
        deciding.place(first, pools=pools[:1])
        snapshot = take_snapshot(second, max_ahead=0, pools=pools[1:], wait=False)
        bob = owner_id(second, "bob")
        assert {job.owner_id for job in snapshot.jobs} == {bob}
        assert snapshot.quota.skipped
        first.commit()
        second.rollback()
        with engine.connect() as third:
            take_snapshot(third, max_ahead=0, pools=pools[1:])
            snapshot = take_snapshot(second, max_ahead=0, pools=pools[1:], wait=False)
            assert not snapshot.quota.skipped  # alice has all she may: nothing to wait for
