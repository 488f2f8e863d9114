"""`python -m benchmarks.throughput`: the embedded default beside xargs and raw Celery.

Everything runs in a temporary folder, rounds interleaved, medians told. `/bin/true` jobs, one array,
submit to last known result; PostgreSQL durable, every transition recorded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import cpu_s, pss_bytes, system_of
from benchmarks.report import own_system, tell

LIMITS = {  # name: (limit, whether more is better)
    "remuda / xargs": (0.35, True),
    "remuda / celery": (1.2, True),
    "latency_ms": (60.0, False),
    "help_s": (0.4, False),
    "up_s": (5.0, False),
    "idle_cpu_percent": (5.0, False),
    "memory_mb": (350.0, False),
}


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def remuda(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "remuda", *words], check=True, stdout=subprocess.PIPE
    )


def xargs(jobs: int) -> float:
    """Return the seconds `xargs -P2` takes for the jobs."""
    numbers = "\n".join(map(str, range(jobs))).encode()
    command = ["xargs", "-P2", "-n1", "/bin/true"]
    return timed(lambda: subprocess.run(command, input=numbers, check=True))


class CeleryPeer:
    """A worker of two processes running `benchmarks.celery_peer`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._round = 0
        self._worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "benchmarks.celery_peer",
                "worker",
                "-c",
                "2",
                "-l",
                "ERROR",
                "-Q",
                "peer",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.run(4)  # warm

    def run(self, jobs: int) -> float:
        """Return the seconds from the first send to the last subprocess done."""
        from benchmarks.celery_peer import run

        self._round += 1
        done = self._folder / f"celery-{self._round}"
        start = time.perf_counter()
        for _ in range(jobs):
            run.delay(["/bin/true"], str(done))
        while not done.exists() or done.stat().st_size < jobs:
            if time.perf_counter() - start > 120:
                raise TimeoutError("the Celery peer did not finish")
            time.sleep(0.002)
        return time.perf_counter() - start

    def stop(self) -> None:
        """Stop the worker."""
        self._worker.terminate()
        self._worker.wait(30)


def measure(jobs: int, rounds: int, folder: Path) -> dict[str, float]:
    """Measure everything; return the figures by name."""
    found: dict[str, float] = {}
    remuda("--help")
    found["help_s"] = statistics.median(timed(lambda: remuda("--help")) for _ in range(5))
    found["first_up_s"] = timed(lambda: remuda("up"))
    remuda("down")
    found["up_s"] = timed(lambda: remuda("up"))
    from remuda import Client, JobSpec

    with Client() as client:
        pool = client.create_pool("bench", provider="local", slots_per_vm=2)
        pool.setup_elastic(minimum_total_slots=2, maximum_total_slots=2, resize_period=1)
        pool.submit()
        spec = JobSpec(["/bin/true"])

        def one() -> None:
            client.submit(spec, pool=pool).result(timeout_s=60)

        def many() -> None:
            made = client.submit_array(spec, jobs, pool=pool)
            for job in client.as_completed(made, timeout_s=300):
                if job.result().exit_code != 0:
                    raise AssertionError(job)

        many()  # warm: the expected run time is learned
        peer = CeleryPeer(folder)
        times: dict[str, list[float]] = {"remuda": [], "xargs": [], "celery": []}
        for _ in range(rounds):
            times["xargs"].append(xargs(jobs))
            times["remuda"].append(timed(many))
            times["celery"].append(peer.run(jobs))
        peer.stop()
        for name, seconds in times.items():
            found[f"{name}_jobs_per_s"] = jobs / statistics.median(seconds)
        for name in ("xargs", "celery"):
            ratios = [b / a for a, b in zip(times["remuda"], times[name], strict=True)]
            found[f"remuda / {name}"] = statistics.median(ratios)
        one()
        latencies = [timed(one) for _ in range(40)]
        found["latency_ms"] = 1000 * statistics.median(latencies)
        found["latency_p95_ms"] = 1000 * statistics.quantiles(latencies, n=20)[-1]
    data_dir = Path(os.environ["XDG_DATA_HOME"])
    time.sleep(3)  # let what the load left behind settle
    before, start = cpu_s(system_of(data_dir)), time.perf_counter()
    time.sleep(20)
    after = cpu_s(system_of(data_dir))
    found["idle_cpu_percent"] = 100 * (after - before) / (time.perf_counter() - start)
    found["memory_mb"] = pss_bytes(system_of(data_dir)) / 1e6
    return found


def main() -> int:
    """Measure, print, and return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with own_system() as folder:
        found = measure(arguments.jobs, arguments.rounds, folder)
    return tell(found, LIMITS, file=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
