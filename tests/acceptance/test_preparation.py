"""A pool's preparation command: run once on each VM before it takes jobs, its failure told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda import Client, JobSpec
from tests.system import System, eventually

FORCED = {"*": {"PROXY": "all", "LICENCE": "none"}, "quick": {"LICENCE": "its"}}


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system, whose workers are told of an environment for all jobs."""
    made = System(tmp_path, database_url=database_url, broker_url="filesystem://")
    made.environment["REMUDA_FORCED_CONSTANTS"] = json.dumps(FORCED)
    try:
        made.start_worker()
        made.start_beat()
        yield made
    finally:
        made.close()


def prepared_pool(client: Client, name: str, script: str, **more: Any) -> None:
    """Submit a pool of one VM that is prepared by a shell script."""
    pool = client.create_pool(
        name, provider="local", slots_per_vm=2, preparation=["sh", "-c", script], **more
    )
    pool.submit()


def vms(system: System, name: str) -> list[dict[str, Any]]:
    """Return the rows of the VMs of a pool."""
    return system.query(
        """SELECT v.* FROM vms v JOIN pools p ON p.id = v.pool_id WHERE p.name = %(name)s
           ORDER BY v.id""",
        name=name,
    )


def test_vms_are_prepared_before_they_take_jobs(system: System, tmp_path: Path) -> None:
    """One that is quick, and one that takes longer than anybody waits for."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with system.client() as client:
        for name, pause in (("quick", ""), ("slow", "sleep 3;")):
            tell = f'{pause} echo "$COLOUR of $REMUDA_POOL, $PROXY"; echo hm >&2; '
            script = f"{tell}mktemp {marks}/{name}.XXXXXX"
            prepared_pool(client, name, script, constants={"COLOUR": "red", "PROXY": "x"})
        look = "ls {marks}/{name}.*; echo $COLOUR; echo $PROXY $LICENCE"
        mine = {"PROXY": "mine", "LICENCE": "mine"}
        jobs = {
            name: client.submit(
                JobSpec(look.format(marks=marks, name=name), shell=True, environment=mine),
                pool=name,
            )
            for name in ("quick", "slow")
        }
        for name, job in jobs.items():
            [mark, colour, *forced] = job.result(timeout_s=60).stdout.decode().split()
            assert (Path(mark).parent, colour) == (marks, "red")
            assert forced == ["all", "its" if name == "quick" else "none"]  # whatever the job says
            [vm] = vms(system, name)
            result = vm["preparation"]
            assert (result["exit_code"], result["timed_out"]) == (0, False)
            assert f"red of {name}, all\n" in result["output"]
            pool = client.pool(name)
            assert (
                pool.fresh_stdout(vm["id"])
                == pool.stdout()
                == (f"red of {name}, all\n{mark}\n".encode())
            )
            assert (pool.stderr(vm["name"]), pool.fresh_stdout()) == (b"hm\n", b"")
            assert vm["facts"]["cores"] > 0
        assert len(list(marks.iterdir())) == 2  # once each
        path = system.query(
            """SELECT to_state FROM events WHERE kind = 'vm' AND subject_id = %(id)s ORDER BY id""",
            id=vm["id"],
        )
        assert [row["to_state"] for row in path] == [
            "NEW",
            "SUBMITTED",
            "WAIT_SSH_CONTEXT",
            "CONTEXTUALIZING",
            "RUNNING",
        ]


@pytest.mark.parametrize(
    ("script", "timeout_s", "told"),
    [
        ("echo no such package >&2; exit 100", 60, "exit code 100: no such package"),
        ("sleep 60", 0.5, "took longer than 0.5 s"),
    ],
)
def test_a_vm_that_cannot_be_prepared_is_given_up(
    system: System, script: str, timeout_s: float, told: str
) -> None:
    """It ends as ERROR with the output kept; the pool backs off and says why."""
    with system.client() as client:
        prepared_pool(client, "bad", script, preparation_timeout_s=timeout_s)
        job = client.submit(JobSpec("true"), pool="bad")
        [vm] = eventually(
            "a VM was given up", lambda: [v for v in vms(system, "bad") if v["error"]][:1]
        )
        assert told in vm["error"]
        assert vm["preparation"]["exit_code"] != 0
        if "no such" in told:
            assert client.pool("bad").stderr(vm["id"]) == b"no such package\n"
        eventually("the pool says so", lambda: told in (client.pool("bad").info()["message"] or ""))
        assert job.refresh().state == "NEW"
        eventually(
            "it is gone", lambda: all(v["state"] == "HALTED" for v in vms(system, "bad")[:1])
        )
