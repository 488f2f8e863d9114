"""Policies, ceilings and decisions in the database: who rules, what is refused, what is kept."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from remuda.config import load_settings
from remuda.errors import BadInput, Refused
from remuda.models import sizing_decisions
from remuda.models.database import rows
from remuda.models.submit import NewJob, NewSpec, insert_jobs, owner_id
from remuda.tasks import sizing
from tests.integration.builders import make_jobs, make_pool
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard

__all__ = ["yard"]

FIXED = {"name": "always", "kind": "fixed", "slots": 3}


def on_days(*ahead: int, slots: int) -> list[dict[str, Any]]:
    """Return a policy of the days so far from today."""
    today = datetime.now(UTC)
    days = [f"{today + timedelta(days=n):%A}" for n in ahead]
    return [{"name": "other", "kind": "fixed", "slots": slots, "periods": [{"days": days}]}]


def pool_of(yard: Yard, pool_id: int) -> dict[str, Any]:
    return yard.row("pools", pool_id)


def sized(yard: Yard) -> dict[str, Any]:
    sizing.resize_pools(yard.runtime)
    return yard.the_pool


def live(yard: Yard, pool_id: int | None = None) -> int:
    query = (
        "SELECT count(*) AS n FROM vms WHERE pool_id = :id AND state NOT IN ('STOPPING', 'HALTED')"
    )
    found = yard.runtime.transact(lambda c: rows(c, query, id=pool_id or yard.pool_id))
    return int(found[0]["n"])


def decided(yard: Yard) -> list[dict[str, Any]]:
    return yard.runtime.transact(lambda c: sizing_decisions.listing(c, yard.pool_id, limit=100))


def test_a_policy_rules_from_when_it_is_set(yard: Yard) -> None:
    yard.pool(is_elastic=True, elastic_maximum_slots=8, elastic_resize_period_s=3600)
    assert sized(yard)["policy_name"] is None
    assert live(yard) == 0
    yard.sql("UPDATE pools SET policies = :p, policy_changes_at = now()", p=json.dumps([FIXED]))
    pool = sized(yard)
    assert pool["policy_name"] == "always"
    assert (pool["policy_minimum_slots"], pool["policy_maximum_slots"]) == (3, 3)
    assert live(yard) == 3  # at once, though the period of its own size is an hour
    assert pool["decision"]["policy"] == "always"
    assert pool["decision"]["outlook"]["waits_for"] == ["3 VMs that its provider is asked for"]
    for _ in range(2):
        yard.sql("UPDATE pools SET last_resize_at = now() - interval '1 minute'")
        sized(yard)
    steps = [(row["step"], row["policy"], row["grow_vms"]) for row in decided(yard)]
    assert steps == [("steady", "", 0), ("grow", "always", 3), ("steady", "always", 0)]
    assert decided(yard)[1]["inputs"]["maximum_total_slots"] == 3


def test_a_period_ends_and_another_policy_takes_over(yard: Yard) -> None:
    yard.pool(instance_count=1, policies=on_days(3, slots=9))
    pool = sized(yard)
    assert pool["policy_name"] is None  # its own size: one VM
    assert live(yard) == 1
    assert pool["policy_changes_at"] > datetime.now(UTC)
    assert "policy other takes over: 9 slots" in pool["decision"]["outlook"]["next_step"]
    yard.sql("UPDATE pools SET policies = :p", p=json.dumps(on_days(0, 1, slots=2)))
    assert sized(yard)["policy_name"] == "other"
    assert live(yard) == 2


def test_a_queue_policy_has_its_own_period(yard: Yard) -> None:
    queue = {"name": "day", "kind": "queue", "maximum_total_slots": 4, "resize_period": 3600}
    yard.pool(instance_count=0, policies=[queue])
    assert sized(yard)["policy_resize_period_s"] == 3600
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 2))
    assert not sized(yard)["decision"]["grow_vms"]  # its period is not over
    yard.sql("UPDATE pools SET last_resize_at = now() - interval '2 hours'")
    sized(yard)
    assert live(yard) == 2


def test_decisions_are_kept_for_a_time(yard: Yard) -> None:
    yard.pool(instance_count=1)
    sized(yard)
    sized(yard)
    assert len(decided(yard)) == 2
    yard.sql("UPDATE sizing_decisions SET at = now() - interval '2 days' WHERE step = 'grow'")
    yard.runtime.transact(lambda c: sizing_decisions.expire(c, retention_s=86_400))
    assert [row["step"] for row in decided(yard)] == ["steady"]


def test_pools_share_a_global_cap_and_those_of_groups(yard: Yard) -> None:
    yard.pool(instance_count=3, sizing_group="cloud")

    def another(name: str, group: str | None) -> int:
        more: dict[str, Any] = {"instance_count": 4, "sizing_group": group}
        return yard.runtime.transact(lambda c: make_pool(c, name, slots_per_vm=1, **more))

    others = [another("second", "cloud"), another("third", None)]
    kept = yard.runtime.settings
    yard.runtime.settings = load_settings(
        **{**kept.model_dump(), "max_total_slots": 8, "group_max_slots": {"cloud": 5}}
    )
    for _ in range(3):
        sizing.resize_pools(yard.runtime)
    assert [live(yard), *(live(yard, other) for other in others)] == [3, 2, 3]
    reason = pool_of(yard, others[0])["decision"]["reason"]
    assert "at the cap of group cloud of 5 slots over several pools" in reason
    assert "at the global cap of 8 slots" in pool_of(yard, others[1])["decision"]["reason"]
    yard.runtime.settings = kept
    sizing.resize_pools(yard.runtime)
    assert [live(yard, other) for other in others] == [4, 4]


def test_jobs_for_several_pools_are_counted_where_there_is_room(yard: Yard) -> None:
    elastic: dict[str, Any] = {"is_elastic": True, "elastic_maximum_slots": 9}
    yard.pool(sizing_group="full", **elastic)
    other = yard.runtime.transact(lambda c: make_pool(c, "other", slots_per_vm=1, **elastic))

    def submit(connection: Any) -> None:
        insert_jobs(
            connection,
            [NewSpec(command=["x"])],
            [NewJob(spec=0)] * 5,
            pool_id=yard.pool_id,
            pool_ids=[yard.pool_id, other],
            owner=owner_id(connection, "alice"),
        )

    yard.runtime.transact(submit)
    kept = yard.runtime.settings.model_dump()
    yard.runtime.settings = load_settings(**{**kept, "group_max_slots": {"full": 0}})
    sizing.resize_pools(yard.runtime)
    assert (live(yard), live(yard, other)) == (0, 5)


def test_the_client_sets_and_explains_them(bench: Workbench) -> None:
    bench.pool(vms=0, is_elastic=True, elastic_maximum_slots=8)
    with bench.client() as client:
        pool = client.pool("herd")
        assert "has not been decided yet" in " ".join(pool.explain())
        pool.set_policies([*on_days(3, slots=9), FIXED])
        assert [policy["name"] for policy in pool.policies()] == ["other", "always"]
        said = " ".join(pool.explain())
        assert "Policy always rules (fixed): 3 slots, always." in said
        assert "on policy other rules." in said
        wrong = [
            FIXED,
            {"name": "b", "kind": "queue", "maximum_total_slots": 2, "resize_factor": 7},
        ]
        before = pool.update().info()
        with pytest.raises(BadInput, match=r"policies\[1\].resize_factor"):
            pool.set(tags=["x"], policies=wrong)
        assert pool.update().info() == before
        pool.set_policies([])
        assert "0 to 8 slots" in " ".join(pool.explain())
        assert pool.decisions() == []
        with pytest.raises(BadInput, match="limit"):
            pool.decisions(limit=0)
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE pools SET state = 'CLOSING'"))
        with pytest.raises(Refused, match="cannot set policies"):
            pool.set_policies([FIXED])


WRONG_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"elastic_minimum_slots": 9}, r"elastic_minimum_slots \(9\) is above"),
    ({"elastic_minimum_idle_slots": 9}, r"elastic_minimum_idle_slots \(9\) is above"),
    ({"elastic_maximum_slots": 1, "elastic_minimum_slots": 2}, "elastic_minimum_slots"),
    ({"elastic_resize_factor": 0}, "elastic_resize_factor"),
    ({"elastic_resize_factor": 7}, "elastic_resize_factor"),
    ({"elastic_resize_factor": math.nan}, "elastic_resize_factor"),
    ({"elastic_minimum_idle_time_s": -1}, "elastic_minimum_idle_time_s"),
    ({"sizing_group": "a b"}, "sizing_group"),
    ({"policies": [{**FIXED, "slots": math.nan}]}, r"policies\[0\].slots"),
]


def test_bad_sizes_are_refused_by_name(bench: Workbench) -> None:
    bench.pool(vms=0, is_elastic=True, elastic_maximum_slots=8)
    with bench.client() as client:
        pool = client.pool("herd")
        before = pool.info()
        for fields, match in WRONG_SIZES:
            with pytest.raises(BadInput, match=match):
                pool.set(**fields)
            assert pool.update().info() == before
            with pytest.raises(BadInput, match=match):
                client.create_pool("other", **{"elastic_maximum_slots": 8, **fields})
        assert [known.name for known in client.pools()] == ["herd"]


def test_setup_elastic_refuses_more_idle_slots_than_there_can_be(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        pool = client.pool("herd")
        with pytest.raises(BadInput, match="minimum_idle_slots"):
            pool.setup_elastic(maximum_total_slots=4, minimum_idle_slots=5)
        assert not pool.update().is_elastic
