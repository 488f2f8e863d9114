"""A shell in the sandbox of a job on a host reached by SSH: by OpenSSH's client, and without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client, JobSpec
from remuda.client import Job
from remuda.hosts import Host
from remuda.workers import shells
from tests.integration.terminal import on_terminal
from tests.sshd import Sshd, keygen, sshd
from tests.system import System, eventually, running_system

__all__ = ["sshd"]


@pytest.fixture
def system(tmp_path: Path, database_url: str, sshd: Sshd) -> Iterator[System]:
    """A running system that ends before its host does."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


@pytest.fixture
def job(system: System, sshd: Sshd) -> Iterator[Job]:
    """A job that runs on the host."""
    with system.client() as client:
        settings = {"hosts": [sshd.entry(cores=1)]}
        client.create_pool("lab", provider="static", settings=settings).submit()
        spec = JobSpec(["sh", "-c", "echo here > file; sleep 600"], environment={"COLOUR": "blue"})
        made = client.submit(spec, pool="lab")
        eventually("it runs", lambda: made.refresh().state == "RUNNING")
        eventually("it wrote", lambda: [f.name for f in made.files()] == ["file"])
        yield made
        _close(client, made)


def _close(client: Client, job: Job) -> None:
    job.cancel()
    job.wait(20)
    pool = client.pool("lab")
    pool.close()
    pool.wait_closed(timeout_s=30)


def test_a_shell_on_a_host(system: System, job: Job, sshd: Sshd) -> None:
    """Exit codes and bytes pass; a terminal is one; a changed host key is refused."""
    line = [sys.executable, "-m", "remuda", "job", "shell", str(job.id)]
    asked = 'cat file -; echo "$COLOUR $REMUDA_JOB_ID"; exit 7'
    without = {**system.environment, "PATH": ""}
    for env in (system.environment, without):
        done = subprocess.run(
            [*line, "--", "sh", "-c", asked],
            env=env,
            input=b"in\n",
            capture_output=True,
            timeout=30,
        )
        wanted = (7, f"here\nin\nblue {job.id}\n".encode(), b"")
        assert (done.returncode, done.stdout, done.stderr) == wanted
        typed = "cat file; tty -s && echo $((40+2)); exit 3\n"
        assert on_terminal(line, {**env, "TERM": "dumb"}, typed, wanted=("here", "42")) == 3
    keys = {path: path.read_bytes() for path in sshd.folder.glob("host_key*")}
    sshd.kill()
    keygen(sshd.folder / "host_key")
    sshd.start()
    for env in (system.environment, without):
        done = subprocess.run([*line, "--", "true"], env=env, capture_output=True, timeout=30)
        assert done.returncode not in (0, 7)
        assert b"key" in done.stderr.lower()
    sshd.kill()
    for path, content in keys.items():
        path.write_bytes(content)
    sshd.start()


def test_the_way_is_the_workers() -> None:
    """Port, user, key and jump hosts are passed on; no secret and no token of ssh among them."""
    host = Host(
        "10.0.0.5",
        port=2222,
        user="ann",
        key_file="/keys/100%/id",
        host_key="ssh-ed25519 AAAA",
        jump="bob@gate:22,inner",
    )
    login = shells.ssh_command(host, "", known_hosts="/tmp/known", terminal=True)
    assert login[-2:] == ["--", "10.0.0.5"]
    line = shells.ssh_command(host, "true", known_hosts="/tmp/known", terminal=False)
    assert line[-3:] == ["--", "10.0.0.5", "true"]
    assert line[line.index("-p") + 1] == "2222"
    assert line[line.index("-l") + 1] == "ann"
    assert line[line.index("-i") + 1] == "/keys/100%%/id"
    assert "StrictHostKeyChecking=yes" in line
    assert "HostKeyAlias=remuda-pinned" in line
    (proxy,) = [word for word in line if word.startswith("ProxyCommand=")]
    assert proxy.endswith("-W '[%h]:%p' -- inner")
    assert "-l bob" in proxy
    assert "[%%h]:%%p" in proxy


def test_a_leased_host_is_reached_as_its_pool_says(system: System, sshd: Sshd) -> None:
    """A lease tells user, port, key and pinned host key, and `vm ssh` goes by them."""
    entry = sshd.entry(cores=1)
    with system.client() as client:
        pool = client.create_pool("lab", provider="static", settings={"hosts": [entry]})
        pool.submit()
        with client.acquire(pools=["lab"], timeout=50) as lease:
            told = {name: getattr(lease.vm, name) for name in ("address", "port", "key_file")}
            assert told == {name: entry[name] for name in told}
            assert lease.vm.host_key == entry["host_key"]
            line = [sys.executable, "-m", "remuda", "vm", "ssh", lease.vm.name]
            for env in (system.environment, {**system.environment, "PATH": ""}):
                done = subprocess.run(
                    [*line, "--", "sh", "-c", "cat; exit 5"],
                    env=env,
                    input=b"hello",
                    capture_output=True,
                    check=False,
                )
                assert (done.returncode, done.stdout) == (5, b"hello")
        pool.close()
        pool.wait_closed(timeout_s=30)
