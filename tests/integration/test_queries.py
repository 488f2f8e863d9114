"""One way to ask for VMs, images and jobs: filters, order, pages, counts, distinct values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from remuda.errors import BadInput, InstanceNotFound, NotFound, Refused, UnknownPool
from remuda.models import declaring, images, query
from remuda.models.selecting import Selection
from remuda.models.states import VmState
from remuda.spec import JobSpec
from tests.integration.builders import make_jobs, make_pool, make_vms, reach_vm
from tests.integration.workbench import Workbench

STATES = [VmState.RUNNING, VmState.STOPPING, VmState.HALTED, VmState.STALLED, VmState.NEW]


def herds(bench: Workbench) -> dict[str, list[int]]:
    """Make two pools, each with a VM in each of STATES; return the VMs' ids by pool."""
    made = {}
    with bench.engine.begin() as connection:
        for pool in ("a", "b"):
            made[pool] = make_vms(
                connection, make_pool(connection, pool), len(STATES), state=VmState.NEW
            )
            for vm, state in zip(made[pool], STATES, strict=True):
                reach_vm(connection, vm, state)
        connection.execute(
            text(
                """UPDATE vms SET load = id / 2.0, created_at = now() - make_interval(mins => id::int),
                     provider_id = 'i-' || id, error = CASE WHEN id % 2 = 0 THEN '50%_done' END"""
            )
        )
    return made


def test_filters_order_and_pages(bench: Workbench) -> None:
    made = herds(bench)
    all_ids = sorted(made["a"] + made["b"])
    with bench.client() as client:

        def ids(**given: Any) -> list[int]:
            return [vm.id for vm in client.vms(**given)]

        assert len(ids()) == 8  # without the two that are gone
        assert ids(all=True) == all_ids
        assert ids(state=["RUNNING", "HALTED"]) == sorted(
            [made["a"][0], made["a"][2], made["b"][0], made["b"][2]]
        )
        assert ids(pool=["a", "b"], state=["RUNNING", "STALLED"], provider="local") == sorted(
            [made["a"][0], made["a"][3], made["b"][0], made["b"][3]]
        )  # a row for each, not for each pair of values
        assert ids(pool=client.pool("b"), all=True) == made["b"]
        assert ids(all=True, load=(1.0, 2.0)) == [vm for vm in all_ids if 1 <= vm / 2 < 2]
        assert ids(all=True, load=(None, 1.0)) == [vm for vm in all_ids if vm / 2 < 1]
        assert ids(all=True, load=(None, None)) == all_ids
        assert ids(all=True, error=None) == [vm for vm in all_ids if vm % 2]
        assert ids(all=True, error="50%_*") == [vm for vm in all_ids if vm % 2 == 0]
        assert ids(all=True, error="5*e") == ids(all=True, error="50%_done")
        assert ids(all=True, error="%") == ids(all=True, name=[]) == []
        assert ids(all=True, provider_id=f"i-{all_ids[3]}") == [all_ids[3]]
        assert ids(all=True, name="a-*", draining=False) == made["a"]
        assert ids(all=True, older_s=60 * all_ids[4] - 1) == all_ids[4:]
        assert ids(all=True, newer_s=60 * all_ids[4] - 1) == all_ids[:4]
        early = datetime.now(UTC) - timedelta(minutes=all_ids[2], seconds=30)
        assert ids(all=True, created_at=(early, None)) == all_ids[:3]

        down = all_ids[::-1]
        assert ids(all=True, sort="-load") == down
        assert ids(all=True, sort=["-pool", "created_at"]) == made["b"][::-1] + made["a"][::-1]
        assert ids(all=True, sort="error,-id")[:5] == [vm for vm in down if vm % 2 == 0]
        pages = [ids(all=True, sort="provider", start=n, limit=3) for n in range(0, 12, 3)]
        assert [vm for page in pages for vm in page] == all_ids
        assert ids(all=True, limit=0) == []
        assert client.vm(all_ids[0]).image == "default"


def test_counts_and_distinct_values(bench: Workbench) -> None:
    made = herds(bench)
    with bench.engine.begin() as connection:
        pool = make_pool(connection, "c")
        make_jobs(connection, pool, 3, name="x")
        make_jobs(connection, pool, 2, owner="bob")
    with bench.client() as client:
        assert client.count("vms") == 10
        assert client.count(state="RUNNING", pool="a") == 1
        assert client.count("vms", by="pool,state", state=["RUNNING", "NEW"]) == [
            {"pool": pool, "state": state, "count": 1}
            for pool in ("a", "b")
            for state in ("NEW", "RUNNING")
        ]
        assert client.count("vms", by=["provider"], older_s=1) == [
            {"provider": "local", "count": 10}
        ]
        assert client.count("jobs", by="owner", state="NEW") == [
            {"owner": "alice", "count": 3},
            {"owner": "bob", "count": 2},
        ]
        assert client.count("jobs", newer_s=3600, name="x") == 3
        assert client.values("vms", "state") == sorted(STATES)
        assert client.values("vms", "error", pool="a") == ["50%_done"]
        assert client.values("vms", "id", pool=["a"]) == made["a"]


def test_images_from_the_client(bench: Workbench) -> None:
    herds(bench)
    with bench.engine.begin() as connection:
        images.check_image(connection, "local", "debian")
    with bench.client() as client:
        assert [(i.name, i.vms, i.live_vms) for i in client.images(sort="name")] == [
            ("debian", 0, 0),
            ("default", 10, 8),
        ]
        client.mark_image_error("debian", "no kernel")
        assert client.image("debian").message == "no kernel"
        assert [i.name for i in client.images(state="ERROR", name="deb*")] == ["debian"]
        with pytest.raises(Refused):
            client.mark_image_error("debian", "again")
        client.reset_image(client.image("debian").id)
        assert client.images(message=None, live_vms=0)[0].state == "NEW"
        for call in (client.image, client.reset_image):
            with pytest.raises(NotFound):
                call("nothing")


def test_what_became_of_a_vm(bench: Workbench) -> None:
    [vm, *_] = herds(bench)["a"]
    with bench.engine.begin() as connection:
        for n in range(3):
            declaring.heartbeat(connection, vm, load=n, jobs=n)
    with bench.client() as client:
        found = client.vm_history(vm, newest=2)
        assert (found["vm"]["id"], found["image"]["name"]) == (vm, "default")
        assert [event["to_state"] for event in found["events"]] == ["NEW", "SUBMITTED", "RUNNING"]
        assert [beat["load"] for beat in found["heartbeats"]] == [1, 2]
        with pytest.raises(InstanceNotFound):
            client.vm_history(12345)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 10_000])
def test_names_that_cannot_be_stored_are_refused(bench: Workbench, name: str) -> None:
    bench.pool()
    with bench.client() as client:
        questions: list[Callable[[], object]] = [
            lambda: client.pool(name),
            lambda: client.submit(JobSpec(["true"]), pool=name),
            lambda: client.vms(pool=name),
            lambda: client.counts(name),
            lambda: client.history(pool=name),
            lambda: client.jobs(name=name),
            lambda: client.jobs(owner=name),
            lambda: client.arrays(owner=name),
            lambda: client.leases(owner=name),
            lambda: client.leases(task_id=name),
            lambda: client.leases(build_id=name),
            lambda: client.profile(name),
        ]
        for question in questions:
            with pytest.raises(BadInput):
                question()


def test_questions_that_are_refused(bench: Workbench) -> None:
    herds(bench)
    naive = datetime.now(UTC).replace(tzinfo=None)
    bad: list[dict[str, Any]] = [
        {"nothing": 1},
        {"id; DROP TABLE vms": 1},
        {"x" * 10_000_000: 1},
        {"name": "x" * 10_000_000},
        {"name": "a\0b"},
        {"name": "a\0*"},
        {"name": 7},
        {"name": "\ud800"},
        {"id": "7"},
        {"id": True},
        {"id": 2**63},
        {"id": [1, None]},
        {"id": list(range(100_001))},
        {"load": float("nan")},
        {"load": float("inf")},
        {"load": (2, 1)},
        {"load": (1, 2, 3)},
        {"load": {"a": 1}},
        {"draining": "yes"},
        {"draining": (True, False)},
        {"created_at": naive},
        {"created_at": "2026-01-01"},
        {"state": "Running"},
        {"state": ["RUNNING", 7]},
        {"state": [["RUNNING"]]},
        {"older_s": -1},
        {"newer_s": "1"},
        {"sort": "nothing"},
        {"sort": "name,-name"},
        {"sort": [7]},
        {"sort": "name; --"},
        {"limit": -1},
        {"limit": 2**40},
        {"start": 0.5},
        {"pool": 7},
    ]
    with bench.client() as client:
        for given in bad:
            with pytest.raises(BadInput) as refused:
                client.vms(**given)
            assert len(str(refused.value)) < 1500, given
        with pytest.raises(UnknownPool):
            client.vms(pool=["a", "nothing"])
        for kind in ("nothing", "x" * 10_000_000, 7, None):
            with pytest.raises(BadInput):
                client.count(kind)  # type: ignore[arg-type]
        for by in ("nothing", "pool,pool", "", [7], []):
            with pytest.raises(BadInput):
                client.count("vms", by=by)  # type: ignore[arg-type]
        with pytest.raises(BadInput):
            client.values("vms", "count(*)")
        assert client.count("vms") == 10


def test_every_field_can_be_asked_for(bench: Workbench) -> None:
    with bench.engine.connect() as connection:
        for kind in query.KINDS.values():
            assert Selection(kind).where(dict.fromkeys(kind.fields)).get(connection) == []
            assert Selection(kind).count_by(connection, list(kind.fields)) == []
