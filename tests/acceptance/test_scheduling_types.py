"""A flex pool makes room for others' work: as processes, as its users see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda import JobSpec
from tests.invariants import broken
from tests.sshd import Sshd, two_sshd
from tests.system import System, eventually, running_system

__all__ = ["two_sshd"]


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system in which pools may have two slots together."""
    with running_system(
        tmp_path, database_url=database_url, max_total_slots="2", preemption_grace_s="20"
    ) as running:
        yield running


# It tells that it runs and that it was told to end; while `wait` is there it never comes to its end.
WORK = """
trap 'echo told >> {log}; exit 1' TERM
echo run >> {log}
while [ -e {wait} ]; do sleep 0.05; done
"""


def test_flex_work_makes_room_and_is_run_again(system: System, tmp_path: Path) -> None:
    log, wait = tmp_path / "log", tmp_path / "wait"
    log.touch()
    wait.touch()
    with system.client() as client:
        elastic: dict[str, Any] = {
            "is_elastic": True,
            "elastic_maximum_slots": 2,
            "elastic_resize_period_s": 1,
        }
        client.create_pool("cheap", scheduling_type="flex", **elastic).submit()
        client.create_pool("urgent", **elastic).submit()
        script = WORK.format(log=log, wait=wait)
        long = client.submit_many([JobSpec(script, shell=True)] * 2, pool="cheap")
        eventually("both run", lambda: log.read_text().count("run") == 2)
        quick = client.submit(JobSpec("true"), pool="urgent")
        assert quick.wait(60).reason == "OK"
        assert log.read_text().count("told") == 1  # one made room, by the signal it can catch
        [gone] = [job for job in long if job.attempts > 1 or job.refresh().state != "RUNNING"]
        said = " ".join(client.explain(gone))
        assert "It was preempted once" in said
        assert "pool urgent needs its place" in said
        wait.unlink()
        for job in long:
            assert job.wait(60).reason == "OK"
        tries = system.query(
            "SELECT reason FROM attempts WHERE job_id = %(id)s ORDER BY id", id=gone.id
        )
        assert [row["reason"] for row in tries] == ["PREEMPTED", "OK"]
        [record] = system.query("SELECT failures, losses FROM jobs WHERE id = %(id)s", id=gone.id)
        assert record == {"failures": 0, "losses": 0}
        for pool in client.pools():
            pool.close()
            pool.wait_closed(60)
    assert broken(system.query) == {}


def test_of_hosts_as_well_and_those_of_a_group_are_not_shared(
    tmp_path: Path, database_url: str, two_sshd: list[Sshd]
) -> None:
    log, wait = tmp_path / "log", tmp_path / "wait"
    log.touch()
    wait.touch()
    shared, lab = two_sshd
    hosts = {"hosts": [shared.entry(), lab.entry(group="lab")]}
    more: dict[str, Any] = {
        **{"provider": "static", "settings": hosts, "heartbeat_s": 1},
        **{"is_elastic": True, "elastic_maximum_slots": 2, "elastic_resize_period_s": 1},
    }
    with running_system(tmp_path, database_url=database_url) as system, system.client() as client:
        client.create_pool("cheap", scheduling_type="flex", **more).submit()
        client.create_pool("urgent", **more).submit()
        script = WORK.format(log=log, wait=wait)
        long = client.submit(JobSpec(script, shell=True), pool="cheap")
        eventually("it runs", lambda: log.read_text().count("run") == 1, timeout_s=60)
        quick = client.submit(JobSpec("true"), pool="urgent")
        assert quick.wait(90).reason == "OK"
        assert log.read_text().count("told") == 1
        tries = "SELECT reason, vm_id FROM attempts WHERE job_id = %(id)s ORDER BY id"
        assert system.query(tries, id=long.id)[0]["reason"] == "PREEMPTED"
        assert list(lab.home.iterdir()) == []  # free all the time, and for neither of them
        reserved: dict[str, Any] = {"scheduling_type": "reserved", "reserved_group": "lab"}
        mine = client.create_pool("lab", **{**more, "is_elastic": False, **reserved}).submit()
        assert client.submit(JobSpec("true"), pool=mine).wait(90).reason == "OK"
        wait.unlink()
        client.pool("urgent").close()
        assert long.wait(90).reason == "OK"
        for pool in client.pools():
            pool.close()
        for pool in client.pools(all=True):
            pool.wait_closed(60)
        assert broken(system.query) == {}
