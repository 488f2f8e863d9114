"""What was spent, for tests of costs and budgets."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from remuda.tasks import budgeting
from tests.integration.builders import make_jobs
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard


@pytest.fixture
def spent(bench: Workbench) -> Workbench:
    """Two VMs of 2 slots, at 1 an hour: one up 4 h, with a job of 1 core for 2 h; one gone after 1 h."""
    pool = bench.pool("dear", vms=2)
    bench.pool("free", vms=1)
    with bench.engine.begin() as connection:
        [job] = make_jobs(connection, pool, 1)
    [(attempt, vm)] = bench.place().values()
    bench.start(job)
    bench.end(job)
    with bench.engine.begin() as connection:
        for statement, values in (
            ("UPDATE vms SET price = 1 WHERE pool_id = :pool", {"pool": pool}),
            ("UPDATE vms SET submitted_at = now() - interval '4 hours' WHERE id = :vm", {"vm": vm}),
            (
                "UPDATE vms SET submitted_at = now() - interval '4 hours', state = 'STOPPING' WHERE"
                " pool_id = :pool AND id <> :vm",
                {"pool": pool, "vm": vm},
            ),
            (
                "UPDATE vms SET halted_at = now() - interval '3 hours', state = 'HALTED' WHERE"
                " pool_id = :pool AND id <> :vm",
                {"pool": pool, "vm": vm},
            ),
            (
                "UPDATE attempts SET started_at = now() - interval '3 hours',"
                " ended_at = now() - interval '1 hour' WHERE id = :id",
                {"id": attempt},
            ),
        ):
            connection.execute(text(statement), values)
    return bench


def near(value: float) -> Any:
    return pytest.approx(value, abs=0.01)


def watched(yard: Yard) -> int:
    """Look at all budgets, however lately that was done."""
    yard.sql("UPDATE budgets SET checked_at = NULL")
    return budgeting.watch_budgets(yard.runtime)
