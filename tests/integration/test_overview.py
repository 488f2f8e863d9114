"""What is seen at a glance: what runs, what comes next, what ended last; and how fast jobs end."""

from __future__ import annotations

import threading

from sqlalchemy import text

from remuda import JobSpec
from remuda.models import overview
from remuda.models.database import rows
from tests.integration.builders import make_jobs, make_pool
from tests.integration.workbench import Workbench


def test_what_runs_comes_first_then_what_waits_then_what_ended(bench: Workbench) -> None:
    pool = bench.pool("sim", vms=1)
    bench.pool("other", vms=0)
    with bench.client() as client, client.lookout() as lookout:
        jobs = [client.submit(JobSpec(["true"], name=f"Job-{i}"), pool="sim").id for i in range(5)]
        elsewhere = client.submit(JobSpec(["true"], name="x"), pool="other", allow_pending=True).id
        placed = bench.place(max_ahead=0)
        first, second = sorted(placed)
        bench.end(first)
        bench.start(second)
        seen = lookout.look()
        waiting = [job for job in jobs if job not in placed]
        assert [row["id"] for row in seen.jobs] == [second, *waiting, elsewhere, first]
        assert {row["name"]: row["waiting_jobs"] for row in seen.pools} == {"sim": 3, "other": 1}
        assert [vm.busy_slots for vm in seen.vms] == [1]

        of_pool = lookout.look(pool_id=pool)
        assert [row["id"] for row in of_pool.jobs] == [second, *waiting, first]
        vm_id = seen.vms[0].id
        assert [row["id"] for row in lookout.look(vm_id=vm_id).jobs] == [second, first]
        assert [row["id"] for row in lookout.look(part="job-4").jobs] == [jobs[4]]
        assert lookout.look(part="%").jobs == []
        assert len(lookout.look(limit=1).jobs) == 3


def test_ends_are_counted_while_it_waits(bench: Workbench) -> None:
    bench.pool("sim", vms=1)
    with bench.client() as client, client.lookout() as lookout:
        jobs = client.submit_array(JobSpec(["true"]), 2, pool="sim")
        bench.place()
        lookout.wait(0.01)  # it listens from now on

        def end() -> None:
            for job in jobs:
                bench.end(job.id)

        ending = threading.Thread(target=end)
        ending.start()
        for _ in range(200):
            lookout.wait(0.1)
            if sum(lookout.look().ends) == 2:
                break
        ending.join()
        assert sum(lookout.look().ends) == 2
        assert len(lookout.look().ends) == 60


def test_what_comes_next_is_found_in_the_index(bench: Workbench) -> None:
    """However many wait: a hundred are read, not all; by priority, those that lost their VM first."""
    with bench.engine.begin() as connection:
        pool = make_pool(connection)
        plain = make_jobs(connection, pool, 3000)
        [low] = make_jobs(connection, pool, priority=-1)
        [high] = make_jobs(connection, pool, priority=7)
        connection.execute(
            text("UPDATE jobs SET displaced = true WHERE id = :id"), {"id": plain[2000]}
        )
    with bench.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))
        values = {"pool": None, "vm": None, "part": None, "most": 100}
        found = [row["id"] for row in rows(connection, overview._WAITING, **values)]
        assert found == [high, plain[2000], *plain[:98]]
        plan = rows(connection, f"EXPLAIN (ANALYZE, TIMING OFF) {overview._WAITING}", **values)
        told = "\n".join(line["QUERY PLAN"] for line in plan)
        assert "using ix_jobs_next" in told
        assert "actual rows=3" not in told
        everything = [
            row["id"] for row in rows(connection, overview._WAITING, **{**values, "most": 9999})
        ]
        assert everything[-1] == low
