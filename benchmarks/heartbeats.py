"""What the heartbeats of 1,000 VMs cost the database: `python -m benchmarks.heartbeats`.

Beats are recorded as a watcher does it, one statement for all the VMs heard since the last; every
VM beats once in 30 s. `share` is the time in transactions, commits included, over the time the
beats stand for: the part of one core of the database, if it did nothing but compute in them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from remuda.config import load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import migrate, pool_life
from remuda.models.database import make_engine, transact
from remuda.models.vm_life import insert_vms
from remuda.models.watches import claim_watches, record_heartbeats, renew_watches

PERIOD_S = 30.0


def main() -> None:
    """Measure and print one line for each way of batching."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="of one beat of every VM")
    parser.add_argument("--kept", type=int, default=1_000_000, help="beats there before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-bench-") as folder:
        settings = load_settings(data_dir=Path(folder, "data"), state_dir=Path(folder, "state"))
        engine = make_engine(ensure_server(settings))
        try:
            migrate.upgrade(engine)
            vms = _herd(engine, options.vms, options.kept)
            for batch in (options.vms, 100, 10):
                took_s = _rounds(engine, vms, rounds=options.rounds, batch=batch)
                share = took_s / options.rounds / PERIOD_S
                print(
                    f"{options.vms} VMs, {batch} beats a statement: "
                    f"{1000 * took_s / options.rounds:.0f} ms for a beat of each, "
                    f"share {100 * share:.2f} % of a core"
                )
            took_s = _renewals(engine, vms, rounds=options.rounds)
            share = took_s / options.rounds / (settings.watch_ttl_s / 5)
            print(
                f"beside them: the watches on {options.vms} VMs, renewed every "
                f"{settings.watch_ttl_s / 5:g} s: share {100 * share:.2f} % of a core"
            )
        finally:
            engine.dispose()
            stop_server(settings)


def _herd(engine: Engine, count: int, kept: int) -> list[int]:
    def work(connection: Any) -> list[int]:
        pool = pool_life.insert_pool(
            connection,
            "herd",
            owner="bench",
            provider="noop",
            backend="noop",
            fields={"slots_per_vm": 2},
        )
        made = insert_vms(connection, pool, count)
        for state in ("SUBMITTED", "RUNNING"):
            connection.execute(
                text("UPDATE vms SET provider_id = 'vm-' || id, state = :state"), {"state": state}
            )
        connection.execute(
            text(
                """INSERT INTO heartbeats (vm_id, at, load, running_jobs, memory_free_bytes,
                     disk_free_bytes, uptime_s)
                   SELECT v.id, now() - make_interval(secs => 30 * n), 1, 1, 1, 1, 1
                   FROM generate_series(:rounds, 1, -1) AS n, vms v ORDER BY n DESC"""
            ),
            {"rounds": kept // count},
        )
        return made

    made = transact(engine, work)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE heartbeats"))
        connection.execute(text("VACUUM ANALYZE vms"))
    return made


def _rounds(engine: Engine, vms: list[int], *, rounds: int, batch: int) -> float:
    """Return the seconds in transactions of that many beats of every VM."""
    took_s = 0.0
    for number in range(rounds):
        for first in range(0, len(vms), batch):
            beats = [_beat(vm, number) for vm in vms[first : first + batch]]
            began = time.perf_counter()
            transact(engine, lambda c, beats=beats: record_heartbeats(c, beats))  # type: ignore[misc]
            took_s += time.perf_counter() - began
    return took_s


def _renewals(engine: Engine, vms: list[int], *, rounds: int) -> float:
    """Return the seconds in transactions of so many renewals of all watches by one worker."""
    transact(engine, lambda c: claim_watches(c, "bench", ttl_s=600, most=len(vms)))
    took_s = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        transact(engine, lambda c: renew_watches(c, "bench", vms, ttl_s=600))
        took_s += time.perf_counter() - began
    return took_s


def _beat(vm: int, number: int) -> dict[str, Any]:
    return {
        "vm_id": vm,
        "load": 0.5 + number,
        "running_jobs": 2,
        "queued_jobs": 5,
        "cores": 2,
        "memory_free_bytes": 1 << 30,
        "disk_free_bytes": 1 << 36,
        "transferred_files": number,
        "transferred_bytes": number << 20,
        "uptime_s": 30.0 * number,
    }


if __name__ == "__main__":
    main()
