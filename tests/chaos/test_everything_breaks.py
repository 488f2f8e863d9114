"""Jobs of every kind on local VMs and two hosts while workers, runners, links and the database fail."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remuda import ANY_OUTPUT, After, Client, Job, JobSpec, RemudaError
from remuda.client import Pool
from remuda.retries import RetryPolicy, RetryRule
from tests.invariants import broken
from tests.namespaces import Namespace, namespace
from tests.sshd import Sshd, running_sshd
from tests.system import System, eventually

MIB = 1 << 20
POOLS = ["sim", "lab"]
# Each start of a command leaves one line outside the system's reach; then it does what it is told.
MARK = """
import os, sys, time
line = f"{os.environ['REMUDA_JOB_ID']} {os.environ['REMUDA_ATTEMPT_ID']}\\n"
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
os.write(fd, line.encode())
os.close(fd)
print("up", flush=True)
"""
SLEEP = "time.sleep(0.3)"
FAIL_FIRST = SLEEP + "\nif os.environ['REMUDA_EPOCH'] == '1': sys.exit(75)"
GREEDY = "x = [bytes([1]) * (1 << 20) for _ in range(300)]"
FILES = (
    SLEEP
    + """
for n in range(3):
    with open(f'part{n}.out', 'w') as file:
        file.write(open('in').read() * n)
with open('rest', 'w') as file:
    file.write('r')
"""
)
TICK = """
while not os.path.exists(sys.argv[1] + '.go'):
    time.sleep(0.02)
for _ in range(40):
    time.sleep(0.05)
"""
PATIENT = "while not os.path.exists(sys.argv[1] + '.end'): time.sleep(0.02)"
ARRAY, FILED, RETRIED, OOM, SUSPENDED = 24, 8, 10, 3, 2
RUNNING = "SELECT DISTINCT job_id FROM attempts WHERE state = 'STARTED'"
STALLED = "SELECT id FROM events WHERE kind = 'vm' AND to_state = 'STALLED'"
LIMITED = """
    WITH edge AS (
      SELECT j.array_id, a.started_at + interval '50 ms' AS at, 1 AS step
      FROM attempts a JOIN jobs j ON j.id = a.job_id
      WHERE a.ended_at - a.started_at > interval '100 ms'
      UNION ALL
      SELECT j.array_id, a.ended_at - interval '50 ms', -1 FROM attempts a JOIN jobs j ON j.id = a.job_id
      WHERE a.ended_at - a.started_at > interval '100 ms'
    ), level AS (
      SELECT array_id, at, sum(step) OVER (PARTITION BY array_id ORDER BY at, step) AS n FROM edge
    )
    SELECT l.* FROM level l JOIN arrays r ON r.id = l.array_id WHERE l.n > r.max_running"""
TOO_EARLY = """
    SELECT d.id, d.job_id FROM dependencies d JOIN attempts a ON a.job_id = d.job_id
    WHERE a.placed_at < (SELECT max(p.ended_at) FROM jobs p
                         WHERE p.id = d.parent_id OR p.array_id = d.parent_array_id)"""


@dataclass(frozen=True)
class Host:
    """A host with sshd; `place`, if it has an address of its own, can be cut off."""

    sshd: Sshd
    place: Namespace | None

    def cut(self) -> None:
        """Cut it off: its link, or just all that leads to it."""
        self.place.cut() if self.place else self.sshd.kill()

    def mend(self) -> None:
        """Undo that."""
        self.place.mend() if self.place else self.sshd.start()


@pytest.fixture
def two() -> Iterator[list[Host]]:
    """Two hosts; with addresses of their own if we are root."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(2):
            place = None if os.geteuid() else stack.enter_context(namespace(number))
            way = {"address": place.address, "prefix": place.prefix} if place else {}
            found.append(Host(stack.enter_context(running_sshd(**way)), place))  # type: ignore[arg-type]
        yield found


@pytest.fixture
def system(tmp_path: Path, database_url: str, two: list[Host]) -> Iterator[System]:
    """Two workers and a beat, which end before the hosts do."""
    running = System(tmp_path, database_url=database_url, broker_url="filesystem://")
    try:
        for name in ("one", "other"):
            running.start_worker(name)
        running.start_beat()
        yield running
    finally:
        running.close()


def pools(client: Client, hosts: list[Host]) -> list[Pool]:
    """Make a pool of two local VMs and one of the two hosts."""
    settings = {"hosts": [host.sshd.entry(cores=2) for host in hosts]}
    made = [
        client.create_pool(
            name,
            provider=provider,
            settings=of_it,
            slots_per_vm=2,
            instance_count=2,
            heartbeat_s=0.5,
            stalling_interval_s=3,
        )
        for name, provider, of_it in (("sim", "local", {}), ("lab", "static", settings))
    ]
    for pool in made:
        pool.submit()
    return made


def marking(then: str, marks: Path, **more: object) -> JobSpec:
    """Return a job that leaves its line, and then does something."""
    return JobSpec([sys.executable, "-S", "-c", MARK + then, str(marks)], **more)  # type: ignore[arg-type]


def submit(client: Client, marks: Path, folder: Path) -> tuple[list[Job], list[Job]]:
    """Submit jobs of every kind; return all of them, and those that are to be suspended."""

    def marked(then: str, **more: object) -> JobSpec:
        return marking(then, marks, **more)

    limited = client.submit_array(marked(SLEEP), ARRAY, pool=POOLS, max_running=3)
    each = After(client.array(limited[0]), "end", each=True)
    second = client.submit_array(marked(SLEEP, after=each), ARRAY, pool="lab", max_running=4)
    jobs = [*limited, *second]
    jobs.append(client.submit(marked(SLEEP, after=client.array(second[0])), pool=POOLS))
    chain = [marked(SLEEP, name=f"link{n}", after=[f"link{n - 1}"] if n else []) for n in range(6)]
    jobs += client.submit_many(chain, pool=POOLS)
    policy = RetryPolicy(max_retries=2, rules=[RetryRule(exit_codes=[75], delay_s=0.1)])
    jobs += client.submit_array(marked(FAIL_FIRST, retry=policy), RETRIED, pool=POOLS)
    jobs += client.submit_array(marked(GREEDY, memory_bytes=64 * MIB, name="oom"), OOM, pool="sim")
    (folder / "in").write_text("input")
    files = {"inputs": [(str(folder / "in"), "in")], "name": "files"}
    for number, outputs in enumerate([["*.out"], [ANY_OUTPUT]]):
        where = folder / "results" / str(number)
        spec = marked(FILES, outputs=outputs, output_dir=where / "{index}", **files)
        jobs += client.submit_array(spec, FILED // 2, pool=POOLS)
    slow = client.submit_array(marked(TICK, name="slow", priority=100), SUSPENDED, pool=POOLS)
    return [*jobs, *slow], slow


def one_call(job: Job, what: str) -> bool:
    """Signal the job, or look into it; return whether that went well."""
    if what == "peek":
        return job.peek("stdout") == b"up\n"
    job.send_signal("URG")  # which nobody minds
    return True


@contextlib.contextmanager
def calling(system: System, slow: list[Job], patient: Job) -> Iterator[Counter[str]]:
    """Look into running jobs and signal them all the while; count what came of it.

    Every other time it is the patient one: where all goes slowly, others end before they are heard.
    """
    stop, seen = threading.Event(), Counter[str]()
    left_alone = {job.id for job in slow}

    def call() -> None:
        with system.client() as client:
            while not stop.wait(0.1):
                for what in ("signal", "peek"):  # the first is refused when the job has ended
                    try:
                        running = [row["job_id"] for row in system.query(RUNNING)]
                        free = [each for each in running if each not in left_alone]
                        if patient.id in free and random.random() < 0.5:
                            free = [patient.id]
                        if free:
                            seen[what] += one_call(client.job(random.choice(free)), what)
                    except RemudaError as error:
                        seen[type(error).__name__] += 1
                    except Exception as error:  # the connection that `query` had was cut, too
                        seen[f"other: {type(error).__name__}"] += 1

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def cut_connections(system: System) -> None:
    """End every other connection to the database."""
    system.query("""SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()""")


def lose_messages(system: System) -> None:
    """Empty all queues of the broker."""
    for path in system.settings.broker_dir.glob("queues/*/*"):
        if path.name != ".alive":
            path.unlink(missing_ok=True)


def kill_runner(folder: Path) -> None:
    """Kill -9 one of the runners whose homes are below a folder."""
    [found, *_] = eventually("a runner runs", lambda: sorted(folder.rglob("runner.pid")))
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(found.read_text().split()[0]), signal.SIGKILL)


@pytest.mark.timeout(240)
def test_all_kinds_of_jobs_end_once(system: System, two: list[Host], tmp_path: Path) -> None:
    """Whatever fails meanwhile: the invariants hold, limits and order were kept."""
    marks = tmp_path / "marks"
    with system.client() as client:
        made = pools(client, two)
        jobs, slow = submit(client, marks, tmp_path)

        def ended(share: float) -> None:
            eventually(
                f"{share:.0%} of the jobs have ended",
                lambda: client.counts().get("TERMINATED", 0) >= share * len(jobs),
                timeout_s=60,
            )

        patient = client.submit(marking(PATIENT, marks, name="patient", priority=100), pool="sim")
        with calling(system, slow, patient) as seen:
            eventually("they run", lambda: all(job.refresh().state == "RUNNING" for job in slow))
            assert client.suspend(slow) == SUSPENDED
            Path(f"{marks}.go").touch()  # from now on only this keeps them
            ended(0.1)
            system.kill("one")
            system.start_worker("one")
            ended(0.2)
            cut_connections(system)
            two[0].cut()
            ended(0.3)
            kill_runner(system.settings.data_dir)
            lose_messages(system)
            ended(0.4)
            kill_runner(two[1].sshd.home)
            for name in ("one", "other"):
                system.kill(name)
            lose_messages(system)
            for name in ("one", "other"):
                system.start_worker(name)
            ended(0.5)
            eventually("its host is given up", lambda: system.query(STALLED))
            two[0].mend()
            assert not any(job.refresh().done for job in slow)
            cut_connections(system)
            eventually("they go on", lambda: resumed(system, client), timeout_s=30)
            ended(0.7)
            system.kill("other")
            system.start_worker("other")
            Path(f"{marks}.end").touch()
            client.wait([*jobs, patient], timeout_s=90)
            for job in jobs:
                if job.name == "files":
                    job.result(timeout_s=30)  # copies its outputs here
        assert seen["peek"], seen
        assert seen["signal"], seen
        for pool in made:
            pool.close()
        for pool in made:
            pool.wait_closed(timeout_s=60)
    check(system, marks, tmp_path / "results")


def resumed(system: System, client: Client) -> bool:
    """Resume what is STOPPED or held; True once nothing is."""
    found = system.query("SELECT id FROM jobs WHERE held OR state = 'STOPPED'")
    with contextlib.suppress(RemudaError):
        client.resume([client.job(row["id"]) for row in found])
    return not found


def check(system: System, marks: Path, results: Path) -> None:
    """Compare what is recorded with what was asked for and what the commands left."""
    assert broken(system.query) == {}
    assert system.query(LIMITED) == []
    assert system.query(TOO_EARLY) == []
    assert system.query("SELECT id, state FROM vms WHERE state <> 'HALTED'") == []
    rows = system.query("SELECT name, reason, count(*) AS count FROM jobs GROUP BY 1, 2")
    ends = {(row["name"] == "oom", row["reason"]) for row in rows}
    assert ends == {(False, "OK"), (True, "OUT_OF_MEMORY")}, rows
    attempts = {row["id"]: row for row in system.query("SELECT id, state FROM attempts")}
    starts = Counter(int(line.split()[1]) for line in marks.read_text().splitlines())
    assert max(starts.values()) == 1, starts.most_common(3)
    assert set(starts) <= set(attempts)
    assert {i for i, row in attempts.items() if row["state"] == "COLLECTED"} <= set(starts)
    for index in range(FILED // 2):
        names = {path.name for path in (results / "0" / str(index)).iterdir()}
        assert names == {"part0.out", "part1.out", "part2.out"}
        assert (results / "1" / str(index) / "part2.out").read_text() == "inputinput"
        assert (results / "1" / str(index) / "rest").read_text() == "r"
