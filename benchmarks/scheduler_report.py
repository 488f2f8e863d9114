"""The report of `benchmarks.scheduler`: what was measured, a plot, and how PostgreSQL goes about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from remuda.models import dispatch, shapes, usage
from remuda.models.database import rows


def plans(engine: Engine) -> dict[str, str]:
    """Return how PostgreSQL goes about the queries for waiting jobs and for use."""
    with engine.begin() as connection:
        connection.execute(dispatch._NOW)
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
                                "shapes": [{"shape": head["shape"], "most": 5, "free": True}],
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
    growth: Sequence[tuple[int, float, float]],
    told: dict[str, str],
    options: Any,
    *,
    limits: Mapping[str, tuple[float, bool]],
    what: str,
) -> None:
    """Write scheduler.md and scheduler.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    counts = [count for count, _, _ in growth]
    axes.plot(counts, [ms for _, ms, _ in growth], marker="o", label="by the clock")
    axes.plot(counts, [ms for _, _, ms in growth], marker="o", label="processor time")
    axes.legend()
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("queued jobs")
    axes.set_ylabel("ms per placed job")
    axes.set_title(
        f"Placing on {options.vms} VMs of {options.pools} pools, jobs of {options.owners} owners"
    )
    axes.grid(alpha=0.3)
    figure.savefig(folder / "scheduler.png", format="png")
    lines = ["# Scheduling at scale", "", what, ""]
    lines += ["| measured | value | limit |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.2f} | {limits[name][0] if name in limits else ''} |"
        for name, value in found.items()
    ]
    lines += [
        "",
        "![growth](scheduler.png)",
        "",
        "| queued jobs | ms per placed job | of processor time |",
        "|---|---|---|",
    ]
    lines += [f"| {count} | {ms:.3f} | {cpu:.3f} |" for count, ms, cpu in growth]
    for name, plan in told.items():
        lines += ["", f"## {name}", "", "```", plan, "```"]
    (folder / "scheduler.md").write_text("\n".join(lines) + "\n", "utf-8")
