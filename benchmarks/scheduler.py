"""`python -m benchmarks.scheduler`: placing jobs at scale, on a durable PostgreSQL.

100,000 queued jobs of 50 owners, of several shapes, in 20 pools with 1,000 simulated VMs (rows of the
noop backend). What is measured is all of a dispatch but the messages to the VMs: snapshot, decision,
attempts, commit. Scenes on databases of their own: one cycle that places 1,000 jobs; the same with
fewer jobs waiting; sizing of all pools; one owner's flood of jobs that fit nowhere; four dispatchers
beside one. Writes a report with the plans of the queries, and a plot. Exits 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.farm import analyze, database, fill, make_jobs
from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import owners, shapes, sizing, usage
from remuda.models.database import make_engine, rows, transact
from remuda.models.submit import owner_id
from remuda.tasks import placing
from remuda.tasks import sizing as sizing_task
from remuda.workers import scaling

LIMITS = {  # name: (limit, whether more is better)
    "cycle_s": (1.0, False),
    "sizing_ms": (200.0, False),
    "flood_slows_percent": (10.0, False),
    "growth_ratio": (1.5, False),
    "dispatcher_mb": (200.0, False),
    "four_beside_one": (2.0, True),
    "broken_invariants": (0.0, False),
    "scans_of_all_jobs": (0.0, False),
}
UNSOUND = {
    "a VM with more slots given out than it has": """
        SELECT v.id FROM vms v JOIN attempts a ON a.vm_id = v.id AND a.state = 'PLACED'
        GROUP BY v.id HAVING sum(a.cores) > v.slots""",
    "a job with two live attempts": """
        SELECT job_id FROM attempts WHERE state = 'PLACED' GROUP BY 1 HAVING count(*) > 1""",
    "a quota exceeded": """
        SELECT q.owner_id FROM quotas q JOIN leases l ON l.owner_id = q.owner_id
        JOIN attempts a ON a.lease_id = l.id AND a.state = 'PLACED'
        GROUP BY q.id HAVING sum(a.cores) > q.max_slots""",
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
    count = sum(map(len, placing.placements(run, settings)))
    return count, time.perf_counter() - began


def best(engine: Engine, settings: Settings, *, times: int = 5) -> tuple[int, float]:
    """Return the jobs placed and the least seconds of some cycles that are rolled back."""
    found = [cycle(engine, settings, commit=False) for _ in range(times)]
    return found[0][0], min(took for _, took in found)


def grown(
    url: str, settings: Settings, counts: Sequence[int], make: Any
) -> list[tuple[int, float]]:
    """Return the milliseconds a placed job takes with so many jobs waiting."""
    found = []
    for count in counts:
        with database(url, f"grown_{count}") as own:
            engine = make_engine(own)
            make(engine, count)
            placed, took = best(engine, settings)
            found.append((count, 1000 * took / max(1, placed)))
            engine.dispose()
    return found


def flooded(url: str, settings: Settings, options: Any) -> float:
    """Return by how many percent one owner's jobs that fit nowhere slow a cycle of the others.

    With and without them by turns, so that what else the machine does slows both.
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
        times: list[list[float]] = [[], []]
        for _ in range(9):
            for took, engine in zip(times, engines, strict=True):
                took.append(cycle(engine, settings, commit=False)[1])
        for engine in engines:
            engine.dispose()
    return 100 * (min(times[1]) / min(times[0]) - 1)


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


def dispatcher(url: str, settings: Settings, start: Any, told: Any, most: int) -> None:
    """Place until nothing more fits; tell how many jobs, when it was done, and the memory it took."""
    engine = make_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    start.wait()
    began, count, empty = time.monotonic(), 0, 0
    while empty < 2:
        placed = cycle(engine, settings, commit=True)[0]
        count += placed
        empty = 0 if placed else empty + 1
        with engine.connect() as connection:
            live = connection.scalar(text("SELECT count(*) FROM attempts WHERE state = 'PLACED'"))
        if live >= most:
            break
    usage_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told.put((count, began, time.monotonic(), usage_kb / 1024))
    engine.dispose()


def side_by_side(url: str, settings: Settings, options: Any, count: int) -> dict[str, float]:
    """Let so many dispatchers fill all VMs; return jobs a second, memory, and what is broken."""
    with database(url, f"beside_{count}") as own:
        engine = make_engine(own)
        most = 8 * options.vms
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
        context = multiprocessing.get_context("spawn")
        start, told = context.Barrier(count), context.Queue()
        workers = [
            context.Process(target=dispatcher, args=(own, settings, start, told, most))
            for _ in range(count)
        ]
        for worker in workers:
            worker.start()
        found = [told.get(timeout=600) for _ in workers]
        for worker in workers:
            worker.join()
        wall = max(end for _, _, end, _ in found) - min(begin for _, begin, _, _ in found)
        with engine.connect() as connection:
            broken = [what for what, query in UNSOUND.items() if rows(connection, query)]
            placed = connection.scalar(text("SELECT count(*) FROM attempts"))
        for what in broken:
            print(f"BROKEN with {count} dispatchers: {what}", file=sys.stderr)
        engine.dispose()
    return {
        "placed": float(placed or 0),
        "per_s": float(placed or 0) / wall,
        "mb": max(mb for _, _, _, mb in found),
        "broken": float(len(broken)),
    }


def plans(engine: Engine) -> dict[str, str]:
    """Return how PostgreSQL goes about the queries for waiting jobs and for use."""
    with engine.begin() as connection:
        pools = list(connection.scalars(text("SELECT id FROM pools ORDER BY id LIMIT 4")))
        heads = rows(connection, shapes.SHAPES, pools=pools)
        queries: dict[str, tuple[str, dict[str, Any]]] = {
            "The first job of each owner and shape": (shapes.SHAPES, {"pools": pools}),
            "The next jobs of each": (
                str(shapes.JOBS_OF_ONE),
                {
                    "turns": json.dumps(
                        [
                            {
                                "pool_id": head["pool_id"],
                                "owner_id": head["owner_id"],
                                "most": 5,
                                "shapes": [{"shape": head["shape"], "free": True}],
                            }
                            for head in heads
                        ]
                    ),
                    "full_arrays": [],
                    "horizon": 0.5,
                },
            ),
            "What owners used": (usage._SHARES, {"half_life": 86400.0}),
        }
        found = {
            name: "\n".join(
                line["QUERY PLAN"]
                for line in rows(connection, f"EXPLAIN (ANALYZE, BUFFERS) {query}", **values)
            )
            for name, (query, values) in queries.items()
        }
        connection.rollback()
    return found


def write_report(
    folder: Path,
    found: dict[str, float],
    growth: Sequence[tuple[int, float]],
    told: dict[str, str],
    options: Any,
) -> None:
    """Write scheduler.md and scheduler.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([count for count, _ in growth], [ms for _, ms in growth], marker="o")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queued jobs")
    axes.set_ylabel("ms per placed job")
    axes.set_title(
        f"Placing on {options.vms} VMs of {options.pools} pools, jobs of {options.owners} owners"
    )
    axes.grid(alpha=0.3)
    figure.savefig(folder / "scheduler.png", format="png")
    lines = ["# Scheduling at scale", "", (__doc__ or "").split("\n\n", 1)[1].strip(), ""]
    lines += ["| measured | value | limit |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.2f} | {LIMITS[name][0] if name in LIMITS else ''} |"
        for name, value in found.items()
    ]
    lines += [
        "",
        "![growth](scheduler.png)",
        "",
        "| queued jobs | ms per placed job |",
        "|---|---|",
    ]
    lines += [f"| {count} | {ms:.3f} |" for count, ms in growth]
    for name, plan in told.items():
        lines += ["", f"## {name}", "", "```", plan, "```"]
    (folder / "scheduler.md").write_text("\n".join(lines) + "\n", "utf-8")


def measure(folder: Path, options: Any) -> dict[str, float]:
    """Run the scenes with data in `folder`."""
    settings = load_settings(data_dir=folder / "data", state_dir=folder / "state")
    url = ensure_server(settings)
    found: dict[str, float] = {}

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
        found["growth_ratio"] = growth[-1][1] / growth[0][1]
        found["flood_slows_percent"] = flooded(url, settings, options)
        one = side_by_side(url, settings, options, 1)
        four = side_by_side(url, settings, options, 4)
        found["one_per_s"], found["four_per_s"] = one["per_s"], four["per_s"]
        found["four_beside_one"] = four["per_s"] / one["per_s"]
        found["dispatcher_mb"] = max(one["mb"], four["mb"])
        found["broken_invariants"] = one["broken"] + four["broken"]
        found["scans_of_all_jobs"] = float(
            sum("Seq Scan on jobs" in plan for plan in told.values())
        )
        write_report(options.to, found, growth, told, options)
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-scheduler-") as folder:
        found = measure(Path(folder), options)
    if options.json:
        print(json.dumps(found))
    bad = []
    for name, value in found.items():
        limit, more = LIMITS.get(name, (None, True))
        fine = limit is None or (value >= limit if more else value <= limit)
        bad += [] if fine else [name]
        told = "" if limit is None else f"  (limit {limit:g}{'' if fine else ', BROKEN'})"
        if not options.json:
            print(f"{name:22} {value:10.2f}{told}")
    print(f"report: {options.to / 'scheduler.md'}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
