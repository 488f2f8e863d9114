"""A pool's settings as attributes: kept until commit, refused by name, some only until submit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from remuda import AlreadyExists, BadInput, Pool, Refused, RetryPolicy, UnknownPool
from remuda.client.pool_attributes import PoolAttributes, Setting
from remuda.errors import SetTooLate
from remuda.models.pool_fields import UNTIL_SUBMITTED
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard

__all__ = ["yard"]

# A good value of each setting, another than its default.
GOOD: dict[str, Any] = {
    "name": "other",
    "tags": ["a", "b"],
    "labels": {"team": "wind", "empty": ""},
    "constants": {"A": "1"},
    "constraints": {"min_cores": 2, "ssd": True},
    "settings": {"size": 3},
    "offers": [{"name": "spot", "price": 0.5}],
    "slots_per_vm": 4,
    "memory_bytes_per_vm": 1 << 30,
    "gpus_per_vm": 1,
    "isolation": "owner",
    "scheduling_type": "flex",
    "preparation": ["apt-get", "update"],
    "preparation_timeout_s": 5.0,
    "retry": RetryPolicy(max_retries=2, max_total_retries=9),
    "instance_count": 7,
    "is_elastic": True,
    "elastic_minimum_slots": 1,
    "elastic_maximum_slots": 9,
    "elastic_minimum_idle_slots": 1,
    "elastic_minimum_idle_time_s": 3.0,
    "elastic_resize_factor": 0.5,
    "elastic_resize_period_s": 2.0,
    "completion_ttl": timedelta(days=1, hours=2),
    "auto_delete": True,
    "wait_for_resources": True,
}
SETTINGS = {n: s for n, s in vars(PoolAttributes).items() if isinstance(s, Setting) and n[0] != "_"}


def _same(pool: Pool, name: str) -> bool:
    found = getattr(pool, name)
    if name == "offers":
        return [offer["name"] for offer in found] == ["spot"]
    return bool(found == GOOD[name])


def test_every_setting_is_kept_here_until_it_is_committed(bench: Workbench) -> None:
    assert set(GOOD) == set(SETTINGS)
    with bench.client() as client:
        pool, seen = client.create_pool("sim"), client.pool("sim")
        before = seen.info()
        for name, value in GOOD.items():
            assert not _same(pool, name)
            setattr(pool, name, value)
            assert _same(pool, name)
        pool.shortname = "sim-1"
        assert seen.update().info() == before
        assert _same(pool.update(), "tags")  # what is set stays set
        pool.commit()
        again = client.pool("other")
        assert all(_same(again, name) for name in GOOD)
        assert again.shortname == "sim-1"
        assert [p.id for p in client.pools(tags=["b"], labels={"team": "wind"})] == [pool.id]
        assert client.pools(labels={"team": "sea"}) == client.pools(tags=["a", "c"]) == []
        assert client.pool("sim-1").id == client.pool(pool.uuid).id == pool.id


def test_what_is_set_can_be_discarded_or_goes_with_submit(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim")
        pool.tags = ["x"]
        pool.discard()
        assert pool.tags == []
        pool.tags, pool.slots_per_vm = ["y"], 3
        pool.submit()
        assert (client.pool("sim").tags, client.pool("sim").slots_per_vm) == (["y"], 3)
        pool.tags = ["z"]
        pool.set(tags=["w"])  # at once, and instead
        pool.commit()
        assert client.pool("sim").tags == ["w"]


def test_some_can_be_set_until_it_is_submitted_only(bench: Workbench) -> None:
    columns = {name: setting.column for name, setting in SETTINGS.items()}
    with bench.client() as client:
        pool = client.create_pool("sim").submit()
        before = client.pool("sim").info()
        late = [
            n
            for n, c in {
                **columns,
                "reserved_group": "reserved_group",
                "shortname": "shortname",
            }.items()
            if c in UNTIL_SUBMITTED
        ]
        assert len(late) > 10
        for name in late:
            value = GOOD.get(name, "label")
            with pytest.raises(AttributeError, match=name) as caught:
                setattr(pool, name, value)
            assert isinstance(caught.value, SetTooLate)
            assert isinstance(caught.value, Refused)
            with pytest.raises(SetTooLate, match=name):
                pool.set(**{name: value})
        pool.commit()
        assert client.pool("sim").info() == before
        always = [name for name in columns if name not in late]
        for name in always:
            setattr(pool, name, GOOD[name])
        pool.commit()
        assert all(_same(client.pool("sim"), name) for name in always)


def test_a_late_commit_is_refused_as_a_whole_and_kept(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim")
        pool.tags, pool.gpus_per_vm = ["x"], 2
        client.pool("sim").submit()
        with pytest.raises(SetTooLate, match="gpus_per_vm"):
            pool.commit()
        assert client.pool("sim").tags == []
        assert pool.tags == ["x"]


WRONG: list[tuple[str, Any]] = [
    ("completion_ttl", "00:00:00junk"),
    ("completion_ttl", timedelta(seconds=-1)),
    ("completion_ttl", "3651.00:00:00"),
    ("tags", ["x" * 10_000]),
    ("tags", "word"),
    ("tags", [f"t{i}" for i in range(101)]),
    ("tags", ["\ud800"]),
    ("labels", {"a": "x" * 10_000}),
    ("labels", {"": "x"}),
    ("labels", {"a": 1}),
    ("labels", {str(i): "" for i in range(101)}),
    ("labels", ["a"]),
    ("shortname", "Upper"),
    ("shortname", "-dash"),
    ("shortname", "dash-"),
    ("shortname", "a.b"),
    ("shortname", ""),
    ("shortname", "x" * 64),
    ("shortname", "123e4567-e89b-12d3-a456-426614174000"),
    ("constraints", {"min_cores": 4, "max_cores": 2}),
    ("constraints", {"colour": "red"}),
    ("elastic_minimum_idle_time_s", -1),
    ("retry", {"max_total_retries": -1}),
    ("auto_delete", "yes"),
    ("name", "a b"),
    ("instance_count", True),
]


def test_a_wrong_value_is_refused_at_the_call(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim")
        before = pool.info()
        for name, value in WRONG:
            told = "max_total_retries" if name == "retry" else name
            with pytest.raises(BadInput, match=told):
                setattr(pool, name, value)
            with pytest.raises(BadInput, match=told):
                pool.set(**{name: value})
            with pytest.raises(BadInput, match=told):
                client.create_pool(**{"name": "fresh", name: value})
        pool.commit()
        assert client.pool("sim").info() == before
        with pytest.raises(UnknownPool):
            client.pool("fresh")


def test_bounds_that_cross_are_refused_by_name(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim")
        pool.setup_elastic(maximum_total_slots=4)
        pool.elastic_minimum_slots = 5
        for call in (pool.commit, pool.submit):
            with pytest.raises(BadInput, match=r"elastic_minimum_slots \(5\) is above"):
                call()
        assert client.pool("sim").state == "UNSUBMITTED"
        pool.elastic_maximum_slots = 6
        pool.commit()
        assert client.pool("sim").elastic_minimum_slots == 5


def test_names_that_are_taken(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_pool("one", shortname="short")
        pool = client.create_pool("two")
        with pytest.raises(AlreadyExists, match="'short'"):
            client.create_pool("three", shortname="short")
        pool.shortname = "short"
        with pytest.raises(AlreadyExists, match="'short'"):
            pool.commit()
        pool.discard()
        pool.name = "one"
        with pytest.raises(AlreadyExists, match="'one'"):
            pool.commit()
        client.pool("one").close()  # then both are free again
        pool.shortname = "short"
        pool.commit()
        assert (client.pool("one").id, client.pool("short").id) == (pool.id, pool.id)
        assert client.create_pool("four").shortname == client.pool("four").uuid


def test_an_open_pool_is_found_before_a_closed_one(bench: Workbench) -> None:
    with bench.client() as client:
        old = client.create_pool("sim")
        old.close()
        assert client.pool("sim").id == old.id
        new = client.create_pool("sim-2", shortname="sim")
        assert client.pool("sim").id == new.id
        assert (client.pool(old.uuid).id, client.pool(new.uuid).id) == (old.id, new.id)
        new.close()
        named = client.create_pool("sim")
        assert client.pool("sim").id == named.id
        named.close()
        assert client.pool("sim").id == named.id


def test_no_pool_hides_another(bench: Workbench) -> None:
    """Neither by its name, which is looked up first, nor by its shortname."""
    with bench.client() as client:
        one = client.create_pool("one", shortname="uno")
        with pytest.raises(AlreadyExists, match="'one' is the name of another pool"):
            client.create_pool("two", shortname="one")
        with pytest.raises(AlreadyExists, match="'uno' is the shortname of pool 'one'"):
            client.create_pool("uno")
        two = client.create_pool("two")
        for name, value in (("name", "uno"), ("shortname", "one")):
            setattr(two, name, value)
            with pytest.raises(AlreadyExists):
                two.commit()
            two.discard()
        assert [pool.name for pool in client.pools()] == ["one", "two"]
        one.shortname = "one"  # its own
        one.commit()
        with pytest.raises(BadInput, match="cannot be the name of a pool"):
            client.create_pool(two.uuid)


def test_a_misspelt_setting_is_refused(bench: Workbench) -> None:
    with bench.client() as client:
        pool: Any = client.create_pool("sim")
        for name in ("tag", "uuid", "state", "created_at", "running_core_count"):
            with pytest.raises(AttributeError):
                setattr(pool, name, "x")


def test_nothing_is_read_anew_without_auto_update(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        pool, same = client.pool("herd"), client.pool("herd")
        same.set(tags=["new"])
        for name, wrong in (
            ("update_cache_time", "x"),
            ("update_cache_time", -1),
            ("auto_update", 1),
        ):
            with pytest.raises(BadInput, match=name):
                setattr(pool, name, wrong)
        pool.update_cache_time, pool.auto_update = 0, False
        assert pool.tags == []
        assert pool.update().tags == ["new"]


def test_counts_times_and_errors(bench: Workbench) -> None:
    from remuda import JobSpec

    bench.pool(vms=2)
    with bench.client() as client:
        job = client.submit(JobSpec("true"), pool="herd")
        bench.start(job.id)
        pool = client.pool("herd")
        assert (pool.running_instance_count, pool.running_core_count) == (2, 4)
        assert (pool.busy_core_count, pool.queued_or_running_task_instances_count) == (1, 1)
        assert pool.execution_time_s == 0
        bench.end(job.id, user_s=1.5, system_s=0.25)
        assert pool.update().execution_time_s == 1.75
        assert pool.queued_or_running_task_instances_count == 0
        assert pool.errors == []
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE pools SET message = 'no quota'"))
            connection.execute(text("UPDATE vms SET error = 'no answer' WHERE name = 'herd-2'"))
        assert pool.errors == ["no quota", "VM herd-2: no answer"]
        assert pool.previous_state_changed_at is not None
        assert pool.created_at <= pool.previous_state_changed_at <= pool.state_changed_at
        before = pool.updated_at
        pool.set(tags=["x"])
        assert pool.updated_at > before
        assert pool.ended_at is None


def test_vms_that_do_not_meet_the_constraints_are_errors(yard: Yard) -> None:
    yard.pool(constraints={"min_cores": 100_000})
    [vm] = yard.vms()
    found = yard.launch(vm)
    assert found["state"] in ("ERROR", "STOPPING")
    assert "its pool asks for cores of at least 100000" in found["error"]
    assert found["facts"]["cores"] > 0


def test_vms_that_meet_the_constraints_run(yard: Yard) -> None:
    yard.pool(constraints={"min_cores": 1, "gpu": False})
    [vm] = yard.vms()
    assert yard.launch(vm)["state"] == "RUNNING"
