"""Resources of pools: found, stored, versioned, added to, and which VMs lack them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remuda import BadInput, DataStagingError, JobSpec, Refused, UnknownPool
from remuda.errors import SetTooLate
from remuda.models import ledger, pool_resources, starting
from remuda.tasks import purging
from remuda.tasks.runtime import Runtime
from tests.integration.workbench import Workbench


def _named(path: Path) -> tuple[str, str]:
    """Return a file as it is given, under its own name."""
    return str(path), path.name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two files."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    return folder


def test_resources_are_set_until_submit_and_committed(bench: Workbench, data: Path) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim", resources=[_named(data / "a.txt")])
        [one] = pool.resources
        assert (one["name"], one["size"], one["version"]) == ("a.txt", 1, 1)
        assert f"/pools/{pool.uuid}/" in one["url"]
        pool.resources = [(str(data), "all"), ("https://example.org/x.csv", "x.csv")]
        assert [r["name"] for r in pool.resources] == ["all/a.txt", "all/b.txt", "x.csv"]
        assert [r["name"] for r in client.pool("sim").resources] == ["a.txt"]
        pool.submit()
        found = client.pool("sim").resources
        assert [(r["name"], bool(r["sha256"])) for r in found] == [
            ("all/a.txt", True), ("all/b.txt", True), ("x.csv", False)]  # fmt: skip
        with pytest.raises(SetTooLate, match="resources"):
            pool.resources = []
        with pytest.raises(SetTooLate, match="resources"):
            pool.set(resources=[])
        assert client.pool("sim").resources == found


def test_wrong_resources_are_refused(bench: Workbench, data: Path) -> None:
    wrong: list[Any] = ["../up", [("x", "/abs")], [5], "no-such-file"]
    with bench.client() as client:
        pool = client.create_pool("sim")
        for each in wrong:
            with pytest.raises((BadInput, DataStagingError)):
                client.create_pool("other", resources=each)
            with pytest.raises((BadInput, DataStagingError)):
                pool.resources = each
            with pytest.raises((BadInput, DataStagingError)):
                pool.update_resources(each)
        with pytest.raises(UnknownPool):
            client.pool("other")
        assert pool.resources == []


def test_an_update_adds_and_what_is_the_same_is_not_sent_again(
    bench: Workbench, data: Path
) -> None:
    with bench.client() as client:
        pool = client.create_pool(
            "sim", resources=[_named(data / "a.txt"), ("https://example.org/x", "x")]
        )
        pool.submit()
        assert pool.update_resources([_named(data / "a.txt")]) == 0
        (data / "a.txt").write_text("longer")
        assert pool.update_resources([_named(data / "a.txt"), _named(data / "b.txt")]) == 2
        versions = {r["name"]: r["version"] for r in pool.resources}
        assert versions == {"a.txt": 3, "b.txt": 3, "x": 3}  # at a URL there may be something else
        assert client.pool("sim").info()["resources_version"] == 3
        pool.close()
        with pytest.raises(Refused, match="CLOS"):
            pool.update_resources([_named(data / "a.txt")])


def test_vms_lack_what_is_newer_than_what_they_have(bench: Workbench, data: Path) -> None:
    pool_id = bench.pool(vms=2)
    bench.pool("other", vms=1)
    with bench.client() as client:
        pool = client.pool("herd")
        one, two = [vm.id for vm in client.vms(pool="herd")]
        with bench.engine.begin() as connection:
            assert pool_resources.outdated(connection) == []
        pool.update_resources([_named(data / "a.txt")])
        with bench.engine.begin() as connection:
            assert pool_resources.outdated(connection) == [one, two]
            pool_resources.note_synchronized(connection, one, 1)
            assert pool_resources.outdated(connection) == [two]
        pool.update_resources([_named(data / "b.txt")])
        with bench.engine.begin() as connection:
            version, files = pool_resources.wanted_by(connection, one)
            assert (version, [f["name"] for f in files]) == (2, ["b.txt"])
            version, files = pool_resources.wanted_by(connection, two)
            assert (version, [f["name"] for f in files]) == (2, ["a.txt", "b.txt"])
            pool_resources.note_synchronized(connection, two, 2)
            assert pool_resources.wanted_by(connection, two) == (0, [])
        assert pool_id == pool.id


def test_jobs_wait_if_they_or_the_pool_say_so(bench: Workbench, data: Path) -> None:
    cases = [(None, True, True), (False, True, False), (True, False, True), (None, False, False)]
    with bench.client() as client:
        for number, (job, pool, waits) in enumerate(cases):
            name = f"herd{number}"
            bench.pool(name, vms=1, wait_for_resources=pool)
            submitted = client.submit(JobSpec("true", wait_for_resources=job), pool=name)
            client.pool(name).update_resources([_named(data / "a.txt")])
            _, vm = bench.live(submitted.id)
            with bench.engine.begin() as connection:
                [row] = starting.to_start(connection, vm)
                assert row["lacks_resources"] is waits
                pool_resources.note_synchronized(connection, vm, 1)
                [row] = starting.to_start(connection, vm)
                assert row["lacks_resources"] is False


def test_too_many_are_refused(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    monkeypatch.setattr(pool_resources, "MAX_RESOURCES", 1)
    with bench.client() as client:
        pool = client.create_pool("sim", resources=[_named(data / "a.txt")])
        with pytest.raises(BadInput, match="resources: 2 files"):
            pool.update_resources([_named(data / "b.txt")])
        assert len(pool.resources) == 1


def test_resources_go_with_their_pool_if_told(bench: Workbench, data: Path) -> None:
    runtime = Runtime(bench.settings)
    folder = bench.storage.folder
    assert folder is not None
    with bench.client() as client:
        pools = [client.create_pool(n, resources=[_named(data / "a.txt")]) for n in ("one", "two")]
        job = client.submit(JobSpec("true", inputs=[_named(data / "a.txt")]), pool="two")
        pools[0].delete(purge_resources=True)
        with bench.engine.begin() as connection:
            ledger.finish_delete(connection, pools[0].id)
        purging.purge_pools(runtime)
        assert [p.name for p in (folder / "pools").iterdir()] == [pools[1].uuid]
        [stored] = client.job_history(job)["spec"]["inputs"]
        assert bench.storage.read(stored["url"]) == b"a"
    runtime.close()


def test_a_flag_that_is_none(bench: Workbench) -> None:
    with pytest.raises(BadInput, match="wait_for_resources"):
        JobSpec("true", wait_for_resources="yes")  # type: ignore[arg-type]


def test_resources_are_found_where_the_storage_was_moved(bench: Workbench, data: Path) -> None:
    from remuda.models.fencing import move_storage

    old = bench.settings.storage.rstrip("/")
    with bench.client() as client:
        pool = client.create_pool("sim", resources=[_named(data / "a.txt"), ("s3://b/x", "x")])
        before = {r["name"]: r["url"] for r in pool.resources}
        with bench.engine.begin() as connection:
            assert move_storage(connection, old, "s3://new/place") == 1
        after = {r["name"]: r["url"] for r in pool.resources}
        assert after == {**before, "a.txt": before["a.txt"].replace(old, "s3://new/place")}
