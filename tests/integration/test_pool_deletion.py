"""The end of pools: by hand, by time, for want of room; and what goes with them."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine

from remuda import JobSpec, Refused
from remuda.errors import PoolLimitReached
from remuda.models import ledger, upkeep
from remuda.models.database import rows
from remuda.tasks import purging
from remuda.tasks.runtime import Runtime
from tests.integration.builders import age, assert_chains, together
from tests.integration.workbench import Workbench


def _close(engine: Engine, name: str) -> None:
    """Let a pool that is closing be closed, and its VMs gone."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE vms SET state = 'STOPPING' FROM pools p"
            f" WHERE p.id = pool_id AND p.name = '{name}' AND vms.state <> 'HALTED'"
        )
        connection.exec_driver_sql(
            "UPDATE vms SET state = 'HALTED', halted_at = now() FROM pools p"
            f" WHERE p.id = pool_id AND p.name = '{name}' AND vms.state <> 'HALTED'"
        )
        connection.exec_driver_sql(
            "UPDATE pools SET state = 'CLOSED', ended_at = now()"
            f" WHERE name = '{name}' AND state = 'CLOSING'"
        )


def _expire(connection: Connection) -> None:
    upkeep.expire(connection, heartbeat_retention_s=1e9, event_retention_s=1e9)


def test_a_pool_is_deleted_when_its_time_after_the_end_is_over(bench: Workbench) -> None:
    with bench.client() as client:
        pool = client.create_pool("sim", completion_ttl="01:00:00").submit()
        forever = client.create_pool("other").submit()
        with bench.engine.begin() as connection:
            age(connection, "pools", [pool.id, forever.id], "created_at", 7200)
            _expire(connection)
        assert pool.update().state == "SUBMITTED"  # it counts from the end
        for one in (pool, forever):
            one.close()
            _close(bench.engine, one.name)
        with bench.engine.begin() as connection:
            age(connection, "pools", [pool.id, forever.id], "ended_at", 3590)
            _expire(connection)
        assert pool.update().state == "CLOSED"
        with bench.engine.begin() as connection:
            age(connection, "pools", [pool.id, forever.id], "ended_at", 11)
            _expire(connection)
            _expire(connection)
        assert pool.update().state == "PENDING_DELETE"
        assert forever.update().state == "CLOSED"
        with bench.engine.begin() as connection:
            assert ledger.finish_delete(connection, pool.id)
            assert_chains(connection)


def test_an_owner_has_room_for_so_many_pools(bench: Workbench) -> None:
    with bench.client() as client:
        client.set_owner("alice", max_pools=3)
        for name, auto in (("keep", False), ("old", True), ("new", True)):
            client.create_pool(name, auto_delete=auto).submit().close()
            _close(bench.engine, name)
        client.create_pool("four")
        assert {p.name for p in client.pools(all=True) if p.state != "PENDING_DELETE"} == {
            "keep", "new", "four"}  # fmt: skip
        client.create_pool("five")
        with pytest.raises(PoolLimitReached, match="maximum number of pools reached: 3") as caught:
            client.create_pool("six")
        assert isinstance(caught.value, Refused)
        assert not [p for p in client.pools(all=True) if p.name == "six"]
        client.set_owner("alice", max_pools=None)
        client.create_pool("six")
        [alice] = [o for o in client.owners() if o["name"] == "alice"]
        assert (alice["pools"], alice["max_pools"]) == (4, None)


def test_the_last_place_is_taken_once(bench: Workbench) -> None:
    def take(name: str) -> bool:
        with bench.client() as client:
            try:
                client.create_pool(name)
            except PoolLimitReached:
                return False
            return True

    with bench.client() as client:
        client.set_owner("alice", max_pools=1)
    assert sorted(together(lambda: take("a"), lambda: take("b"), lambda: take("c"))) == [
        False, False, True]  # fmt: skip


def test_results_go_with_a_pool_if_told(bench: Workbench) -> None:
    bench.pool(vms=1)
    bench.pool("other", vms=1)
    runtime = Runtime(bench.settings)
    with bench.client() as client:
        jobs = []
        for name in ("herd", "herd", "herd", "other"):
            jobs.append(job := client.submit(JobSpec("true"), pool=name))
            attempt, _ = bench.live(job.id)
            assert attempt == job.id  # so their files lie where the worker puts them
            bench.end(job.id, files={"a.txt": b"x"}, stored_stdout=b"long")
        other = jobs.pop()
        folder = bench.storage.folder
        assert folder is not None
        assert len(list((folder / "jobs").iterdir())) == 4
        pool = client.pool("herd")
        pool.close()
        _close(bench.engine, "herd")
        pool.delete()
        assert purging.purge_pools(runtime) == 0  # nothing was to go with it
        pool.delete(purge_results=True)
        assert purging.purge_pools(runtime) == 0  # its machines are not confirmed gone
        with bench.engine.begin() as connection:
            assert ledger.finish_delete(connection, pool.id)
        assert purging.purge_pools(runtime) == 3
        assert purging.purge_pools(runtime) == 0
        assert [path.name for path in (folder / "jobs").iterdir()] == [str(other.id)]
        assert client.job(other.id).stdout == b"long"
        assert client.job_history(jobs[0])["outputs"] == []
        with bench.engine.begin() as connection:
            [row] = rows(connection, "SELECT purged_at FROM pools WHERE name = 'herd'")
            assert row["purged_at"] is not None
    runtime.close()


def test_a_storage_in_trouble_keeps_the_rows(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remuda.errors import DataStagingError
    from remuda.storage import Storage

    bench.pool(vms=1)
    runtime = Runtime(bench.settings)
    with bench.client() as client:
        job = client.submit(JobSpec("true"), pool="herd")
        bench.end(job.id, files={"a.txt": b"x"})
        pool = client.pool("herd")
        pool.close()
        _close(bench.engine, "herd")
        pool.delete(purge_results=True)
        with bench.engine.begin() as connection:
            assert ledger.finish_delete(connection, pool.id)

        def fail(self: Storage, key: str) -> None:
            raise DataStagingError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "remove", fail)
            assert purging.purge_pools(runtime) == 0
        assert client.job_history(job)["outputs"]
        assert purging.purge_pools(runtime) == 1
        assert not client.job_history(job)["outputs"]
    runtime.close()
