"""`remuda pool simulate`: what a pool, as it is or with other settings, would do with a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, format_duration, print_json, print_rows
from remuda.cli.pool_elastic import elastic_changes
from remuda.cli.pool_sizing import PoliciesFile
from remuda.cli.types import DURATION, DURATION_OR_ZERO, SIZE, Assignment, json_option
from remuda.errors import BadInput, ConfigError

if TYPE_CHECKING:
    from remuda.client.simulating import Simulated
    from remuda.traces import Trace

_ROWS = {
    "jobs": ("jobs", "{:.0f}"),
    "ended": ("jobs ended", "{:.0f}"),
    "last_end_s": ("last one ended after", None),
    "wait_mean_s": ("wait, mean", None),
    "wait_p50_s": ("wait, median", None),
    "wait_p95_s": ("wait, 95 % within", None),
    "wait_max_s": ("wait, longest", None),
    "vms_max": ("VMs at most", "{:.0f}"),
    "vms_made": ("VMs made", "{:.0f}"),
    "launches_failed": ("of these failed", "{:.0f}"),
    "vm_hours": ("VM hours", "{:.2f}"),
    "utilisation": ("slots in use", "{:.0%}"),
    "cost": ("cost", "{:.2f}"),
    "grown": ("times it grew", "{:.0f}"),
    "shrunk": ("times it shrank", "{:.0f}"),
}
_SYNTHETIC = ("jobs", "span", "wall", "cores", "pattern", "seed")


@click.command("simulate", cls=Command, short_help="Try settings on a trace of jobs.")
@click.argument("name")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A .csv or .jsonl of jobs: submit_s or submitted_at, wall_s, cores, memory_bytes, priority,"
    " count.",
)
@click.option(
    "--synthetic",
    type=Assignment(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Jobs made up: jobs=500 span=8h wall=10m cores=1 pattern=daily|bursts|steady seed=1.",
)
@click.option("--from-history", is_flag=True, help="The jobs the pool has had. The default.")
@click.option("--since", type=DURATION, default="7d", show_default=True, help="Of these the last.")
@click.option("--policies", type=PoliciesFile(), metavar="FILE|JSON", help="Changed: policies.")
@click.option("--vms", type=click.IntRange(0), help="Changed: a fixed size.")
@click.option("--min-slots", type=click.IntRange(0), help="Changed: as of `pool set`, as are:")
@click.option("--max-slots", type=click.IntRange(1))
@click.option("--min-idle-slots", type=click.IntRange(0))
@click.option("--idle-time", type=DURATION_OR_ZERO)
@click.option("--resize-factor", type=click.FloatRange(0, 1, min_open=True))
@click.option("--resize-period", type=DURATION)
@click.option("--slots-per-vm", type=click.IntRange(1))
@click.option("--memory-per-vm", type=SIZE)
@click.option(
    "--boot", type=DURATION_OR_ZERO, help="What a VM takes to start.  [default: as its last]"
)
@click.option(
    "--price", type=click.FloatRange(0, 1e9), help="Of a VM for an hour.  [default: its offer's]"
)
@click.option(
    "--failing-launches",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="F",
    help="The share of VMs that fail to launch, by chance: 0.1.",
)
@click.option("--start", help="When the trace begins, an ISO time: what policies' clocks tell.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture.")
@json_option
def simulate(
    name: str,
    trace_file: Path | None,
    synthetic: tuple[tuple[str, str], ...],
    from_history: bool,
    since: float,
    boot: float | None,
    price: float | None,
    failing_launches: float,
    start: str | None,
    png: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Play a trace of jobs against a pool's present settings, and against changed ones.

    \b
        remuda pool simulate sim --from-history --since 7d --policies week.toml --png week.png
        remuda pool simulate sim --synthetic jobs=2000 --synthetic pattern=bursts --max-slots 40
        remuda pool simulate sim --trace jobs.csv --idle-time 10m --price 0.12

    The same functions decide as for real; nothing is changed. VMs, queue, waiting times and cost are
    told side by side, and drawn.
    """
    if (trace_file is not None) + bool(synthetic) + from_history > 1:
        raise click.UsageError("--trace, --synthetic and --from-history exclude each other")
    trace = _trace(trace_file, synthetic)
    with connect.open_client() as client:
        found = client.pool(name).simulate(
            trace,
            since_s=since,
            start=_start(start),
            boot_s=boot,
            price=price,
            failing_launches=failing_launches,
            **_changes(options),
        )
    if png is not None:
        _write_png(found, png, title=f"pool {name}")
    if as_json:
        print_json([{"name": one.name, "start": one.start, **one.summary} for one in found])
        return
    columns = [Column("", "what")]
    columns += [Column(one.name.upper(), one.name, right=True) for one in found]
    print_rows(columns, _rows(found), as_json=False)


def _rows(found: Sequence[Simulated]) -> list[dict[str, str]]:
    rows = []
    for key, (what, shape) in _ROWS.items():
        row = {"what": what}
        for one in found:
            value = one.summary[key]
            told = "" if value is None else shape.format(value) if shape else _duration(value)
            row[one.name] = told
        rows.append(row)
    return rows


def _duration(value: float) -> str:
    return format_duration(value) or "0s"


def _trace(path: Path | None, synthetic: Sequence[tuple[str, str]]) -> Trace | None:
    from remuda.traces import read_trace, synthetic_trace

    if path is not None:
        return read_trace(path)
    if not synthetic:
        return None
    given: dict[str, Any] = {}
    for key, value in synthetic:
        if key not in _SYNTHETIC:
            raise BadInput(
                f"--synthetic has no {key[:60]!r}", hint=f"keys: {', '.join(_SYNTHETIC)}"
            )
        if key in ("span", "wall"):
            given[f"{key}_s"] = DURATION.convert(value, None, None)
        elif key == "pattern":
            given[key] = value
        else:
            given[key] = int(value) if value.isascii() and value.isdigit() else value
    return synthetic_trace(**given)


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    changes = elastic_changes(options)
    named = {
        "policies": options["policies"],
        "instance_count": options["vms"],
        "slots_per_vm": options["slots_per_vm"],
        "memory_bytes_per_vm": options["memory_per_vm"],
    }
    return {**changes, **{key: value for key, value in named.items() if value is not None}}


def _start(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value.strip()[:40])
    except ValueError:
        raise BadInput(
            f"--start must be a time such as 2026-01-05T08:00, not {value[:60]!r}"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _write_png(found: Sequence[Simulated], path: Path, *, title: str) -> None:
    try:
        from remuda.cli.simulation_plot import write_png

        write_png(found, path, title=title)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "numpy", "PIL"):
            raise
        raise ConfigError(
            "a picture needs the package matplotlib", hint="pip install 'remuda[plot]'"
        ) from None
    click.echo(f"wrote {path}", err=True)
