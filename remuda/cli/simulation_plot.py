"""Simulations as a picture: VMs, queue, waiting times and cost, one line for each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remuda.client.simulating import Simulated

_COLOURS = ("#6c757d", "#1f6feb")


def write_png(found: Sequence[Simulated], path: Path, *, title: str) -> None:
    """Write a picture of four panels, one below the other, over the time of the trace (UTC)."""
    from matplotlib import dates as untyped
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dates: Any = untyped
    figure = Figure(figsize=(11, 10.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(4, 1, sharex=True)
    figure.suptitle(title.replace("$", r"\$"), x=0.02, ha="left", fontsize=13)
    tones = _COLOURS[-len(found) :] if len(found) == 1 else _COLOURS
    for one, tone in zip(found, tones, strict=False):
        _draw(panels, one, tone)
    heads = (
        ("VMs, from being asked for to their end", "VMs"),
        ("Queue: jobs that wait", "jobs"),
        ("Waiting time of each job, by when it was submitted", "minutes"),
        ("Cost", "price units"),
    )
    for panel, (head, unit) in zip(panels, heads, strict=True):
        panel.set_title(head, loc="left", fontsize=11)
        panel.set_ylabel(unit)
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, color="0.88", linewidth=0.7)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        beside: Any = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        panel.legend(**beside, fontsize=9, frameon=False)
    locator = dates.AutoDateLocator(minticks=4, maxticks=9, tz=UTC)
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=UTC))
    panels[-1].set_xlabel("time of the trace (UTC)")
    figure.savefig(path, format="png")


def _draw(panels: Any, one: Simulated, tone: str) -> None:
    times = [one.start + timedelta(seconds=point[0]) for point in one.points]
    line = {"where": "post", "color": tone, "lw": 1.5, "label": one.name}
    panels[0].step(times, [point[1] for point in one.points], **line)
    panels[1].step(times, [point[4] for point in one.points], **line)
    panels[2].plot(
        [one.start + timedelta(seconds=at) for at, _ in one.waits],
        [wait / 60 for _, wait in one.waits],
        linestyle="none",
        marker=".",
        ms=3.5,
        color=tone,
        alpha=0.55,
        label=one.name,
    )
    at = [one.start + timedelta(seconds=second) for second, _ in one.costs]
    panels[3].plot(at, [cost for _, cost in one.costs], color=tone, lw=1.6, label=one.name)
