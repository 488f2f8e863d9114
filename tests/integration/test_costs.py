"""Costs from rows, and budgets that warn, stop and let go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from remuda.cli.app import root
from remuda.errors import BadInput, UnknownPool
from remuda.tasks import budgeting, placing, sizing
from remuda.testing import NoopProvider
from remuda.workers.providers.base import VmDescription
from tests.integration.builders import make_jobs
from tests.integration.spending import near, spent, watched
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard
from tests.unit.cli import stand_in

__all__ = ["spent", "yard"]


def test_every_view_tells_the_same(spent: Workbench) -> None:
    with spent.client() as client:
        [dear, free] = client.costs("pool")
        assert (dear["pool"], dear["vms"], dear["vm_hours"]) == ("dear", 2, near(5))
        assert (dear["cost"], dear["jobs_cost"], dear["leases_cost"]) == (near(5), near(1), 0)
        assert (free["pool"], free["cost"]) == ("free", 0)
        assert dear["unpriced_hours"] == 0
        assert free["unpriced_hours"] == free["vm_hours"] > 0
        assert {vm["price"] for vm in client.costs("vm", pool="free")} == {None}
        assert [vm["cost"] for vm in client.costs("vm", pool="dear")] == [near(4), near(1)]
        [job] = client.costs("job")
        assert (job["cost"], job["slot_hours"], job["attempts"]) == (near(1), near(2), 1)
        [attempt] = client.costs("attempt")
        assert attempt["cost"] == near(1)
        [owner] = client.costs("owner", owner="alice")
        assert (owner["owner"], owner["cost"], owner["jobs"]) == ("alice", near(1), 1)


def test_only_the_time_asked_for_counts(spent: Workbench) -> None:
    with spent.client() as client:
        assert client.costs(since=timedelta(hours=2), pool="dear")[0]["cost"] == near(2)
        assert client.costs("job", since=timedelta(hours=2))[0]["cost"] == near(0.5)
        early: dict[str, Any] = {"since": timedelta(days=2), "until": timedelta(hours=2)}
        assert client.costs(pool="dear", **early)[0]["cost"] == near(3)
        assert client.costs(since=timedelta(days=9), until=timedelta(days=8)) == []


def test_leases_cost_their_share(spent: Workbench) -> None:
    with spent.engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO leases (vm_id, owner_id, for_jobs, slots, acquired_at, expires_at)
                   SELECT v.id, o.id, false, 2, now() - interval '1 hour', now() + interval '1 hour'
                   FROM vms v, owners o WHERE v.price = 1 AND v.state = 'RUNNING' LIMIT 1"""
            )
        )
    with spent.client() as client:
        [owner] = client.costs("owner")
        assert (owner["cost"], owner["jobs_cost"], owner["leases_cost"]) == (
            near(2),
            near(1),
            near(1),
        )
        assert client.costs("pool")[0]["leases_cost"] == near(1)


def test_history_has_the_share_of_jobs(spent: Workbench) -> None:
    with spent.client() as client:
        for metric, by, key, expected in (
            ("cost", "pool", "dear", 5),
            ("jobs_cost", "pool", "dear", 1),
            ("jobs_cost", "owner", "alice", 1),
        ):
            found = client.history(metric, by=by, since=timedelta(hours=6), bucket_s=3600)
            assert sum(value or 0 for value in found.series[key]["sum"]) == near(expected)


WRONG_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"by": "planet"}, "no costs by 'planet'"),
    ({"since": 7}, "since is a datetime"),
    ({"since": timedelta(hours=1), "until": timedelta(hours=2)}, "is not after since"),
    ({"owner": "nobody"}, "no owner 'nobody'"),
    ({"limit": 0}, "limit"),
    ({"since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
]
WRONG_BUDGETS: list[tuple[dict[str, Any], str]] = [
    ({"stop": 1}, "say whose"),
    ({"pool": "herd"}, "needs warn or stop"),
    ({"pool": "herd", "stop": -1}, "stop must be"),
    ({"pool": "herd", "warn": math.nan}, "warn must be"),
    ({"pool": "herd", "stop": math.inf}, "stop must be"),
    ({"pool": "herd", "stop": True}, "stop must be"),
    ({"pool": "herd", "warn": 2, "stop": 1}, r"warn \(2\) is above stop"),
    ({"pool": "herd", "stop": 1, "period": "year"}, "period must be"),
    ({"owner": "x" * 10_000, "stop": 1}, "owner"),
]


def test_nonsense_is_refused(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        for question, match in WRONG_QUESTIONS:
            with pytest.raises(BadInput, match=match):
                client.costs(**question)
        for budget, match in WRONG_BUDGETS:
            with pytest.raises(BadInput, match=match):
                client.set_budget(**budget)
        with pytest.raises(UnknownPool):
            client.set_budget(pool="none", stop=1)
        assert client.budgets() == []


def test_a_costly_look_is_taken_seldom(yard: Yard, bench: Workbench) -> None:
    yard.pool()
    with bench.client() as client:
        client.set_budget(pool="herd", stop=1)
        yard.sql("UPDATE budgets SET check_s = 2, checked_at = now() - interval '50 seconds'")
        budgeting.watch_budgets(yard.runtime)
        [budget] = client.budgets()
        assert budget["check_s"] == 2
        yard.sql("UPDATE budgets SET checked_at = now() - interval '150 seconds'")
        budgeting.watch_budgets(yard.runtime)
        [budget] = client.budgets()
        assert 0 < budget["check_s"] < 2


def priced(yard: Yard, price: float = 1.0, **fields: Any) -> None:
    yard.pool(offers=[{"name": "eu", "price": price}], **fields)


def test_a_pools_budget_warns_stops_and_lets_go_on(
    yard: Yard, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    priced(yard, instance_count=2)
    sizing.resize_pools(yard.runtime)
    yard.sql(
        """UPDATE vms SET state = 'SUBMITTED', provider_id = 'x', price = 1,
             submitted_at = now() - interval '1 hour'"""
    )
    with bench.client() as client:
        client.set_budget(pool="herd", period="total", warn=1.5, stop=3)
        yard.sql("UPDATE pools SET created_at = now() - interval '1 day'")
        assert watched(yard) == 1
        assert watched(yard) == 0
        assert "pool herd is at level warn: 2.00 spent" in caplog.text
        client.set_budget(pool="herd", period="total", warn=1.5, stop=2)
        assert watched(yard) == 1
        [budget] = client.budgets()
        assert (budget["level"], budget["spent"]) == ("stop", near(2))
        client.pool("herd").set(instance_count=4)
        sizing.resize_pools(yard.runtime)
        pool = yard.the_pool
        assert pool["decision"]["step"] == "stopped"
        assert len(yard.runtime.transact(lambda c: c.execute(text("SELECT 1 FROM vms")).all())) == 2
        said = " ".join(client.pool("herd").explain())
        assert "the budget of pool herd is used up: 2.00 of 2.00 spent in all" in said
        assert client.remove_budget(pool="herd")
        assert not client.remove_budget(pool="herd")
        sizing.resize_pools(yard.runtime)
        assert len(yard.runtime.transact(lambda c: c.execute(text("SELECT 1 FROM vms")).all())) == 4


def test_nothing_is_placed_for_a_pool_or_owner_that_is_stopped(
    yard: Yard, spent: Workbench
) -> None:
    with spent.client() as client:
        client.set_budget(owner="alice", period="total", stop=0.5)
        client.set_budget(pool="dear", period="total", stop=100)
        yard.sql("UPDATE owners SET created_at = now() - interval '1 day'")
        assert watched(yard) == 1
        jobs = {}
        with spent.engine.begin() as connection:
            for owner in ("alice", "bob"):
                pool = client.pool("dear").id
                jobs[owner] = make_jobs(connection, pool, 1, owner=owner)[0]
        assert sum(placing.dispatch(yard.runtime).values()) == 1
        assert client.job(jobs["alice"]).state == "NEW"
        assert client.job(jobs["bob"]).state == "SUBMITTED"
        said = " ".join(client.explain(jobs["alice"]))
        assert "Nothing of its owner is placed: the budget of owner alice is used up" in said
        client.set_budget(owner="alice", period="total", stop=50)
        client.set_budget(pool="dear", period="total", stop=1)
        yard.sql("UPDATE pools SET created_at = now() - interval '1 day'")
        assert watched(yard) == 2
        assert not placing.dispatch(yard.runtime)
        assert "Pool dear places and launches nothing" in " ".join(client.explain(jobs["alice"]))
        client.remove_budget(pool="dear")
        assert sum(placing.dispatch(yard.runtime).values()) == 1


def test_a_price_of_the_provider_counts_instead_of_the_offers(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced(yard)
    usual = NoopProvider._described
    for told, kept in ((0.25, 0.25), (None, 1.0), (math.nan, 1.0), (-1.0, 1.0)):

        def described(self: NoopProvider, machine: Any, told: float | None = told) -> VmDescription:
            return replace(usual(self, machine), price=told)

        monkeypatch.setattr(NoopProvider, "_described", described)
        [vm_id] = yard.vms()
        assert yard.launch(vm_id)["price"] == kept


def test_the_budget_of_a_group_is_of_all_its_members(yard: Yard, spent: Workbench) -> None:
    with spent.client() as client:
        for member in ("alice", "bob"):
            client.set_owner(member, group="physics")
        yard.sql(
            """INSERT INTO leases (vm_id, owner_id, for_jobs, slots, acquired_at, expires_at, released_at)
               SELECT v.id, o.id, false, 1, now() - interval '2 hours', now(), now() - interval '1 hour'
               FROM vms v, owners o WHERE v.price = 1 AND v.state = 'RUNNING' AND o.name = 'bob'"""
        )
        cost = {row["owner"]: row["cost"] for row in client.costs("owner")}
        together = cost["alice"] + cost["bob"]
        assert sum(row["cost"] for row in client.costs("owner", owner="physics")) == near(together)
        client.set_budget(owner="physics", period="total", stop=max(cost.values()) + 0.01)
        yard.sql("UPDATE owners SET created_at = now() - interval '1 day'")
        assert watched(yard) == 1
        [budget] = client.budgets()
        assert (budget["level"], budget["spent"]) == ("stop", near(together))
        with spent.engine.begin() as connection:
            pool = client.pool("dear").id
            [job] = make_jobs(connection, pool, 1, owner="alice")
            make_jobs(connection, pool, 1, owner="carol")
        assert sum(placing.dispatch(yard.runtime).values()) == 1
        assert client.job(job).state == "NEW"
        said = " ".join(client.explain(job))
        assert "Nothing of its owner is placed: the budget of owner physics is used up" in said
        client.set_owner("alice", group=None)  # on its own again, below any level
        assert sum(placing.dispatch(yard.runtime).values()) == 1
        assert client.job(job).state == "SUBMITTED"


def test_no_pool_grows_for_an_owner_that_is_stopped(yard: Yard) -> None:
    priced(yard, is_elastic=True, elastic_maximum_slots=8)
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 3))
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 2, owner="bob"))
    yard.sql("UPDATE owners SET budget_stop = 'used up' WHERE name = 'alice'")
    sizing.resize_pools(yard.runtime)
    assert yard.the_pool["decision"]["grow_vms"] == 2


def test_a_new_period_begins_anew(yard: Yard, spent: Workbench) -> None:
    with spent.client() as client:
        client.set_budget(pool="dear", period="day", stop=0.1)
        watched(yard)
        yard.sql("UPDATE vms SET state = 'STOPPING' WHERE price = 1 AND state = 'RUNNING'")
        yard.sql(
            """UPDATE vms SET submitted_at = submitted_at - interval '3 days',
                 halted_at = now() - interval '2 days', state = 'HALTED' WHERE price = 1"""
        )
        watched(yard)
        [budget] = client.budgets()
        assert (budget["level"], budget["spent"]) == ("ok", 0)
        assert budget["period_start"] <= datetime.now(UTC)
        assert client.pool("dear").info()["budget_stop"] is None


def test_the_commands(spent: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with spent.client() as client:
        stand_in(monkeypatch, client)

        def run(*words: str) -> Any:
            return CliRunner().invoke(root, list(words))

        name, *told = run("cost").output.splitlines()[1].split()
        assert (name, [float(word) for word in told]) == (
            "dear",
            [2, near(5), near(0), near(5), near(1), near(0), near(4)],
        )
        for by in ("owner", "vm", "job", "attempt"):
            assert run("cost", "--by", by).exit_code == 0
            assert json.loads(run("cost", "--by", by, "--json").output)[0]["cost"] > 0
        assert run("budget", "set", "--pool", "dear", "--stop", "7").exit_code == 0
        assert run("budget", "set", "--pool", "dear", "--stop", "nan").exit_code == 2
        assert run("budget", "list").output.splitlines()[1].split()[:3] == ["pool", "dear", "month"]
        assert "is removed" in run("budget", "remove", "--pool", "dear").output
        assert run("budget", "remove", "--pool", "dear").output == "pool dear had no budget\n"


def test_carbon_of_pools_and_jobs(spent: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with spent.client() as client:
        pool = client.pool("dear")
        pool.set(datacenter="FR")
        [job] = client.jobs(pool="dear")
        of_job = job.carbon_facts("DE")
        assert of_job.energy_it_Wh == pytest.approx(2 * 3.5, rel=0.01)
        assert of_job.carbon_footprint_gC02eq == pytest.approx(7 * 1.58 * 56 / 1000, rel=0.01)
        assert of_job.equivalent_datacenter_name == "DE"
        of_pool = pool.carbon_facts()  # 10 slot-hours, of which 2 were at work
        assert of_pool.energy_it_Wh == pytest.approx(2 * 3.5 + 8 * 0.74, rel=0.01)
        lately = pool.carbon_facts(since=timedelta(hours=2))
        assert lately.energy_it_Wh == pytest.approx(1 * 3.5 + 3 * 0.74, rel=0.01)
        pool.set(datacenter="mars")
        with pytest.raises(BadInput, match="mars"):
            pool.carbon_facts()
        pool.set(datacenter=None)
        with pytest.raises(BadInput, match="is not after since"):
            pool.carbon_facts(since=timedelta(hours=1), until=timedelta(hours=2))
        with pytest.raises(BadInput, match="datacenter"):
            pool.set(datacenter="x y")

        stand_in(monkeypatch, client)

        def run(*words: str) -> Any:
            return CliRunner().invoke(root, ["carbon", *words])

        assert "g CO2e" in run("--pool", "dear", "--compare", "PL").output
        assert json.loads(run("--job", str(job.id), "--json").output)[0]["PUE"] == 1.58
        assert "data centre" in run("--list").output
        assert run().exit_code == 2
        assert run("--pool", "dear", "--compare", "mars").exit_code == 2
