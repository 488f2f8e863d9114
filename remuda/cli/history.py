"""`remuda history`: metrics over time, plotted in the terminal or as PNG, or as JSON or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, format_time, print_json, print_rows
from remuda.cli.types import DURATION, Duration, json_option

if TYPE_CHECKING:
    from remuda.client.history import History

OVERVIEW = ("running_vms", "waiting_jobs", "running_jobs", "ended_jobs", "utilisation", "wait_s")


class When(Duration):
    """How long ago (`2h`), or when (`2026-01-31T12:00`; UTC unless it says otherwise)."""

    name = "ago|time"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Return a timedelta or a datetime with a time zone."""
        if isinstance(value, (datetime, timedelta)):
            return value
        try:
            found = datetime.fromisoformat(value.strip()[:40])
        except ValueError:
            return timedelta(seconds=super().convert(value, param, ctx))
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def complaint(self, text: str) -> str:
        """Return that it is neither, and what is wrong with what looks like a time."""
        why = ""
        try:
            datetime.fromisoformat(text[:40])
        except ValueError as error:
            why = "" if str(error).startswith("Invalid isoformat") else f": {error}"
        return (
            "is neither a duration such as 90s, 10m, 1h30m or 2d"
            f" nor a time such as 2026-01-31T12:00{why}"
        )


@click.command("history", cls=Command, short_help="Plot VMs and jobs over time.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="What to show; `list` tells all. Repeatable. Default: an overview.",
)
@click.option("--by", metavar="FIELD", help="One line each: pool, image, provider, owner, state.")
@click.option("--since", type=When(), default="1h", show_default=True, help="From when on.")
@click.option("--until", type=When(zero=True), default="0s", help="Up to when. Default: now.")
@click.option("--bucket", type=DURATION, help="Width of a point. Default: about 100 points.")
@click.option("--pool", "pools", metavar="POOL", multiple=True, help="Of this pool. Repeatable.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--plot", is_flag=True, help="Plot, also where there is no terminal.")
@json_option
def history(
    metrics: tuple[str, ...],
    by: str | None,
    since: datetime | timedelta,
    until: datetime | timedelta,
    bucket: float | None,
    pools: tuple[str, ...],
    png: Path | None,
    as_csv: bool,
    plot: bool,
    as_json: bool,
) -> None:
    """Show VMs and jobs over time, in UTC: a plot on a terminal, a table in a pipe.

    \b
        remuda history --since 2h --bucket 1m
        remuda history --metric running_vms --by pool --since 1d --png vms.png
        remuda history --metric list
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if "list" in metrics:
        _print_metrics(as_json=as_json)
        return
    width = None if bucket is None else int(bucket) if bucket == int(bucket) else bucket
    with connect.open_client() as client:
        found = [
            client.history(
                metric,
                by=_by(metric, by, asked=bool(metrics)),
                since=since,
                until=until,
                bucket_s=width,  # type: ignore[arg-type]  # the client says what is wrong
                pool=list(pools) or None,
            )
            for metric in metrics or OVERVIEW
        ]
    if png is not None:
        _write_png(found, png)
    if as_json:
        print_json([_record(one) for one in found])
    elif as_csv:
        _print_csv(found)
    elif plot or (sys.stdout.isatty() and png is None):
        from remuda.cli.plotting import terminal_plot

        click.echo("\n\n".join(terminal_plot(one, colour=sys.stdout.isatty()) for one in found))
    elif png is None:
        _print_tables(found)


def _by(metric: str, by: str | None, *, asked: bool) -> str | None:
    """Return how a metric is divided; in the overview only where that can be."""
    from remuda.models.history import METRICS

    if asked or by is None or by in METRICS[metric].by:
        return by
    return None


def _record(history: History) -> dict[str, Any]:
    return {
        "metric": history.metric,
        "unit": history.unit,
        "by": history.by,
        "bucket_s": history.bucket_s,
        "points": list(history.rows()),
    }


def _print_metrics(*, as_json: bool) -> None:
    from remuda.models.history import METRICS

    found = [
        {
            "metric": name,
            "unit": metric.unit,
            "values": list(metric.values),
            "by": list(metric.by),
            "help": metric.help,
        }
        for name, metric in METRICS.items()
    ]
    headings = ("metric", "unit", "values", "by", "help")
    print_rows([Column(name.upper(), name) for name in headings], found, as_json=as_json)


def _print_csv(found: Sequence[History]) -> None:
    rows = [
        {**row, "metric": one.metric, "time": row["time"].isoformat().replace("+00:00", "Z")}
        for one in found
        for row in one.rows()
    ]
    names = dict.fromkeys(["metric", "time", *(name for row in rows for name in row)])
    writer = csv.DictWriter(sys.stdout, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _print_tables(found: Sequence[History]) -> None:
    for number, one in enumerate(found):
        click.echo(f"{'' if number == 0 else chr(10)}{one.metric}: {one.help} ({one.unit})")
        told = list(next(iter(one.series.values()), {}))
        columns = [Column("TIME", lambda row: format_time(row["time"]))]
        columns += [Column(one.by.upper(), one.by)] if one.by else []
        columns += [Column(name.upper(), name, right=True) for name in told]
        print_rows(columns, one.rows(), as_json=False)


def _write_png(found: Sequence[History], path: Path) -> None:
    from remuda.errors import ConfigError

    try:
        from remuda.cli.plotting import write_png

        write_png(found, path)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "numpy", "PIL"):
            raise
        raise ConfigError(
            "a picture needs the package matplotlib", hint="pip install 'remuda[plot]'"
        ) from None
    click.echo(f"wrote {path}", err=True)
