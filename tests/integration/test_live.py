"""Running jobs in a real system: looked into, signalled, suspended, extended; a shell beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remuda import BadInput, Client, JobSpec, OutputNotAvailable, Refused
from remuda.cli.app import root
from remuda.client import Job, Pool
from tests.database import fresh_database
from tests.integration.looks import account, best_s, in_time
from tests.integration.terminal import on_terminal
from tests.invariants import broken
from tests.system import System, eventually, running_system

MOST_S = 1.0  # what a look at a running job may take


@pytest.fixture(scope="module")
def system(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """One system for all these tests."""
    folder = tmp_path_factory.mktemp("live")
    with (
        fresh_database(server_url, template) as url,
        running_system(folder, database_url=url) as running,
    ):
        yield running
        assert broken(running.query) == {}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[Client]:
    """A client of the system."""
    with system.client() as made:
        yield made


@pytest.fixture(scope="module")
def pool(client: Client) -> Pool:
    """A pool of one VM with four slots."""
    made = client.create_pool("sim", provider="local", slots_per_vm=4, heartbeat_s=1)
    made.submit()
    return made


@pytest.fixture
def run(client: Client, pool: Pool) -> Iterator[Callable[..., Job]]:
    """Submit a shell line and wait until it runs; cancelled at the end."""
    made: list[Job] = []

    def running(line: str, **more: object) -> Job:
        job = client.submit(JobSpec(["sh", "-c", line], **more), pool=pool)  # type: ignore[arg-type]
        made.append(job)
        eventually("it runs", lambda: job.refresh().state == "RUNNING" or job.done)
        return job

    yield running
    client.cancel(made)
    client.wait(made, timeout_s=30)


def remuda(system: System, *words: str) -> Result:
    return CliRunner(env=system.environment).invoke(root, list(words), prog_name="remuda")


def test_looking_into_a_running_job(system: System, run: Callable[..., Job]) -> None:
    """Any file, any offset, both streams, within a second; the files listed."""
    job = run(
        "echo out; echo err >&2; mkdir d; seq 1 100000 > d/numbers; echo x > stdout; sleep 600"
    )
    whole = "".join(f"{i}\n" for i in range(1, 100_001)).encode()
    eventually("it wrote", lambda: job.peek("stdout") and job.files()[-1].size == 2)
    assert job.peek("d/numbers", size=4) == b"1\n2\n"
    assert job.peek("d/numbers", -7) == b"100000\n"
    assert job.peek("./d/numbers", 2, 2) == b"2\n"
    assert job.peek("d/numbers", 10**9) == job.peek("d/numbers", size=0) == b""
    assert job.peek("d/numbers") == whole
    assert (job.peek("stdout"), job.peek("stderr"), job.peek("./stdout")) == (
        b"out\n",
        b"err\n",
        b"x\n",
    )
    assert {(f.name, f.size) for f in job.files()} == {("d/numbers", len(whole)), ("stdout", 2)}
    assert best_s(lambda: job.peek("d/numbers", -10)) < MOST_S
    assert best_s(job.files) < MOST_S
    for name in ("missing", "../runner.json", "/etc/passwd", "d"):
        with pytest.raises(OutputNotAvailable, match="no file"):
            job.peek(name)
    with pytest.raises(BadInput):
        job.peek("a\0b")
    assert remuda(system, "job", "peek", str(job.id), "d/numbers", "--offset", "-7").output == (
        "100000\n"
    )
    listed = json.loads(remuda(system, "job", "files", str(job.id), "--json").output)
    assert listed[0]["name"] == "d/numbers"
    refused = remuda(system, "job", "peek", str(job.id), "missing")
    assert (refused.exit_code, "has no file 'missing'" in refused.output) == (1, True)


def test_looking_into_a_job_that_has_ended(client: Client, pool: Pool, system: System) -> None:
    """Streams and declared outputs are there, others say why not; before it starts: refused."""
    line = "echo out; seq 1 50000; echo kept > kept; echo gone > gone"
    job = client.submit(JobSpec(["sh", "-c", line], outputs=["kept"]), pool=pool)
    client.wait(job, timeout_s=30)
    assert job.peek("stdout", size=4) == b"out\n"
    assert job.peek("stdout", -6) == b"50000\n"
    assert job.peek("stderr") == b""
    assert job.peek("kept") == job.peek("./kept") == b"kept\n"
    assert [(f.name, f.size) for f in job.files()] == [("kept", 5)]
    with pytest.raises(OutputNotAvailable, match="declared as outputs"):
        job.peek("gone")
    assert job.fresh_stdout() == job.stdout
    assert b"".join(job.follow_file("kept", -3)) == b"pt\n"
    with pytest.raises(Refused, match="TERMINATED"):
        job.send_signal("TERM")
    shell = remuda(system, "job", "shell", str(job.id), "--", "true")
    assert (shell.exit_code, "its sandbox is gone" in shell.output) == (1, True)
    waiting = client.submit(JobSpec(["true"], cores=5), pool=pool, allow_pending=True)
    waiting.suspend()
    for call in (lambda: waiting.peek("stdout"), waiting.files):
        with pytest.raises(OutputNotAvailable, match="NEW"):
            call()
    assert waiting.fresh_stdout() == b""
    waiting.cancel()


def test_following_files_and_streams(system: System, run: Callable[..., Job]) -> None:
    """`tail -f` of a file and of stdout: each line within a second, all of it, to the end."""
    line = (
        "i=0; while [ $i -lt 5 ]; do i=$((i+1)); date +%s.%N >> log; date +%s.%N; sleep 0.3; done"
    )
    job = run(line, outputs=["log"])
    late: dict[str, list[float]] = {"log": [], "stdout": []}

    def note(name: str, pieces: Iterator[bytes]) -> None:
        for data in pieces:
            late[name] += [time.time() - float(stamp) for stamp in data.split()]

    threads = [
        threading.Thread(target=note, args=("log", job.follow_file("log"))),
        threading.Thread(target=note, args=("stdout", (data for _, data in job.follow()))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    for name, delays in late.items():
        assert len(delays) == 5, name
        assert min(delays[1:]) < MOST_S, name  # at best: a busy machine holds some up
    done = remuda(system, "job", "peek", "-f", str(job.id), "log")
    assert done.output == job.peek("log").decode()


def test_fresh_output_is_told_once_to_many_readers(run: Callable[..., Job]) -> None:
    """While it runs and after: each byte to one of them."""
    job = run("seq 1 200; sleep 0.4; seq 201 60000; exit 3")
    got: list[bytes] = []

    def read() -> None:
        over = False
        while not over:
            over = job.done
            got.append(job.fresh_stdout())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=30)
        assert not reader.is_alive()
    assert sum(map(len, got)) == len(job.stdout)
    assert sorted(b"".join(got)) == sorted(job.stdout)
    assert job.fresh_stdout() == b""


def test_fresh_output_is_exact_past_the_limit(run: Callable[..., Job], tmp_path: Path) -> None:
    """Nothing is told twice; of what was cut out before it was read it is said, once, how much."""
    ends = (20_000, 400_000, 400_005, 900_000)
    steps = [
        f"while [ ! -e {tmp_path}/{n} ]; do sleep 0.01; done; seq {begin + 1} {end}"
        for n, (begin, end) in enumerate(zip((0, *ends), ends, strict=False))
    ]
    job = run("; ".join(steps), output_limit_bytes=1 << 20)
    whole = "".join(f"{i}\n" for i in range(1, ends[-1] + 1)).encode()
    at, gaps = 0, []
    for n, end in enumerate(ends):
        goal = whole.index(b"\n%d\n" % end) + len(str(end)) + 2
        (tmp_path / str(n)).touch()
        if n == len(ends) - 1:
            job.wait(30)
        else:
            eventually("it wrote", lambda: job.peek("stdout", -len(str(end)) - 1) == b"%d\n" % end)  # noqa: B023
        told = job.fresh_stdout()
        at, missing = account(whole, at, told)
        gaps.append(missing)
        assert at == goal
    assert [len(missing) for missing in gaps] == [0, 1, 0, 1]
    assert job.fresh_stdout() == b""
    assert b"".join(data for _, data in job.follow()) == job.stdout


def test_followed_output_is_exact_past_the_limit(client: Client, pool: Pool) -> None:
    """Who follows gets all, or is told how much he missed."""
    spec = JobSpec(["sh", "-c", "seq 1 700000; sleep 0.3; seq 700001 900000"])
    job = client.submit(replace(spec, output_limit_bytes=1 << 20), pool=pool)
    whole = "".join(f"{i}\n" for i in range(1, 900_001)).encode()
    told = b"".join(data for _, data in job.follow())
    middle = b"\n[remuda: the middle of %d bytes was cut out here]\n" % len(whole)
    if middle not in told:
        assert account(whole, 0, told)[0] == len(whole)
    else:  # it was not heard of before its end
        assert told == job.stdout


def test_signals(system: System, run: Callable[..., Job]) -> None:
    """By name and number, to the command; the command line too."""
    job = run(
        'trap "echo one" USR1; trap "echo two; exit 5" USR2; echo up; while :; do sleep 0.05; done'
    )
    eventually("it listens", lambda: job.peek("stdout") == b"up\n")
    job.send_signal("USR1")
    eventually("it came", lambda: job.peek("stdout") == b"up\none\n")
    for wrong in ("NOPE", 0, 1000):
        with pytest.raises(BadInput):
            job.send_signal(wrong)
    assert remuda(system, "job", "signal", str(job.id), "usr2").exit_code == 0
    assert (job.wait(20).exit_code, job.stdout) == (5, b"up\none\ntwo\n")
    assert system.query("SELECT * FROM calls") == []


def test_suspend_and_resume(system: System, client: Client, run: Callable[..., Job]) -> None:
    """It stands still, walltime too; recorded with its events; many at once by the command line."""
    tick = "while :; do echo x; sleep 0.02; done"
    job = in_time(lambda: run(tick, walltime_s=1.5), Job.suspend)
    job.suspend()
    assert job.state == "STOPPED"
    assert client.explain(job)[0].startswith("It is STOPPED on VM")
    before = job.peek("stdout")
    began = time.monotonic()
    eventually("its walltime would be over", lambda: time.monotonic() - began > 1.6)
    assert job.refresh().state == "STOPPED"
    assert job.peek("stdout") == before
    job.resume()
    assert job.state == "RUNNING"
    eventually("it goes on", lambda: len(job.peek("stdout")) > len(before))
    assert job.wait(20).reason == "WALLTIME"
    moves = [(e["from_state"], e["to_state"]) for e in client.job_history(job)["events"]]
    assert moves.count(("RUNNING", "STOPPED")) == moves.count(("STOPPED", "RUNNING")) == 1

    two = [run(tick), run(tick)]
    ids = [str(each.id) for each in two]
    assert remuda(system, "job", "suspend", *ids).output == "suspended 2 jobs\n"
    assert {each.refresh().state for each in two} == {"STOPPED"}
    two[0].cancel()
    assert two[0].wait(20).reason == "CANCELLED"
    assert remuda(system, "job", "resume", ids[1]).output == "resumed 1 job\n"
    assert two[1].refresh().state == "RUNNING"
    with pytest.raises(Refused, match="TERMINATED"):
        two[0].resume()


def test_waiting_jobs_are_held(client: Client, pool: Pool, run: Callable[..., Job]) -> None:
    """Those that wait in the queue, or on a VM behind another; resumed they run."""
    first = run("sleep 300", cores=4)
    behind = client.submit_array(JobSpec(["true"]), 6, pool=pool)
    client.suspend(behind)
    first.cancel()
    after = client.submit(JobSpec(["true"]), pool=pool)
    assert after.wait(20).reason == "OK"
    assert {job.refresh().state for job in behind} == {"NEW"}
    assert "It is held" in client.explain(behind[0])[0]
    assert client.resume(behind) == 6
    client.wait(behind, timeout_s=20)
    assert {job.reason for job in behind} == {"OK"}


def test_nobody_waits_behind_a_suspended_job(system: System, client: Client) -> None:
    """What was placed ahead behind it, for it was to be short, is taken back and goes elsewhere."""
    narrow = client.create_pool("narrow", provider="local", slots_per_vm=1, heartbeat_s=1)
    narrow.submit()
    line = "test {index} != 4 || sleep 100"
    jobs = client.submit_array(JobSpec(["sh", "-c", line]), 9, pool=narrow)
    client.wait(jobs[:4], timeout_s=30)
    eventually("it runs", lambda: jobs[4].refresh().state == "RUNNING")
    jobs[4].suspend()
    recalled = "SELECT DISTINCT job_id FROM attempts WHERE message = 'recalled'"
    behind = [job for job in jobs[5:] if job.refresh().state == "SUBMITTED"]
    assert behind
    eventually("all are taken back", lambda: len(system.query(recalled)) >= len(behind))
    assert {job.refresh().state for job in jobs[5:]} == {"NEW"}
    narrow.setup_elastic(2, 2, resize_period=1)
    client.wait(jobs[5:], timeout_s=30)
    assert jobs[4].refresh().state == "STOPPED"
    jobs[4].cancel()
    jobs[4].wait(20)
    narrow.close()


def test_extending_the_walltime(
    system: System, client: Client, run: Callable[..., Job], tmp_path: Path
) -> None:
    """A running job lives longer; what cannot be is refused and changes nothing."""
    line = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo done"
    job = in_time(lambda: run(line, walltime_s=1), lambda one: one.extend_walltime(30))
    began = time.monotonic()
    done = remuda(system, "job", "extend", str(job.id), "--by", "30s")
    assert done.output == f"job {job.id} may run for 1m\n"
    with pytest.raises(Refused, match="more than 5 s"):
        job.extend_walltime(5)
    eventually("its first walltime is over", lambda: time.monotonic() - began > 1.2)
    (tmp_path / "go").touch()
    assert (job.wait(20).reason, job.info()["walltime_s"]) == ("OK", 60.0)
    with pytest.raises(Refused, match="TERMINATED"):
        job.extend_walltime(100)
    endless = run("sleep 300")
    with pytest.raises(Refused, match="no limit"):
        endless.extend_walltime(100)


def test_every_attempts_logs_stay(client: Client, pool: Pool, run: Callable[..., Job]) -> None:
    """Of retried ones, of those over their time, of cancelled ones; also what is long."""
    long = "seq 1 30000"
    whole = "".join(f"{i}\n" for i in range(1, 30_001)).encode()
    job = client.submit(JobSpec(["sh", "-c", f"{long}; exit 1"], retries=1), pool=pool)
    late = client.submit(JobSpec(["sh", "-c", f"{long}; sleep 300"], walltime_s=3), pool=pool)
    cancelled = run(f"{long}; sleep 300")
    eventually("it wrote", lambda: len(cancelled.peek("stdout")) == len(whole))
    cancelled.cancel()
    client.wait([job, late, cancelled], timeout_s=30)
    assert [job.reason, late.reason, cancelled.reason] == ["NONZERO", "WALLTIME", "CANCELLED"]
    for number in (1, 2):
        assert b"".join(job.attempt_output(number)) == whole
    assert late.stdout == cancelled.stdout == whole
    with pytest.raises(OutputNotAvailable, match="no attempt 3"):
        next(job.attempt_output(3))


def test_a_shell_beside_a_job(system: System, run: Callable[..., Job]) -> None:
    """A command's exit code and bytes; an interactive one on a terminal; the job's environment."""
    job = run("echo here > file; sleep 600", environment={"COLOUR": "blue"})
    eventually("it wrote", lambda: [f.name for f in job.files()] == ["file"])
    line = [sys.executable, "-m", "remuda", "job", "shell", str(job.id)]
    asked = 'cat file -; echo "$COLOUR $REMUDA_JOB_ID"; exit 7'
    done = subprocess.run(
        [*line, "--", "sh", "-c", asked],
        env=system.environment,
        input=b"in\n",
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (7, f"here\nin\nblue {job.id}\n".encode())
    env = {**system.environment, "SHELL": "/bin/sh", "TERM": "dumb"}
    typed = "cat file; tty -s && echo $((40+2)); exit 3\n"
    assert on_terminal(line, env, typed, wanted=("here", "42")) == 3


def test_calls_survive_the_worker(system: System, run: Callable[..., Job], tmp_path: Path) -> None:
    """Asked while no worker lives, answered when one does again; a suspended job stays so."""
    job = run("while :; do sleep 0.05; done")
    job.suspend()
    system.kill("worker")
    told: list[bytes] = []
    asker = threading.Thread(target=lambda: told.append(job.peek("stdout")))
    asker.start()
    system.start_worker()
    asker.join(timeout=30)
    assert told == [b""]
    assert job.refresh().state == "STOPPED"
    job.resume()
    assert job.state == "RUNNING"
