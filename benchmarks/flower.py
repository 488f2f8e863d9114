"""`python -m benchmarks.flower`: what it costs that Flower watches, on the embedded default.

Arrays of `/bin/true` jobs, rounds with and without a real Flower interleaved, medians told. On a machine
that does other things besides, compare the CPU time of a job: Flower's own is told apart.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import cpu_s, system_of
from benchmarks.report import own_system
from benchmarks.throughput import remuda, timed

LOSS_PERCENT = 5.0


@contextmanager
def flower() -> Iterator[int]:
    """Run Flower until the worker has heard that it listens; yield its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true", "FLOWER_AUTH": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "remuda", "flower", f"--port={port}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not _shows_a_vm(port):
            if time.monotonic() > deadline:
                raise TimeoutError("Flower shows no VM")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "remuda.tasks",
            "control",
            "disable_events",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _shows_a_vm(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/workers?json=1", timeout=5) as answer:
            return b"@watched" in answer.read()
    except OSError:
        return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    jobs: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float]]:
    """Return jobs per second, and ms of CPU a job (the system's), with and without Flower.

    And Flower's seconds of CPU a round.
    """
    from remuda import Client, JobSpec

    rates: dict[str, list[float]] = {"without": [], "with": []}
    costs: dict[str, list[float]] = {"without": [], "with": []}
    spent = []
    remuda("up")
    with Client() as client:
        pool = client.create_pool("watched", provider="local", slots_per_vm=2, heartbeat_s=1)
        pool.submit()
        spec = JobSpec(["/bin/true"])

        def many() -> None:
            made = client.submit_array(spec, jobs, pool=pool)
            for _ in client.as_completed(made, timeout_s=300):
                pass

        def one(kind: str, flower: int = 0) -> None:
            system = [pid for pid in system_of(data_dir) if pid != flower]
            spent_s = cpu_s(system)
            rates[kind].append(jobs / timed(many))
            costs[kind].append(1000 * (cpu_s(system) - spent_s) / jobs)

        data_dir = Path(os.environ["XDG_DATA_HOME"])
        many()  # warm: the expected run time is learned
        for number in range(2 * rounds):
            if number % 4 in (0, 3):
                one("without")
            else:
                with flower() as pid:
                    before = _cpu_s(pid)
                    one("with", pid)
                    spent.append(_cpu_s(pid) - before)
    return rates, costs, spent


def main() -> int:
    """Measure, print, and return 1 when more is lost than may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    with own_system():
        rates, costs, spent = measure(arguments.jobs, arguments.rounds)
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    loss = 100 * (1 - medians["with"] / medians["without"])
    for kind, found in rates.items():
        told = ", ".join(f"{rate:.0f}" for rate in found)
        print(f"{kind:8} Flower {medians[kind]:8.0f} jobs/s   ({told})")
        print(f"                {statistics.median(costs[kind]):8.2f} ms of CPU a job")
    print(f"Flower itself  {statistics.median(spent):8.2f} s of CPU a round")
    print(f"lost           {loss:8.1f} %   {'ok' if loss <= LOSS_PERCENT else 'MISSED'}")
    return loss > LOSS_PERCENT


if __name__ == "__main__":
    sys.exit(main())
