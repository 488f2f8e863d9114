"""`python -m benchmarks.scheduler`: placing jobs at scale, on a durable PostgreSQL.

100,000 queued jobs of 50 owners, of several shapes, in 20 pools with 1,000 simulated VMs (rows of the
noop backend). What is measured is all of a dispatch but the messages to the VMs: snapshot, decision,
attempts, commit. Scenes on databases of their own: one cycle that places 1,000 jobs; the same with
fewer jobs waiting; sizing of all pools; one owner's flood of jobs that fit nowhere; four dispatchers
beside one, as they come and each held to a part of a core by a cgroup, with the server process of its
connection: as if each were on a host of its own. The first is judged only where each could have a CPU:
on fewer it tells of these. Growth and flood are judged by processor time, and told by the clock, too.
Writes a report with the plans of the queries, and a plot. Exits 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.beside import side_by_side
from benchmarks.farm import analyze, database, fill, make_jobs
from benchmarks.processes import run_s
from benchmarks.report import tell
from benchmarks.scheduler_report import plans, write_report
from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import owners, sizing
from remuda.models.database import make_engine, transact
from remuda.models.submit import owner_id
from remuda.tasks import placements
from remuda.tasks import sizing as sizing_task
from remuda.workers import scaling

DISPATCHERS = 4  # beside one
LIMITS = {  # name: (limit, whether more is better)
    "cycle_s": (1.0, False),
    "sizing_ms": (200.0, False),
    "flood_slows_percent": (10.0, False),
    "growth_ratio": (1.5, False),
    "dispatcher_mb": (200.0, False),
    "four_beside_one": (2.0, True),
    "held_four_beside_one": (2.0, True),
    "broken_invariants": (0.0, False),
    "scans_of_all_jobs": (0.0, False),
}


class Undo(Exception):
    """Rolls back."""


def cycle(engine: Engine, settings: Settings, *, commit: bool) -> tuple[int, float]:
    """Dispatch once; return how many jobs were placed, in how many seconds."""

    def tried(work: Any) -> Any:
        found: list[Any] = []
        try:
            with engine.begin() as connection:
                found.append(work(connection))
                raise Undo
        except Undo:
            return found[0]

    began = time.perf_counter()
    run = (lambda work: transact(engine, work)) if commit else tried
    count = sum(map(len, placements.placements(run, settings)))
    return count, time.perf_counter() - began


def cost(engine: Engine, settings: Settings) -> tuple[float, float]:
    """Return the milliseconds that a placed job takes in a cycle that is rolled back.

    By the clock, and of processor time, of the dispatcher and the server process of its connection:
    what else the machine does changes that little.
    """
    with engine.connect() as connection:
        server = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    cpu = time.process_time() + run_s(server)
    placed, wall = cycle(engine, settings, commit=False)
    cpu = time.process_time() + run_s(server) - cpu
    return 1000 * wall / max(1, placed), 1000 * cpu / max(1, placed)


def grown(
    url: str, settings: Settings, counts: Sequence[int], make: Any, *, times: int = 9
) -> list[tuple[int, float, float]]:
    """Return the least that a placed job takes with so many jobs waiting: see `cost`.

    All by turns, so that what else the machine does slows each.
    """
    with ExitStack() as stack:
        engines = []
        for count in counts:
            engine = make_engine(stack.enter_context(database(url, f"grown_{count}")))
            stack.callback(engine.dispose)
            make(engine, count)
            engines.append(engine)
        found = [[cost(engine, settings) for engine in engines] for _ in range(times)]
    return [
        (count, *(min(kind) for kind in zip(*took, strict=True)))
        for count, took in zip(counts, zip(*found, strict=True), strict=True)
    ]


def flooded(url: str, settings: Settings, options: Any) -> tuple[float, float]:
    """Return by how many percent one owner's jobs that fit nowhere slow a cycle of the others.

    By the clock, and in processor time: see `cost`. With and without them by turns, so that what else
    the machine does slows both.
    """
    few = options.jobs // 10
    engines = []
    with database(url, "calm") as calm, database(url, "flooded") as flood:
        for own in (calm, flood):
            engine = make_engine(own)
            engines.append(engine)
            fill(engine, jobs=few, vms=options.vms, people=options.owners, pools=options.pools)
        with engines[1].begin() as connection:
            owner = owner_id(connection, "flood")
            for pool in connection.scalars(text("SELECT id FROM pools ORDER BY id")).all():
                make_jobs(connection, pool, owner, (options.jobs - few) // options.pools, gib=65)
        analyze(engines[1])
        found = [[cost(engine, settings) for engine in engines] for _ in range(9)]
        for engine in engines:
            engine.dispose()
    calmly, slowly = (
        [min(kind) for kind in zip(*took, strict=True)] for took in zip(*found, strict=True)
    )
    wall, cpu = (100 * (slow / calm_ - 1) for calm_, slow in zip(calmly, slowly, strict=True))
    return wall, cpu


def sized(engine: Engine) -> float:
    """Return the milliseconds to look at all pools and decide their sizes."""
    times = []
    for _ in range(5):
        with engine.begin() as connection:
            began = time.perf_counter()
            found = sizing.due_pools(connection)
            for demand in found:
                scaling.decide(sizing_task.snapshot_of(demand), demand.now)
            times.append(time.perf_counter() - began)
            connection.rollback()
    return 1000 * statistics.median(times)


def beside(url: str, settings: Settings, options: Any) -> dict[str, float]:
    """Return what four dispatchers place beside one: as it comes, and each held to a part of a core.

    The second tells how much they wait for each other, wherever there are fewer cores than processes.
    """
    found: dict[str, float] = {"dispatcher_mb": 0.0, "broken_invariants": 0.0}
    for name, of_a_core in (("", None), ("held_", options.of_a_core)):
        speeds = []
        for count in (1, DISPATCHERS):
            with filled(url, f"beside_{name}{count}", options) as own:
                placing = side_by_side(
                    own, settings, count=count, slots=8 * options.vms, of_a_core=of_a_core
                )
            if placing is None:
                print("no cgroup can be written here: nothing is held", file=sys.stderr)
                return found
            speeds.append(placing.per_s)
            found["dispatcher_mb"] = max(found["dispatcher_mb"], placing.mb)
            found["broken_invariants"] += placing.broken
        found[f"{name}one_per_s"], found[f"{name}four_per_s"] = speeds
        found[f"{name}four_beside_one"] = speeds[1] / speeds[0]
    return found


@contextmanager
def filled(url: str, name: str, options: Any) -> Iterator[str]:
    """Give the URL of a database of VMs of 8 slots, some owners under quotas."""
    with database(url, name) as own:
        engine = make_engine(own)
        fill(
            engine,
            jobs=options.jobs,
            vms=options.vms,
            people=options.owners,
            pools=options.pools,
            slots=8,
        )
        with engine.begin() as connection:
            for number in range(3):
                owners.change(connection, f"owner-{number}", {"max_slots": 20 * (number + 1)})
        engine.dispose()
        yield own


def judged(found: Mapping[str, float]) -> dict[str, tuple[float, bool]]:
    """Return the limits that tell something on a machine with so many CPUs."""
    enough = found["cpus"] >= DISPATCHERS
    return {name: limit for name, limit in LIMITS.items() if enough or name != "four_beside_one"}


def measure(folder: Path, options: Any) -> dict[str, float]:
    """Run the scenes with data in `folder`."""
    settings = load_settings(data_dir=folder / "data", state_dir=folder / "state")
    url = ensure_server(settings)
    found = {"cpus": float(len(os.sched_getaffinity(0)))}

    def make(engine: Engine, count: int) -> None:
        fill(engine, jobs=count, vms=options.vms, people=options.owners, pools=options.pools)

    try:
        with database(url, "cycle") as own:
            engine = make_engine(own)
            make(engine, options.jobs)
            told = plans(engine)
            found["sizing_ms"] = sized(engine)
            cycle(engine, settings, commit=False)
            placed, found["cycle_s"] = cycle(engine, settings, commit=True)
            found["cycle_placed"] = float(placed)
            engine.dispose()
        counts = [n for n in (1000, 3000, 10_000, 30_000) if n < options.jobs]
        growth = grown(url, settings, [*counts, options.jobs], make)
        found["growth_ratio"] = growth[-1][2] / growth[0][2]
        found["growth_by_the_clock"] = growth[-1][1] / growth[0][1]
        by_the_clock, found["flood_slows_percent"] = flooded(url, settings, options)
        found["flood_by_the_clock_percent"] = by_the_clock
        found |= beside(url, settings, options)
        found["scans_of_all_jobs"] = float(
            sum("Seq Scan on jobs" in plan for plan in told.values())
        )
        what = (__doc__ or "").split("\n\n", 1)[1].strip()
        write_report(options.to, found, growth, told, options, limits=judged(found), what=what)
    finally:
        stop_server(settings)
    return found


def main() -> int:
    """Measure, print, write the report, and fail when a limit is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--owners", type=int, default=50)
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument(
        "--to", type=Path, default=Path("results/scheduler"), help="the report's folder"
    )
    parser.add_argument(
        "--of-a-core", type=float, default=0.15, help="the part of a core a held dispatcher has"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-scheduler-") as folder:
        found = measure(Path(folder), options)
    missed = tell(found, judged(found), file=options.json)
    print(f"report: {options.to / 'scheduler.md'}", file=sys.stderr)
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
