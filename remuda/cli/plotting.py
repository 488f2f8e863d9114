"""Histories as plots: in the terminal by plotext, as PNG by matplotlib. Times are UTC."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remuda.cli.output import printable

if TYPE_CHECKING:
    from remuda.client.history import History

MOST_LINES = 8  # of one plot; the smaller ones are left out, and counted
_HEIGHT = 14
_MAIN = ("avg", "sum", "p50")  # what is drawn of a key; of an undivided one its other values too
_COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#c2255c", "#0b7285", "#e8590c", "#5f3dc4")

Line = tuple[str, list[float | None]]


def lines_of(history: History) -> tuple[list[Line], int]:
    """Return what to draw, as (label, values), the largest first, and how many were left out."""
    if history.by is None:
        return [(name, values) for name, values in history.series[""].items() if name != "count"], 0
    found = [
        (printable(key)[:40] or "(none)", told[next(name for name in _MAIN if name in told)])
        for key, told in history.series.items()
    ]
    found.sort(key=lambda line: -sum(value or 0.0 for value in line[1]))
    return found[:MOST_LINES], max(0, len(found) - MOST_LINES)


def title_of(history: History) -> str:
    """Return what a plot is headed with."""
    divided = f", by {history.by}" if history.by else ""
    return f"{history.metric}: {history.help}{divided}"


def scaled(history: History, lines: Sequence[Line]) -> tuple[list[Line], str]:
    """Return the lines in a unit that reads well, and that unit."""
    if history.unit != "bytes":
        return list(lines), history.unit
    most = max((value or 0.0 for _, values in lines for value in values), default=0.0)
    power = next((n for n in (4, 3, 2, 1) if most >= 1024**n), 0)
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB")[power]
    size = 1024.0**power
    return [
        (name, [None if value is None else value / size for value in values])
        for name, values in lines
    ], unit


def terminal_plot(history: History, *, colour: bool = True) -> str:
    """Return a plot as lines of text, as wide as the terminal."""
    import plotext

    lines, left_out = lines_of(history)
    lines, unit = scaled(history, lines)
    known = [line for line in lines if any(value is not None for value in line[1])]
    if not known:
        return f"{title_of(history)}\n  nothing in this time"
    figure: Any = plotext.figure
    figure.clear()
    figure.theme("simple" if colour else "colorless")
    figure.plot_size(min(shutil.get_terminal_size((80, 24)).columns, 120), _HEIGHT)
    for name, values in known:
        there = [(n, value) for n, value in enumerate(values) if value is not None]
        signal = figure.signal([n for n, _ in there], [v for _, v in there], marker="braille")
        figure.draw(signal.lines().label(name))
    count = len(history.times)
    ticks = sorted({round(n * (count - 1) / 5) for n in range(6)})
    figure.ruler("x").ticks(ticks, [_clock(history, n) for n in ticks])
    figure.ruler("x").lim(0, max(1, count - 1))
    most = max(value for _, values in known for value in values if value is not None)
    figure.ruler("y").lim(0, most * 1.05 or 1)
    figure.title(f"{title_of(history)} [{unit}, UTC]")
    text = figure.build().string(not colour)
    more = f"\n  and {left_out} more, smaller" if left_out else ""
    return f"{text.rstrip()}{more}"


def _clock(history: History, number: int) -> str:
    span_s = history.bucket_s * len(history.times)
    shape = "%m-%d %H:%M" if span_s > 86400 else "%H:%M:%S" if span_s < 600 else "%H:%M"
    return history.times[number].strftime(shape)


def write_png(histories: Sequence[History], path: Path) -> None:
    """Write a picture with one panel for each history, one below the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.7 + 2.9 * len(histories)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(histories), 1, squeeze=False, sharex=True)[:, 0]
    for panel, history in zip(panels, histories, strict=True):
        _draw(panel, history)
    panels[-1].set_xlabel("time (UTC)")
    figure.savefig(path, format="png")


def _draw(axes: Any, history: History) -> None:
    from matplotlib import dates as untyped
    from matplotlib.ticker import MaxNLocator

    dates: Any = untyped
    lines, left_out = lines_of(history)
    lines, unit = scaled(history, lines)
    end = history.times[-1] + timedelta(seconds=history.bucket_s)
    edges = [*history.times, end]
    for number, (name, values) in enumerate(lines):
        shown = [float("nan") if value is None else value for value in values]
        tone = _COLOURS[number % len(_COLOURS)]
        label = name.replace("$", r"\$")
        if name in ("max", "p99"):
            axes.stairs(shown, edges, baseline=None, label=label, color=tone, lw=0.9, alpha=0.7)
        else:
            axes.stairs(shown, edges, baseline=None, label=label, color=tone, lw=1.6)
            if history.by is None and number == 0:
                axes.stairs(shown, edges, baseline=0, fill=True, color=tone, alpha=0.12)
    axes.set_title(title_of(history), loc="left", fontsize=11)
    axes.set_ylabel(unit)
    axes.set_xlim(history.times[0], end)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    locator = dates.AutoDateLocator(minticks=4, maxticks=9, tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=UTC))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=unit in ("VMs", "jobs", "slots")))
    title = f"and {left_out} more" if left_out else None
    if len(lines) > 1 or history.by:
        beside: Any = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(**beside, fontsize=8, frameon=False, title=title, title_fontsize=8)
