"""5,000 jobs of every kind on four hosts with addresses of their own end as exactly they should."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client, JobSpec
from tests.invariants import broken
from tests.namespaces import hosts
from tests.sshd import Sshd
from tests.system import System, running_system

MIB = 1 << 20
BIG = 300_000  # bytes, more than goes along with an exit
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1)
Ends = Counter[tuple[str, str, int | None, int | None]]  # (name, reason, exit code, signal)

TRUE, FAIL, SIGNAL, OOM, LATE, BIGS, MISSING, AGAIN, CHAINS = (
    3100,
    600,
    400,
    60,
    40,
    100,
    100,
    100,
    100,
)


@pytest.fixture
def four() -> Iterator[list[Sshd]]:
    """Four hosts."""
    with hosts(4) as found:
        yield found


@pytest.fixture
def system(tmp_path: Path, database_url: str, four: list[Sshd]) -> Iterator[System]:
    """A running system that ends before its hosts do."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


def simple(client: Client) -> Ends:
    """Submit jobs that need nothing but a shell; return how they must end."""
    client.submit_array(JobSpec(["/bin/true"], name="true"), TRUE, pool="lab")
    code = "exit $((REMUDA_ARRAY_INDEX % 200 + 1))"
    client.submit_array(JobSpec(code, name="fail", shell=True), FAIL, pool="lab")
    ends: Ends = Counter({("true", "OK", 0, None): TRUE})
    ends.update(("fail", "NONZERO", i % 200 + 1, None) for i in range(FAIL))
    for i, number in enumerate(SIGNALS):
        count = len(range(i, SIGNAL, len(SIGNALS)))
        spec = JobSpec(f"kill -{int(number)} $$; sleep 60", name="signal", shell=True)
        client.submit_array(spec, count, pool="lab")
        ends["signal", "SIGNALLED", None, int(number)] = count
    again = 'test "$REMUDA_EPOCH" -gt 1'
    client.submit_array(JobSpec(again, name="again", shell=True, retries=1), AGAIN, pool="lab")
    ends["again", "OK", 0, None] = AGAIN
    return ends


def limited(client: Client) -> Ends:
    """Submit jobs that ask for too much; return how they must end."""
    greedy = JobSpec(
        ["python3", "-c", "x = [bytes([1]) * (1 << 20) for _ in range(400)]"],
        name="oom",
        memory_bytes=64 * MIB,
    )
    client.submit_array(greedy, OOM, pool="lab")
    client.submit_array(JobSpec("sleep 60", name="late", walltime_s=0.4), LATE, pool="lab")
    return Counter(
        {("oom", "OUT_OF_MEMORY", None, None): OOM, ("late", "WALLTIME", None, None): LATE}
    )


def with_files(client: Client, folder: Path) -> Ends:
    """Submit jobs that leave much, and some that leave nothing; return how they must end."""
    big = f"head -c {BIG} /dev/zero | tr '\\0' x | tee out.{{index}}"
    spec = JobSpec(
        big, name="big", shell=True, outputs=["out.{index}"], output_dir=folder / "{index}"
    )
    client.submit_array(spec, BIGS, pool="lab")
    client.submit_array(JobSpec("true", name="missing", outputs=["never"]), MISSING, pool="lab")
    return Counter({("big", "OK", 0, None): BIGS, ("missing", "STAGING", 0, None): MISSING})


def chained(client: Client) -> Ends:
    """Submit chains of five, of which the third of every other one fails."""
    specs = []
    for chain in range(CHAINS):
        for link in range(5):
            command = "false" if chain % 2 and link == 2 else "true"
            after = [f"c{chain}-{link - 1}"] if link else []
            specs.append(JobSpec(command, name=f"c{chain}-{link}", after=after))
    client.submit_many(specs, pool="lab")
    half = CHAINS // 2
    return Counter(
        {
            ("chain", "OK", 0, None): 5 * half + 2 * half,
            ("chain", "NONZERO", 1, None): half,
            ("chain", "DEPENDENCY", None, None): 2 * half,
        }
    )


@pytest.mark.timeout(280)
def test_five_thousand_jobs_of_every_kind(system: System, four: list[Sshd], tmp_path: Path) -> None:
    """The table is exact, the invariants hold, big outputs came whole."""
    with system.client() as client:
        pool = client.create_pool(
            "lab",
            provider="static",
            settings={"hosts": [host.entry(cores=2) for host in four]},
            slots_per_vm=2,
            instance_count=4,
            heartbeat_s=2,
        )
        pool.submit()
        expected = simple(client) + limited(client) + with_files(client, tmp_path / "results")
        expected += chained(client)
        assert expected.total() == 5000
        jobs = client.jobs(pool=pool, limit=None)
        client.wait(jobs, timeout_s=240)

    rows = system.query("""
        SELECT CASE WHEN name ~ '^c[0-9]+-' THEN 'chain' ELSE name END AS name, reason,
               CASE WHEN reason NOT IN ('OUT_OF_MEMORY', 'WALLTIME') THEN exit_code END AS code,
               CASE WHEN reason NOT IN ('OUT_OF_MEMORY', 'WALLTIME') THEN signal END AS signal,
               count(*) AS count
        FROM jobs GROUP BY 1, 2, 3, 4""")
    found: Ends = Counter(
        {(row["name"], row["reason"], row["code"], row["signal"]): row["count"] for row in rows}
    )
    assert found == expected
    assert broken(system.query) == {}
    used = system.query("SELECT count(DISTINCT vm_id) AS vms FROM attempts")
    assert used == [{"vms": 4}]

    with system.client() as client:
        for job in client.jobs(pool="lab", name="big", limit=None)[:: BIGS // 10]:
            result = job.result(timeout_s=30)
            assert result.stdout == b"x" * BIG
            [path] = result.outputs.values()
            assert path.read_bytes() == b"x" * BIG
        blamed = system.query("SELECT DISTINCT message FROM jobs WHERE reason = 'DEPENDENCY'")
        assert len(blamed) == CHAINS // 2
        assert all("NONZERO" in row["message"] for row in blamed)
        client.pool("lab").close()
        client.pool("lab").wait_closed(timeout_s=60)
    assert [list(host.home.iterdir()) for host in four] == [[]] * 4
