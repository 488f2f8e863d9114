"""`remuda acquire` and its kin as a CI system uses them, on a whole system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client, JobSpec
from tests.system import System, eventually, running_system


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system, one worker and one beat."""
    with running_system(tmp_path, database_url=database_url, broker_url="filesystem://") as running:
        yield running


def _start(system: System, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "remuda", *words],
        env=system.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(system: System, *words: str) -> tuple[int, str, str]:
    process = _start(system, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_as_a_ci_system_uses_it(system: System) -> None:
    """The pool grows from nothing for it; exit codes, signals and lost leases end as documented."""
    with system.client() as client:
        pool = client.create_pool("ci", slots_per_vm=2, isolation="sandbox", heartbeat_s=1)
        pool.setup_elastic(maximum_total_slots=2, minimum_idle_time_seconds=60, resize_period=1)
        pool.submit()
        base = ("acquire", "--pool", "ci", "--sandbox", "s", "--timeout", "50")
        show = "echo $REMUDA_VM_NAME $REMUDA_LEASE_ID; cd $REMUDA_VM_HOME && exit 7"
        code, out, err = _run(system, *base, "--", "sh", "-c", show)
        assert (code, err) == (7, "")
        name = out.split()[0]
        _is_free(client)
        assert _run(system, *base, "--", "sh", "-c", "kill -9 $$")[0] == 137
        assert _run(system, *base, "--", "no-such-command")[0] == 127
        assert _run(system, "acquire", "--pool", "nowhere", "--", "true")[0] == 125
        _is_free(client)
        _signals_are_passed_on(system, client, base)
        _a_lost_lease_ends_the_command(system, client, base)
        _without_a_command(system, client)
        assert _run(system, "vm", "ssh", name, "--", "sh", "-c", "pwd; exit 3")[0] == 3
        # Jobs and leases share the VM.
        with client.acquire(pools=["ci"], sandbox="s", slots=None):
            job = client.submit(JobSpec(["true"], sandbox="s"), pool=pool)
            assert "slots" in " ".join(client.explain(job))
        job.result(timeout_s=30)


def _is_free(client: Client) -> None:
    assert client.leases() == []


def _signals_are_passed_on(system: System, client: Client, base: tuple[str, ...]) -> None:
    trap = "trap 'echo told; exit 9' TERM; echo on; while :; do sleep 0.1; done"
    process = _start(system, *base, "--", "sh", "-c", trap)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "told\n"
    assert process.returncode == 9
    _is_free(client)
    with client.acquire(pools=["ci"], sandbox="s", slots=None):
        waiting = _start(system, *base, "--", "true")
        eventually("it waits", client.lease_requests)
        waiting.send_signal(signal.SIGTERM)
        waiting.communicate(timeout=30)
        assert waiting.returncode == 143
        assert client.lease_requests() == []


def _a_lost_lease_ends_the_command(system: System, client: Client, base: tuple[str, ...]) -> None:
    process = _start(system, *base, "--", "sh", "-c", "echo on; exec sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    [lease] = client.leases()
    assert _run(system, "lease", "revoke", str(lease["id"]))[0] == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 124
    assert "was lost" in err


def _without_a_command(system: System, client: Client) -> None:
    code, out, _ = _run(system, "acquire", "--pool", "ci", "--sandbox", "s", "--json")
    assert code == 0
    [lease] = json.loads(out)
    number, token = str(lease["id"]), lease["token"]
    assert lease["vm"]["details"]["home"]
    assert os.path.isdir(lease["vm"]["details"]["home"])
    [listed] = json.loads(_run(system, "lease", "list", "--json")[1])
    assert listed["id"] == lease["id"]
    assert token not in str(listed)
    assert _run(system, "lease", "renew", number, "--token", token, "--ttl", "1h")[0] == 0
    wrong = "00000000-0000-0000-0000-000000000000"
    code, _, err = _run(system, "lease", "release", number, "--token", wrong)
    assert (code, "left alone" in err) == (1, True)
    assert _run(system, "lease", "release", number, "--token", token)[0] == 0
    assert _run(system, "lease", "release", number, "--token", token)[0] == 0
    _is_free(client)
