"""A whole system on two hosts reached by SSH: jobs with files, a runner killed, hosts left clean."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import BadInput, JobSpec
from tests.contract.test_providers import living
from tests.invariants import broken
from tests.sshd import Sshd, two_sshd
from tests.system import System, eventually, running_system

__all__ = ["two_sshd"]


@pytest.fixture
def system(tmp_path: Path, database_url: str, two_sshd: list[Sshd]) -> Iterator[System]:
    """A running system that ends before its hosts do."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


def pids(system: System, hosts: list[Sshd]) -> list[int]:
    """Return the process ids of the runners on the hosts."""
    files = [path for host in hosts for path in host.home.glob(".remuda/vm-*/runner.pid")]
    return [int(path.read_text().split()[0]) for path in files]


def test_jobs_run_on_hosts(system: System, two_sshd: list[Sshd], tmp_path: Path) -> None:
    """Files go there and back, a killed runner comes again, and nothing stays on the hosts."""
    (tmp_path / "in").write_text("the input\n")
    settings = {"hosts": [host.entry(cores=2, labels=["lab"]) for host in two_sshd]}
    with system.client() as client:
        pool = client.create_pool(
            "lab",
            provider="static",
            settings=settings,
            slots_per_vm=2,
            instance_count=2,
            heartbeat_s=1,
        )
        pool.submit()
        spec = JobSpec(
            ["sh", "-c", "cat in > out; echo $REMUDA_VM {index}"],
            inputs=[(str(tmp_path / "in"), "in")],
            outputs=["out"],
            output_dir=str(tmp_path / "results" / "{index}"),
        )
        jobs = client.submit_array(spec, 40, pool=pool)
        results = [job.result(timeout_s=60) for job in jobs]
        assert {path.read_text() for r in results for path in r.outputs.values()} == {"the input\n"}
        assert [r.stdout.split()[1] for r in results] == [b"%d" % i for i in range(40)]
        eventually("both hosts are taken", lambda: len(pids(system, two_sshd)) == 2)

        quick = client.submit_array(JobSpec(["sleep", "0.1"]), 60, pool=pool)
        eventually("some ran", lambda: client.counts(pool=pool).get("TERMINATED", 0) > 45)
        os.kill(pids(system, two_sshd)[0], signal.SIGKILL)
        client.wait(quick, timeout_s=90)
        assert {job.reason for job in client.jobs(pool=pool)} == {"OK"}
        assert broken(system.query) == {}

        pool.close()
        pool.wait_closed(timeout_s=60)
        assert [list(host.home.iterdir()) for host in two_sshd] == [[], []]
        assert [living(host.home) for host in two_sshd] == [[], []]


def test_a_host_that_has_less_than_its_entry_says_is_an_error(
    system: System, two_sshd: list[Sshd]
) -> None:
    """Its pool says why; slots are no promise: where the entry says nothing they may be any number."""
    honest, liar = two_sshd
    with system.client() as client:
        pools = {
            name: client.create_pool(
                name,
                provider="static",
                settings={"hosts": [host]},
                slots_per_vm=slots,
                instance_count=1,
            )
            for name, host, slots in (
                ("many", honest.entry(), 64),
                ("liar", liar.entry(cores=4096), 1),
            )
        }
        for pool in pools.values():
            pool.submit()
        told = "cores, not the 4096 its provider says"
        eventually(
            "the pool says so", lambda: told in str(client.pool("liar").message), timeout_s=60
        )
        [vm, *_] = system.query(
            """SELECT v.*, (SELECT array_agg(e.to_state ORDER BY e.id) FROM events e
                 WHERE e.kind = 'vm' AND e.subject_id = v.id) AS path
               FROM vms v JOIN pools p ON p.id = v.pool_id WHERE p.name = 'liar' ORDER BY v.id"""
        )
        assert "NotAsPromised" in vm["error"]
        assert told in vm["error"]
        assert "ERROR" in vm["path"]
        assert "RUNNING" not in vm["path"]
        assert vm["facts"]["promised"] == {"cores": 4096}
        assert 0 < vm["facts"]["cores"] < 4096
        jobs = client.submit_array(JobSpec(["sleep", "0.2"]), 64, pool=pools["many"])
        assert {job.result(timeout_s=60).exit_code for job in jobs} == {0}
        [one] = client.vms(pool=pools["many"])
        assert one.slots == 64
        for pool in pools.values():
            pool.close()
            pool.wait_closed(timeout_s=60)


def test_wrong_hosts_are_refused_when_the_pool_is_made(system: System) -> None:
    """The message names the key; nothing is made."""
    with system.client() as client:
        with pytest.raises(BadInput, match=r"hosts\[0\]\.port"):
            client.create_pool(
                "lab", provider="static", settings={"hosts": [{"address": "a", "port": "x"}]}
            )
        assert client.pools(all=True) == []


def test_the_command_line_reads_a_file_of_hosts(
    system: System, two_sshd: list[Sshd], tmp_path: Path
) -> None:
    """TOML and JSON; the backend is ssh without saying so."""
    from click.testing import CliRunner

    from remuda.cli.pool import create, show

    lines = [f"{key} = {json.dumps(value)}" for key, value in two_sshd[0].entry().items()]
    (tmp_path / "lab.toml").write_text("[[hosts]]\n" + "\n".join(lines) + "\n")
    (tmp_path / "lab.json").write_text(json.dumps([two_sshd[1].entry()]))
    (tmp_path / "bad.json").write_text('[{"address": "a", "colour": "red"}]')
    runner = CliRunner(env=system.environment)
    for kind in ("toml", "json"):
        words = [f"by-{kind}", "--provider", "static", "--hosts", str(tmp_path / f"lab.{kind}")]
        done = runner.invoke(create, [*words, "--no-submit"])
        assert done.exit_code == 0, done.output
        shown = runner.invoke(show, [f"by-{kind}", "--json"])
        (record,) = json.loads(shown.output)
        assert (record["provider"], record["backend"]) == ("static", "ssh")
        assert record["settings"]["hosts"][0]["user"] == two_sshd[0].user
    words = ["bad", "--provider", "static", "--hosts", str(tmp_path / "bad.json")]
    done = runner.invoke(create, words)
    assert (done.exit_code, "colour" in done.output) == (2, True)


def test_a_pool_whose_host_is_refused_can_be_closed(system: System, two_sshd: list[Sshd]) -> None:
    """Nothing was ever claimed there, so nothing has to be confirmed by who is not believed."""
    wrong = two_sshd[0].entry(cores=2, host_key=two_sshd[1].host_key)
    with system.client() as client:
        pool = client.create_pool(
            "refused", provider="static", settings={"hosts": [wrong]}, instance_count=1
        )
        pool.submit()

        def told() -> bool:
            return "HOST KEY CHANGED" in (client.pool("refused").info()["message"] or "")

        eventually("it says why", told)
        pool.close()
        pool.wait_closed(timeout_s=30)
    ends = system.query("SELECT DISTINCT state, provider_id FROM vms")
    assert ends == [{"state": "HALTED", "provider_id": None}]
