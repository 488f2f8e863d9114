"""Budgets of owners, and of groups, in one pool: what they stop there, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from remuda import JobSpec, NoVmAvailable
from remuda.cli.app import root
from remuda.errors import BadInput
from remuda.metrics.collector import SystemCollector
from remuda.models import demand
from remuda.models.database import rows
from remuda.tasks import placing
from tests.integration.builders import make_jobs, row
from tests.integration.spending import near, spent, watched
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard
from tests.unit.cli import stand_in

__all__ = ["spent", "yard"]

WHY = "the budget of owner alice in pool dear is used up: 1.00 of 0.50 spent in all"


@pytest.fixture
def stopped(yard: Yard, spent: Workbench) -> Workbench:
    """Alice has spent 1 in the pool `dear`, and may have 0.5; `free` and everybody else have room."""
    with spent.client() as client:
        client.set_budget(owner="alice", pool="dear", period="total", stop=0.5)
        yard.sql("UPDATE owners SET created_at = now() - interval '1 day'")
        assert watched(yard) == 1
        [budget] = client.budgets()
        assert (budget["owner"], budget["pool"], budget["level"]) == ("alice", "dear", "stop")
        assert budget["spent"] == near(1)
    return spent


def test_it_stops_that_owner_there_and_nothing_else(yard: Yard, stopped: Workbench) -> None:
    with stopped.client() as client:
        dear, free = client.pool("dear").id, client.pool("free").id
        with stopped.engine.begin() as connection:
            [here] = make_jobs(connection, dear, 1)
            [there] = make_jobs(connection, free, 1)
            [bobs] = make_jobs(connection, dear, 1, owner="bob")
        either = client.submit(JobSpec("true"), pool=["dear", "free"])
        assert sum(placing.dispatch(yard.runtime).values()) == 3
        assert client.job(here).state == "NEW"
        assert client.job(either.id).pool == "free"  # though it likes the other better
        assert {client.job(job).state for job in (there, bobs)} == {"SUBMITTED"}
        why = client.why(here)
        assert [reason.kind for reason in why.reasons if reason.blocks] == ["budget"]
        assert why.reasons[0].text == f"Nothing of its owner is placed in pool dear: {WHY}."
        assert why.start_s is None
        assert "budget of owner alice in pool dear" in why.basis
        assert f"Of one owner nothing is placed: {WHY}." in client.pool("dear").explain()
        assert client.remove_budget(owner="alice", pool="dear")
        assert not client.remove_budget(owner="alice", pool="dear")
        assert sum(placing.dispatch(yard.runtime).values()) == 1
        assert client.job(here).state == "SUBMITTED"


def test_a_job_is_expected_where_its_owner_may_spend(stopped: Workbench) -> None:
    """The stopped pool has room, the other none: it starts when that has, not at once."""
    with stopped.client() as client:
        client.submit_many([JobSpec("true", name=str(n)) for n in range(2)], pool="free")
        stopped.place()
        job = client.submit(JobSpec("true"), pool=["dear", "free"])
        why = client.why(job)
        assert not [reason for reason in why.reasons if reason.blocks]
        assert WHY in " ".join(why.sentences())
        assert why.start_s != 0


def test_no_pool_grows_for_what_it_stops(stopped: Workbench) -> None:
    with stopped.client() as client, stopped.engine.begin() as connection:
        pools = [row(connection, "pools", client.pool(name).id) for name in ("dear", "free")]
        make_jobs(connection, pools[0]["id"], 3)
        make_jobs(connection, pools[0]["id"], 2, owner="bob")
        wanted = demand.demands_of(connection, pools)
        assert [wanted[pool["id"]][0] for pool in pools] == [2, 0]
        for job in make_jobs(connection, pools[0]["id"], 4):
            connection.execute(
                text("UPDATE jobs SET pool_ids = :pools WHERE id = :id"),
                {"id": job, "pools": [pool["id"] for pool in pools]},
            )
        wanted = demand.demands_of(connection, pools)
        assert [wanted[pool["id"]][0] for pool in pools] == [2, 4]


def test_it_holds_leases_back_there(yard: Yard, stopped: Workbench) -> None:
    with stopped.client() as client:
        for timeout in (None, 0.1):
            with pytest.raises(NoVmAvailable, match=f"nothing is leased: {WHY}"):
                client.acquire(pools=["dear"], timeout=timeout)
        with client.acquire(pools=["dear", "free"], slots=1) as lease:
            assert client.vm(lease.vm.id).pool == "free"
        client.acquire(pools=["dear"], owner="bob").release()
        client.set_budget(owner="alice", pool="dear", period="total", stop=50)
        assert watched(yard) == 1
        client.acquire(pools=["dear"]).release()


def test_of_a_group_its_members_spend_there_together(yard: Yard, spent: Workbench) -> None:
    with spent.client() as client:
        for member in ("alice", "bob"):
            client.set_owner(member, group="physics")
        client.set_budget(owner="physics", pool="dear", period="total", warn=0.1, stop=1.2)
        client.set_budget(owner="physics", pool="free", period="total", stop=0.5)
        yard.sql("UPDATE owners SET created_at = now() - interval '1 day'")
        assert watched(yard) == 1
        yard.sql(
            """INSERT INTO leases (vm_id, owner_id, for_jobs, slots, acquired_at, expires_at, released_at)
               SELECT v.id, o.id, false, 1, now() - interval '2 hours', now(), now() - interval '1 hour'
               FROM vms v, owners o WHERE v.price = 1 AND v.state = 'RUNNING' AND o.name = 'bob'"""
        )
        assert watched(yard) == 1
        spends = {budget["pool"]: (budget["spent"], budget["level"]) for budget in client.budgets()}
        assert spends == {"dear": (near(1.5), "stop"), "free": (0, "ok")}
        with spent.engine.begin() as connection:
            jobs = [
                make_jobs(connection, client.pool("dear").id, 1, owner=o)[0] for o in ("bob", "eve")
            ]
        assert sum(placing.dispatch(yard.runtime).values()) == 1
        assert [client.job(job).state for job in jobs] == ["NEW", "SUBMITTED"]
        said = " ".join(client.explain(jobs[0]))
        assert "placed in pool dear: the budget of owner physics in pool dear is used up" in said
        client.set_owner("bob", group=None)
        assert sum(placing.dispatch(yard.runtime).values()) == 1


def test_budgets_of_one_owner_stand_beside_each_other(yard: Yard, stopped: Workbench) -> None:
    with stopped.client() as client:
        client.set_budget(owner="alice", period="total", stop=50)
        client.set_budget(pool="dear", period="total", stop=60)
        client.set_budget(owner="alice", pool="free", period="day", warn=1)
        watched(yard)
        found = [(b["pool"], b["owner"], b["level"]) for b in client.budgets()]
        assert found == [
            ("dear", None, "ok"),
            (None, "alice", "ok"),
            ("dear", "alice", "stop"),
            ("free", "alice", "ok"),
        ]
        assert client.remove_budget(owner="alice")
        assert client.remove_budget(pool="dear")
        found = [(b["pool"], b["owner"], b["level"]) for b in client.budgets()]
        assert found == [("dear", "alice", "stop"), ("free", "alice", "ok")]
        with pytest.raises(BadInput, match="say whose"):
            client.set_budget(stop=1)
        with pytest.raises(BadInput, match="no owner 'nobody'"):
            client.remove_budget(pool="dear", owner="nobody")


def test_a_pool_with_one_can_be_deleted(yard: Yard, stopped: Workbench) -> None:
    yard.sql("UPDATE vms SET state = 'STOPPING' WHERE state = 'RUNNING'")
    yard.sql("UPDATE vms SET state = 'HALTED', halted_at = now() WHERE state = 'STOPPING'")
    yard.sql("UPDATE pools SET state = 'CLOSING'")
    yard.sql("UPDATE pools SET state = 'CLOSED', ended_at = now()")
    with stopped.client() as client:
        client.set_budget(pool="dear", stop=1)
        dear = client.pool("dear")
        dear.delete()
        with stopped.engine.begin() as connection:
            assert row(connection, "pools", dear.id)["state"] == "PENDING_DELETE"
            assert rows(connection, "SELECT id FROM budgets") == []
        assert watched(yard) == 0


def test_the_commands_and_metrics(
    yard: Yard, stopped: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped.client() as client:
        stand_in(monkeypatch, client)

        def run(*words: str) -> Any:
            return CliRunner().invoke(root, ["budget", *words])

        whose = ("--owner", "bob", "--pool", "dear")
        told = run("set", *whose, "--period", "day", "--stop", "2").output
        assert told == "budget of owner bob in pool dear is set\n"
        lines = [line.split() for line in run("list").output.splitlines()]
        assert lines[0][:4] == ["OF", "NAME", "IN", "POOL"]
        assert [line[:4] for line in lines[1:]] == [
            ["owner", "alice", "dear", "total"], ["owner", "bob", "dear", "day"]
        ]  # fmt: skip
        client.set_budget(owner="alice", stop=9)
        collector = SystemCollector(stopped.engine, lambda: None, cache_s=0)
        stops = {
            tuple(sample.labels.values()): sample.value
            for family in collector.collect()
            for sample in family.samples
            if sample.name == "remuda_budget_stop"
        }
        assert stops["owner", "alice", "dear"] == 0.5
        assert stops["owner", "alice", ""] == 9
        assert run("remove", *whose).output == "budget of owner bob in pool dear is removed\n"
        assert run("remove", *whose).output == "owner bob in pool dear had no budget\n"
        assert run("set", "--stop", "1").exit_code == 2
