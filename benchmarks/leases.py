"""`python -m benchmarks.leases`: opening, waiting for and closing leases, on a durable PostgreSQL.

Scenes, each on a database of its own of the embedded server, the VMs rows of a noop pool: one
client's cycles one after the other, sixteen clients at once (on twenty VMs, and on eight, where
half of them wait for another's release), and 300 ready VMs while 100 requests
wait that cannot be served. `cpu_ms`: of client and database together, a cycle; it tells what a busy
machine hides.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.processes import cpu_s, system_of
from benchmarks.report import tell
from remuda import Client
from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import lease_requests, migrate, pool_life
from remuda.models.database import make_engine
from remuda.models.lease_requests import Wanted
from remuda.models.states import VmState
from remuda.models.submit import owner_id
from remuda.models.vm_life import insert_vms, move_vm

LIMITS = {  # name: (limit, whether more is better)
    "sequential_per_s": (200.0, True),
    "sequential_stall_ms": (250.0, False),
    "sixteen_per_s": (300.0, True),
    "crowded_assignment_ms": (100.0, False),
}
CLIENTS = 16


@contextmanager
def database(server_url: str, settings: Settings, name: str, vms: int) -> Iterator[Settings]:
    """Give settings for a new database with one open pool, `builders`, of ready VMs of one slot."""
    server = make_engine(server_url)
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    server.dispose()
    url = server.url.set(database=name).render_as_string(hide_password=False)
    engine = make_engine(url)
    migrate.upgrade(engine)
    _fill(engine, vms)
    engine.dispose()
    yield settings.model_copy(update={"database_url": load_settings(database_url=url).database_url})


def _fill(engine: Engine, vms: int) -> None:
    with engine.begin() as connection:
        pool = pool_life.insert_pool(
            connection,
            "builders",
            owner="bench",
            provider="noop",
            backend="noop",
            fields={"slots_per_vm": 1, "instance_count": vms, "stalling_interval_s": 3600.0},
        )
        pool_life.submit_pool(connection, pool)
        for vm in insert_vms(connection, pool, vms):
            move_vm(connection, vm, VmState.SUBMITTED, fields={"provider_id": f"noop-{vm}"})
            move_vm(connection, vm, VmState.RUNNING)


def _cycle(client: Client, sandbox: str) -> float:
    began = time.perf_counter()
    client.acquire(pools=["builders"], sandbox=sandbox, ttl_s=300, timeout=60).release()
    return time.perf_counter() - began


def sequential(settings: Settings, cycles: int) -> dict[str, float]:
    """Open, wait for and close one lease after the other."""
    with Client(settings, owner="alice") as client:
        _cycle(client, "warm")
        server = system_of(settings.data_dir)
        cpu = cpu_s(server) + time.process_time()
        began = time.perf_counter()
        times = [_cycle(client, f"box-{i}") for i in range(cycles)]
        wall = time.perf_counter() - began
        cpu = cpu_s(server) + time.process_time() - cpu
    return {
        "sequential_cpu_ms": cpu / cycles * 1000,
        "sequential_per_s": cycles / wall,
        "sequential_median_ms": statistics.median(times) * 1000,
        "sequential_stall_ms": max(times) * 1000,
    }


def at_once(settings: Settings, cycles: int, name: str) -> dict[str, float]:
    """Let sixteen clients do so at once."""
    start = threading.Barrier(CLIENTS + 1)
    times: list[float] = []

    def work(number: int) -> None:
        with Client(settings, owner=f"owner-{number}") as client:
            _cycle(client, "warm")
            start.wait(60)
            for _ in range(cycles // CLIENTS):
                times.append(_cycle(client, "box"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start.wait(60)
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    return {f"{name}_per_s": len(times) / wall, f"{name}_slowest_ms": max(times) * 1000}


def crowded(settings: Settings, waiting: int, assignments: int) -> dict[str, float]:
    """Take VM after VM of 300 while requests of owners at their limits wait in vain."""
    engine = make_engine(settings.database_url.get_secret_value() if settings.database_url else "")
    with Client(settings, owner="alice") as client:
        full = [client.acquire(pools=["builders"], owner=f"full-{i}") for i in range(10)]
        with engine.begin() as connection:
            connection.execute(text("UPDATE owners SET max_vms = 1 WHERE name LIKE 'full-%'"))
            [pool] = connection.scalars(text("SELECT id FROM pools")).all()
            for number in range(waiting):
                owner = f"full-{number % 10}"
                wanted = Wanted(pool_ids=(pool,), owner=owner, sandbox=f"s-{number}")
                lease_requests.insert(connection, wanted, owner=owner_id(connection, owner))
        times = []
        for number in range(assignments):
            began = time.perf_counter()
            full.append(client.acquire(pools=["builders"], sandbox=f"b-{number}", timeout=60))
            times.append(time.perf_counter() - began)
        with engine.connect() as connection:
            left = connection.scalar(text("SELECT count(*) FROM lease_requests"))
        if left != waiting:
            raise RuntimeError(f"{left} requests wait, not {waiting}")
        for lease in full:
            lease.release()
    engine.dispose()
    return {
        "crowded_assignment_ms": statistics.median(times) * 1000,
        "crowded_slowest_ms": max(times) * 1000,
    }


def measure(folder: Path, *, cycles: int, waiting: int, ready: int) -> dict[str, float]:
    """Run the scenes in `folder`."""
    settings = load_settings(data_dir=folder / "data", state_dir=folder / "state")
    url = ensure_server(settings)
    scenes: list[tuple[str, int, Callable[[Settings], dict[str, float]]]] = [
        ("one", 8, lambda s: sequential(s, cycles)),
        ("sixteen", 20, lambda s: at_once(s, max(CLIENTS, 5 * cycles), "sixteen")),
        ("few", 8, lambda s: at_once(s, max(CLIENTS, cycles), "sixteen_on_eight_vms")),
        ("crowd", ready, lambda s: crowded(s, waiting, min(100, ready // 3))),
    ]
    found: dict[str, float] = {}
    try:
        for name, vms, scene in scenes:
            with database(url, settings, name, vms) as own:
                found |= scene(own)
    finally:
        stop_server(settings)
    return found


def main() -> int:
    """Measure, print, and fail when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=100)
    parser.add_argument("--ready", type=int, default=300)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-leases-") as folder:
        found: dict[str, Any] = measure(
            Path(folder), cycles=options.cycles, waiting=options.waiting, ready=options.ready
        )
    return tell(found, LIMITS, file=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
