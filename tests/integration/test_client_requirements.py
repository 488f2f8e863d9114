"""Requirements as producers meet them: refused at once, explained while they wait, found by tag."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from remuda import JobSpec
from remuda.errors import BadInput, NoResources, Refused
from tests.integration.builders import make_pool
from tests.integration.workbench import Workbench


def test_several_pools_are_tried_in_order(bench: Workbench) -> None:
    bench.pool("small", vms=0, slots_per_vm=1)
    big = bench.pool("big", slots_per_vm=4)
    with bench.client() as client:
        job = client.submit(JobSpec(["x"], cores=2), pool=["small", client.pool("big"), "small"])
        assert len(job.info()["pool_ids"]) == 2
        with pytest.raises(NoResources, match=r"pool small has 1 .*pool big has 4"):
            client.submit(JobSpec(["x"], cores=5), pool=["small", "big"])
        with pytest.raises(BadInput, match="empty"):
            client.submit(JobSpec(["x"]), pool=[])
        said = "\n".join(client.explain(job))
        assert "first of small, big" in said
        assert "1 too few" in said
        bench.live(job.id)
        assert job.refresh().info()["pool_id"] == big
        client.pool("small").close()
        with pytest.raises(Refused, match="small"):
            client.submit(JobSpec(["x"]), pool=["big", "small"])


def test_what_no_machine_of_the_pool_is_is_refused(bench: Workbench) -> None:
    bench.pool("herd", gpus_per_vm=1)
    with bench.engine.begin() as connection:
        connection.execute(
            text(
                """UPDATE vms SET architecture = 'x86_64', gpus = 1, memory_bytes = 100,
                     facts = '{"cores": 4, "cpu_model": "Xeon"}'"""
            )
        )
    wrong = {
        "2 GPUs.* 1 too few": JobSpec(["x"], gpus=2),
        "aarch64": JobSpec(["x"], architecture="arm64"),
        "4 less": JobSpec(["x"], constraints={"min_cores": 8}),
        "SSD": JobSpec(["x"], constraints={"ssd": True}),
    }
    with bench.client() as client:
        for told, spec in wrong.items():
            with pytest.raises(NoResources, match=told):
                client.submit(spec, pool="herd")
            job = client.submit(spec, pool="herd", allow_pending=True)
            assert "can never run" in client.explain(job)[0]
        wish = {"cpu_model": "xe*", "gpu": True}
        client.submit(JobSpec(["x"], gpus=1, architecture="amd64", constraints=wish), pool="herd")


def test_explain_names_what_it_waits_for(bench: Workbench) -> None:
    bench.pool("herd", slots_per_vm=1, isolation="owner")
    with bench.client() as client:
        first = client.submit(JobSpec(["x"], name="parent"), pool="herd")
        child = client.submit(JobSpec(["x"], after=[first]), pool="herd")
        assert f"job {first.id} 'parent'" in "\n".join(client.explain(child))
        late = client.submit(JobSpec(["x"], max_queue_s=50), pool="herd")
        assert "QUEUE_TIMEOUT" in "\n".join(client.explain(late))
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET held = true WHERE id = :i"), {"i": late.id})
        assert "held" in "\n".join(client.explain(late))
    with bench.client() as client:
        with bench.engine.begin() as connection:
            connection.execute(text("INSERT INTO owners (name) VALUES ('bob')"))
            connection.execute(
                text(
                    """UPDATE vms SET bound_owner_id = (SELECT id FROM owners WHERE name = 'bob')"""
                )
            )
        assert "bound to others" in "\n".join(client.explain(first.id))


def test_tags_find_jobs(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        both = client.submit(JobSpec(["x"], tags=["a", "b"]), pool="herd")
        one = client.submit(JobSpec(["x"], tags=["a"]), pool="herd")
        client.submit(JobSpec(["x"]), pool="herd")
        assert client.jobs(tags=["a"]) == [both, one]
        assert client.jobs(tags=["b", "a"], pool="herd") == [both]
        assert client.jobs(tags=["c"]) == []
        assert len(client.jobs(tags=[])) == 3
        with pytest.raises(BadInput, match="tags"):
            client.jobs(tags="a")


def test_settings_of_pools(bench: Workbench) -> None:
    with bench.engine.begin() as connection:
        make_pool(connection, "other")
    with bench.client() as client:
        pool = client.create_pool(
            "herd",
            gpus_per_vm=2,
            constants={"A": "1"},
            preparation="sh -c 'echo hi'",
            preparation_timeout_s=5,
            retry={"max_retries": 2},
            isolation="sandbox",
        )
        assert (pool.gpus_per_vm, pool.constants, pool.isolation) == (2, {"A": "1"}, "sandbox")
        assert pool.info()["preparation"] == ["sh", "-c", "echo hi"]
        assert pool.info()["retry"]["max_retries"] == 2
        pool.submit()
        pool.set(constants={"B": "2"}, retry=None)
        assert pool.constants == {"B": "2"}
        for late in ({"gpus_per_vm": 1}, {"preparation": ["x"]}):
            with pytest.raises(Refused, match="cannot set"):
                pool.set(**late)
        for wrong in ({"constants": {"A=": "1"}}, {"retry": {"x": 1}}, {"gpus_per_vm": -1}):
            with pytest.raises(BadInput):
                pool.set(**wrong)
