"""Pools, VMs and lists through the client."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from remuda import (
    AlreadyExists,
    BadInput,
    InstanceNotFound,
    JobSpec,
    Refused,
    UnknownJob,
    UnknownPool,
    WaitTimeout,
)
from remuda.errors import IllegalTransition
from remuda.models.sizing import note_launch
from tests.integration.builders import make_vms
from tests.integration.workbench import Workbench


def test_a_pool_from_its_making_to_its_end(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool(
            "sim",
            slots_per_vm=2,
            memory_bytes_per_vm=1 << 30,
            settings={"a": [1, None]},
            tags=["x", "y"],
            heartbeat_s=2,
        )
        assert (pool.state, pool.slots_per_vm, pool.is_elastic) == ("UNSUBMITTED", 2, False)
        assert (pool.settings, pool.tags) == ({"a": [1, None]}, ["x", "y"])
        assert pool.info()["stalling_interval_s"] == 12
        assert (pool.info()["backend"], pool.info()["image"]) == ("local", "default")
        assert len(pool.uuid) == 36
        pool.setup_elastic(
            minimum_total_slots=0,
            maximum_total_slots=8,
            minimum_idle_slots=0,
            minimum_idle_time_seconds=30,
            resize_factor=1.0,
            resize_period=5,
        )
        assert pool.is_elastic
        assert pool.submit() is pool
        assert pool.state == "SUBMITTED"
        assert pool.submit().state == "SUBMITTED"
        pool.set(elastic_maximum_slots=4, tags=[])
        assert (pool.info()["elastic_maximum_slots"], pool.tags) == (4, [])
        job = client.submit(JobSpec(["true"]), pool=pool)
        assert pool.update().queued_or_running_task_instances_count == 1
        assert "0 to 4 slots" in " ".join(pool.explain())
        with pytest.raises(Refused, match="close it first"):
            pool.delete()
        pool.close()
        assert pool.state == "CLOSING"
        with pytest.raises(
            Refused, match=r"cannot be deleted yet \(left of it: jobs: 0, leases: 0"
        ):
            pool.delete()
        assert job.refresh().reason == "CANCELLED"
        with pytest.raises(WaitTimeout, match="CLOSING"):
            pool.wait_closed(timeout_s=0.05)
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE pools SET state = 'CLOSED', ended_at = now()"))
        pool.wait_closed(timeout_s=20)
        pool.close()
        assert client.pools() == []
        assert [p.name for p in client.pools(all=True)] == ["sim"]
        with pytest.raises(Refused):
            pool.submit()
        pool.delete()
        pool.delete()
        with pytest.raises(UnknownPool):
            client.pool("sim")
        assert client.create_pool("sim").id != pool.id


def test_two_pools_of_one_name(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_pool("sim")
        with pytest.raises(AlreadyExists, match="sim"):
            client.create_pool("sim")
        client.create_pool("other")
        assert [pool.name for pool in client.pools()] == ["other", "sim"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name of a pool"),
        ({"name": "a b"}, "name of a pool"),
        ({"name": "x" * 64}, "name of a pool"),
        ({"name": "ok\n"}, "name of a pool"),
        ({"name": None}, "name of a pool"),
        ({"provider": ""}, "provider"),
        ({"provider": 5}, "provider"),
        ({"image": ""}, "image"),
        ({"slots_per_vm": 0}, "slots_per_vm"),
        ({"slots_per_vm": "2"}, "slots_per_vm"),
        ({"memory_bytes_per_vm": -1}, "memory_bytes_per_vm"),
        ({"instance_count": -1}, "instance_count"),
        ({"isolation": "none"}, "isolation"),
        ({"tags": "a"}, "tags"),
        ({"settings": {"a": object()}}, "settings"),
        ({"settings": {"a": float("nan")}}, "settings"),
        ({"settings": {"a": "\0"}}, "settings"),
        ({"provider": "local", "settings": {"slurm": {"poll": 1}}}, "slurm has no key poll"),
        ({"provider": "static", "settings": {"slurm": {"poll_s": 0}}}, "poll_s"),
        ({"heartbeat_s": 0}, "heartbeat_s"),
        ({"heartbeat_s": 10, "stalling_interval_s": 5}, "heartbeat"),
    ],
)
def test_a_wrong_pool_is_refused_by_name(
    bench: Workbench, fields: dict[str, Any], message: str
) -> None:
    with bench.client() as client:
        with pytest.raises(BadInput, match=message):
            client.create_pool(**{"name": "sim", **fields})
        assert client.pools(all=True) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"maximum_total_slots": 0}, "maximum_total_slots"),
        ({"minimum_total_slots": 9, "maximum_total_slots": 8}, "above maximum_total_slots"),
        ({"minimum_idle_slots": -1}, "minimum_idle_slots"),
        ({"minimum_idle_time_seconds": float("nan")}, "minimum_idle_time_seconds"),
        ({"resize_factor": 0}, "resize_factor"),
        ({"resize_factor": 1.5}, "resize_factor"),
        ({"resize_period": 0}, "resize_period"),
        ({"resize_period": 0.5}, "at least 1 second"),
    ],
)
def test_wrong_elastic_parameters_are_refused_by_name(
    bench: Workbench, fields: dict[str, Any], message: str
) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim")
        with pytest.raises(BadInput, match=message):
            pool.setup_elastic(**fields)
        assert not pool.update().is_elastic


def test_what_cannot_be_set(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        pool = client.pool("herd")
        with pytest.raises(BadInput, match="colour"):
            pool.set(colour="red")
        with pytest.raises(BadInput, match="instance_count"):
            pool.set(instance_count="many", tags=["x"])
        assert pool.update().tags == []
        with pytest.raises(Refused, match="slots_per_vm"):
            pool.set(slots_per_vm=4)
        pool.set()


def test_a_pool_tells_old_news_for_a_while_only(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        pool, same = client.pool("herd"), client.pool("herd")
        same.set(tags=["new"])
        assert pool.tags == []
        pool.update_cache_time = 0
        assert pool.tags == ["new"]


def test_jobs_are_found_by_every_filter(bench: Workbench) -> None:
    bench.pool()
    bench.pool("other", vms=0)
    with bench.client() as client:
        jobs = client.submit_many(
            (JobSpec(["true"], name=f"a_{i}") for i in range(5)), pool="herd", name="five"
        )
        more = client.submit(JobSpec(["true"], name="ab1"), pool="other")
        array = jobs[0].info()["array_id"]
        assert client.jobs() == [*jobs, more]
        assert client.jobs(pool="other") == [more]
        assert client.jobs(array=array) == jobs
        assert client.jobs(name="a_1") == [jobs[1]]
        assert client.jobs(name="a*") == [*jobs, more]
        assert client.jobs(name="a_*") == jobs
        assert client.jobs(limit=2) == [jobs[4], more]
        assert client.jobs(limit=None, ids=[jobs[2].id, 999]) == [jobs[2]]
        bench.end(jobs[0].id)
        bench.place()
        assert client.jobs(state="TERMINATED") == [jobs[0]]
        assert client.jobs(state=["SUBMITTED", "RUNNING"]) == jobs[1:]
        assert client.counts("herd")["TERMINATED"] == 1
        assert client.counts(array=array)["SUBMITTED"] == 4
        assert client.counts()["NEW"] == 1
        assert client.reasons("herd") == {"OK": 1}
        assert client.jobs(owner="nobody") == []
        with pytest.raises(BadInput, match=r"SLEEPING \(states: NEW"):
            client.jobs(state="SLEEPING")
        with pytest.raises(UnknownPool):
            client.jobs(pool="nowhere")
        with pytest.raises(BadInput):
            client.jobs(limit=-1)


def test_listing_a_thousand_jobs_is_one_query(bench: Workbench) -> None:
    from sqlalchemy import event

    bench.pool()
    with bench.client() as client:
        client.submit_array(JobSpec(["true"], name="{index}"), 1000, pool="herd")
        statements: list[object] = []
        event.listen(
            client._context._engine, "before_cursor_execute", lambda *a: statements.append(a[2])
        )
        assert len({(job.name, job.pool, job.index) for job in client.jobs()}) == 1000
        assert len(statements) == 1


def test_a_job_tells_its_history(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["false"], retries=1), pool="herd")
        bench.lose(job.id)
        bench.start(job.id)
        assert (job.refresh().state, job.vm, job.attempts) == ("RUNNING", "herd-1", 2)
        assert "runs on VM herd-1" in client.explain(job)[0]
        assert "1 were lost" in client.explain(job)[1]
        bench.end(job.id, stdout=b"x")
        history = client.job_history(job)
        assert [a["state"] for a in history["attempts"]] == ["LOST", "COLLECTED"]
        assert [o["name"] for o in history["outputs"]] == ["stdout"]
        assert history["spec"]["command"] == ["false"]
        assert history["events"][0]["to_state"] == "NEW"
        assert client.explain(job) == ["It has ended: it succeeded after 2 attempts."]
        with pytest.raises(UnknownJob):
            client.job_history(99)
        with pytest.raises(UnknownJob):
            client.explain(99)


def test_a_waiting_job_is_explained(bench: Workbench) -> None:
    pool = bench.pool(vms=0)
    with bench.client() as client:
        client.submit(JobSpec(["true"], priority=5), pool="herd")
        job = client.submit(JobSpec(["true"], cores=2), pool="herd")
        with bench.engine.begin() as connection:
            make_vms(connection, pool)
            note_launch(connection, pool, error="no such image")
        said = " ".join(client.explain(job))
        assert "1 job of pool herd goes before it" in said
        assert "needs 2 slots on one VM; the freest has 2" in said
        assert "tries again in" in said
        assert "no such image" in said


def test_a_job_is_run_once_more(bench: Workbench) -> None:
    bench.pool()
    bench.pool("other", vms=0)
    with bench.client() as client:
        [job] = client.submit_array(
            JobSpec(["false", "{index}"], name="n", retries=2, priority=3), [5], pool="herd"
        )
        bench.end(job.id, exit_code=1, reason="NONZERO")
        again = client.retry(job)
        assert again != job
        assert (again.state, again.name, again.index) == ("NEW", "n", 5)
        assert again.info()["array_id"] is None  # which counts its own jobs, each once
        for column in ("spec_id", "priority", "max_attempts", "pool_id"):
            assert again.info()[column] == job.info()[column]
        assert client.retry(job.id, pool="other").pool == "other"
        client.pool("herd").close()
        with pytest.raises(Refused, match="another pool"):
            client.retry(job)


def test_vms_are_listed_drained_and_stopped(bench: Workbench) -> None:
    pool = bench.pool(vms=3)
    with bench.client() as client:
        one, two, three = client.vms(pool="herd")
        assert (one.state, one.slots, one.pool, one.jobs) == ("RUNNING", 2, "herd", 0)
        jobs = client.submit_many([JobSpec(["true"], cores=2)] * 3, pool="herd")
        bench.place(max_ahead=0)
        for job in jobs:
            bench.start(job.id)
        assert [vm.busy_slots for vm in client.vms()] == [2, 2, 2]
        client.drain_vm(one.id)
        assert client.vm(one.id).draining
        assert not client.terminate_vm(two.id)
        assert (client.vm(two.id).state, client.vm(two.id).draining) == ("RUNNING", True)
        assert client.terminate_vm(two.id, now=True)
        assert client.vm(two.id).state == "STOPPING"
        bench.end(jobs[2].id)
        assert client.terminate_vm(three.id)
        assert [vm.id for vm in client.vms(state=["STOPPING"])] == [two.id, three.id]
        with bench.engine.begin() as connection:
            connection.execute(
                text("UPDATE vms SET state = 'HALTED', halted_at = now() WHERE id = :id"),
                {"id": three.id},
            )
        assert [vm.id for vm in client.vms(pool="herd")] == [one.id, two.id]
        assert [vm.id for vm in client.vms(all=True)] == [one.id, two.id, three.id]
        for gone in (two.id, three.id):
            with pytest.raises(IllegalTransition):
                client.drain_vm(gone)
        for call in (client.vm, client.drain_vm, client.terminate_vm):
            with pytest.raises(InstanceNotFound, match="999"):
                call(999)
        with pytest.raises(BadInput, match="no state"):
            client.vms(state="ON")
        assert client.pool("herd").info()["vms"] == 2
        assert pool == client.pool("herd").id
