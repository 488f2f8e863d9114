"""`python -m benchmarks.ssh`: hosts reached by SSH, beside the local backend, Fabric and scp.

Real OpenSSH servers on loopback ports, everything in a temporary folder, rounds interleaved, medians
of each round's ratio told. Memory is the worker process's proportional resident memory (PSS), CPU its
user and system time, both read from /proc over a quiet stretch with every VM watched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.processes import cpu_s, pss_bytes
from benchmarks.report import own_system, tell
from benchmarks.ssh_cache import cache
from tests.sshd import Sshd, running_sshd

LIMITS = {  # name: (limit, whether more is better)
    "ssh / local": (0.8, True),
    "ssh / fabric": (5.0, True),
    "latency_ms": (100.0, False),
    "transfer / scp": (1.3, False),
    "cache_disk_peak_mb": (2000.0, False),
    "watch_memory_mb": (150.0, False),
    "watch_cpu_percent": (10.0, False),
}
FABRIC_THREADS = 4
TRANSFER_BYTES = 50 << 20
QUIET_S = 20.0


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def remuda(*words: str) -> None:
    """Run the command line."""
    command = [sys.executable, "-m", "remuda", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def until(what: str, holds: Callable[[], bool], *, timeout_s: float) -> None:
    """Return once `holds` is true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)  # between two looks at a condition with a deadline


class FabricPeer:
    """Connections that stay open, one a thread; each job is a `run` on one of them."""

    def __init__(self, host: Sshd) -> None:
        import fabric

        key = {"key_filename": str(host.key_file)}
        self._connections = [
            fabric.Connection("127.0.0.1", user=host.user, port=host.port, connect_kwargs=key)
            for _ in range(FABRIC_THREADS)
        ]
        for connection in self._connections:
            connection.open()

    def run(self, jobs: int) -> float:
        """Return the seconds the jobs take."""

        def some(number: int) -> None:
            for _ in range(number, jobs, FABRIC_THREADS):
                self._connections[number].run("/bin/true", hide=True, in_stream=False)

        def all_of_them() -> None:
            with ThreadPoolExecutor(FABRIC_THREADS) as pool:
                list(pool.map(some, range(FABRIC_THREADS)))

        return timed(all_of_them)

    def stop(self) -> None:
        """Hang up."""
        for connection in self._connections:
            connection.close()


def jobs_and_latency(host: Sshd, jobs: int, rounds: int) -> dict[str, float]:
    """Measure 1,000 short jobs on one VM, and one job alone."""
    from remuda import Client, JobSpec

    found: dict[str, float] = {}
    spec = JobSpec(["/bin/true"])
    with Client() as client:
        pools = {}
        for name, provider, settings in (
            ("local", "local", {}),
            ("ssh", "static", {"hosts": [host.entry()]}),
        ):
            pools[name] = client.create_pool(
                name, provider=provider, settings=settings, slots_per_vm=2, instance_count=1
            )
            pools[name].submit()

        def many(name: str) -> None:
            made = client.submit_array(spec, jobs, pool=pools[name])
            for job in client.as_completed(made, timeout_s=300):
                if job.result().exit_code != 0:
                    raise AssertionError(job)

        def one() -> None:
            client.submit(spec, pool=pools["ssh"]).result(timeout_s=60)

        for name in pools:
            many(name)  # warm: the expected run time is learned
        peer = FabricPeer(host)
        times: dict[str, list[float]] = {"ssh": [], "local": [], "fabric": []}
        try:
            for _ in range(rounds):
                times["local"].append(timed(lambda: many("local")))
                times["ssh"].append(timed(lambda: many("ssh")))
                times["fabric"].append(peer.run(jobs))
        finally:
            peer.stop()
        for name, seconds in times.items():
            found[f"{name}_jobs_per_s"] = jobs / statistics.median(seconds)
        for name in ("local", "fabric"):
            found[f"ssh / {name}"] = _ratio(times[name], times["ssh"])
        one()
        latencies = [timed(one) for _ in range(40)]
        found["latency_ms"] = 1000 * statistics.median(latencies)
        found["latency_p95_ms"] = 1000 * statistics.quantiles(latencies, n=20)[-1]
        for pool in pools.values():
            pool.close()
            pool.wait_closed(timeout_s=60)
    return found


def transfers(host: Sshd, rounds: int, folder: Path) -> dict[str, float]:
    """Measure 50 MB to a host and back: the backend on a warm connection, and `scp`."""
    from remuda.config import Settings
    from remuda.workers.backends import InputFile, StartJob, VmAddress, get_backend
    from remuda.workers.providers import VmSpec, get_provider
    from remuda.workers.transport import connections

    source, back = folder / "source", folder / "back"
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{host.port} {host.host_key}\n")
    flags = ["-q", "-P", str(host.port), "-i", str(host.key_file)]
    flags += ["-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
    there = f"{host.user}@127.0.0.1:{host.home}/scp"

    provider = get_provider("static", Settings(), {"hosts": [host.entry()]})
    vm_id = provider.spawn(VmSpec("vm", "bench", 2), "bench")
    vm = VmAddress(1, "vm", "ssh", dict(provider.describe([vm_id])[vm_id].address))
    backend = get_backend("ssh")
    ended: dict[int, str] = {}

    def heard(_channel: Any, message: dict[str, Any]) -> None:
        ended.update({e["a"]: e["why"] for e in message.get("entries", ()) if e["t"] == "exit"})

    channel = backend.connect(vm, watch=True, on_push=heard)
    times: dict[str, list[float]] = {"in": [], "out": [], "scp in": [], "scp out": []}
    try:
        for attempt in range(1, rounds + 1):
            source.write_bytes(os.urandom(TRANSFER_BYTES))  # no cache knows it
            file = InputFile("data", source.as_uri())
            times["in"].append(timed(lambda file=file: backend.source(file, vm)))  # type: ignore[misc]
            command = ("cp", "data", "copy")
            job = StartJob(attempt, attempt, 1, command, inputs=(file,))
            backend.submit_jobs(channel, vm, [job], floor=1)
            until("the copy is made", lambda a=attempt: a in ended, timeout_s=60)  # type: ignore[misc]
            times["out"].append(
                timed(lambda a=attempt: backend.fetch(channel, vm, a, "copy", back))  # type: ignore[misc]
            )
            if back.read_bytes() != source.read_bytes():
                raise AssertionError("the file came back as another")
            backend.free(channel, vm, [attempt])
            for name, ends in (("scp in", (str(source), there)), ("scp out", (there, str(back)))):
                words = ["scp", *flags, *ends]
                times[name].append(timed(lambda words=words: subprocess.run(words, check=True)))  # type: ignore[misc]
    finally:
        channel.close()
        provider.terminate(vm_id)
        connections().close()
    found = {f"{name}_s": statistics.median(seconds) for name, seconds in times.items()}
    ours = [a + b for a, b in zip(times["in"], times["out"], strict=True)]
    peers = [a + b for a, b in zip(times["scp in"], times["scp out"], strict=True)]
    return {**found, "transfer / scp": _ratio(ours, peers)}


def watching(hosts: Sequence[Sshd]) -> dict[str, float]:
    """Measure what one idle worker costs that watches a VM on each host."""
    from remuda import Client

    with Client() as client:
        settings = {"hosts": [host.entry(cores=1) for host in hosts]}
        bare = _worker_cost(0.0)
        pool = client.create_pool(
            "herd", provider="static", settings=settings, slots_per_vm=1, instance_count=len(hosts)
        )
        pool.submit()

        def all_watched() -> bool:
            rows = client.vms(pool=pool)
            return sum(1 for vm in rows if vm.state == "RUNNING") == len(hosts)

        start = time.perf_counter()
        until(f"{len(hosts)} VMs run", all_watched, timeout_s=300)
        up_s = time.perf_counter() - start
        time.sleep(5)  # let what the start left behind settle
        memory, cpu = _worker_cost(QUIET_S)
        pool.close()
        pool.wait_closed(timeout_s=120)
    return {
        "watched_vms": float(len(hosts)),
        "watch_up_s": up_s,
        "worker_memory_without_mb": bare[0] / 1e6,
        "watch_memory_mb": memory / 1e6,
        "watch_cpu_percent": cpu,
    }


def _worker_cost(seconds: float) -> tuple[float, float]:
    """Return the worker's memory in bytes and the percentage of a core it uses meanwhile."""
    from remuda import embedded
    from remuda.config import load_settings

    rows = embedded.process_status(load_settings())
    pids = [row.pid for row in rows if row.name == "worker" and row.pid]
    if len(pids) != 1:
        raise AssertionError(f"there must be one worker: {rows}")
    before, start = cpu_s(pids), time.perf_counter()
    time.sleep(seconds)
    used = cpu_s(pids) - before
    return float(pss_bytes(pids)), 100 * used / max(seconds and time.perf_counter() - start, 1e-9)


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure everything; return the figures by name."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(running_sshd())
        if "transfers" in arguments.parts:
            found |= transfers(host, arguments.rounds, folder)
        if {"jobs", "cache", "watching"} & set(arguments.parts):
            remuda("up")
        if "jobs" in arguments.parts:
            found |= jobs_and_latency(host, arguments.jobs, arguments.rounds)
        if "cache" in arguments.parts:
            found |= cache(host, arguments.jobs, folder)
        if "watching" in arguments.parts:
            remuda("down")
            remuda("up")  # what a worker has that did nothing but watch
            with ThreadPoolExecutor(8) as pool:
                servers = [running_sshd() for _ in range(arguments.vms)]
                hosts = list(pool.map(stack.enter_context, servers))
            found |= watching(hosts)
    found["load"] = os.getloadavg()[0]
    return found


def main() -> int:
    """Measure, print, and return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vms", type=int, default=50)
    parts = ("transfers", "jobs", "watching")
    told = "all but `cache` unless told, which copies 100 MB for each of the jobs"
    parser.add_argument("--parts", nargs="+", choices=(*parts, "cache"), default=parts, help=told)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with own_system() as folder:
        found = measure(arguments, folder)
    return tell(found, LIMITS, file=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
