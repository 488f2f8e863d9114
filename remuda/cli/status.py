"""`remuda status`: what runs, what answers, how much there is to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import health
from remuda.cli.base import Command
from remuda.cli.output import (
    Column,
    cell,
    count,
    format_duration,
    format_size,
    print_json,
    print_rows,
)
from remuda.cli.types import json_option
from remuda.errors import RemudaError

if TYPE_CHECKING:
    from remuda.config import Settings

_PING_S = 1.0
_COLUMNS = [
    Column("PROCESS", "name"),
    Column("STATE", lambda row: "up" if row["running"] else "down"),
    Column("PID", lambda row: row["pid"] or None, right=True),
    Column(
        "MEMORY", lambda row: format_size(row["memory_bytes"]) if row["pid"] else "", right=True
    ),
    Column("CPU", lambda row: format_duration(row["cpu_s"]) if row["cpu_s"] else "", right=True),
]


@click.command("status", cls=Command, short_help="Show processes, services and counts.")
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show this machine's processes, the database, the broker, and jobs and VMs by state.

    Exits with 0 when all is up, else with 1. Starts nothing.
    """
    from remuda.config import load_settings

    found = gather(load_settings())
    if as_json:
        print_json([found])
    else:
        _print(found)
    ctx.exit(0 if found["up"] else 1)


def gather(settings: Settings) -> dict[str, Any]:
    """Return all there is to show; `up` says whether everything that should be is."""
    processes = health.processes(settings)
    database: dict[str, Any] = {"up": False, "embedded": settings.embedded, "error": None}
    broker: dict[str, Any] = {"up": False, "url": health.broker_url(settings), "error": None}
    jobs: dict[str, int] = {}
    vms: dict[str, int] = {}
    sweep_age_s = None
    try:
        with health.database(settings) as engine:
            database["url"] = health.safe_url(str(engine.url))
            health.check_schema(engine)
            jobs, vms = (dict(found) for found in health.counts(engine))
            sweep_age_s = health.last_sweep_age_s(engine)
            database["up"] = True
    except RemudaError as error:
        database["error"] = error.message
    try:
        health.check_broker(settings)
        broker["up"] = True
    except RemudaError as error:
        broker["error"] = error.message
    sweeping = sweep_age_s is not None and sweep_age_s < health.SWEEP_LATE_S
    # A worker and a beat must be at work: here, or on another machine of a shared system.
    at_work = all(p.running for p in processes)
    if not (at_work or settings.embedded) and sweeping and broker["up"]:
        at_work = bool(health.ping_workers(timeout_s=_PING_S))
    return {
        "up": bool(database["up"] and broker["up"] and at_work),
        "processes": [asdict(process) for process in processes],
        "memory_bytes": sum(process.memory_bytes for process in processes),
        "database": database,
        "broker": broker,
        "last_sweep_age_s": sweep_age_s,
        "jobs": jobs,
        "vms": vms,
    }


def _print(found: dict[str, Any]) -> None:
    print_rows(_COLUMNS, found["processes"], as_json=False)
    click.echo()
    for name in ("database", "broker"):
        service = found[name]
        state = "up  " if service["up"] else "down"
        click.echo(f"{name:<9} {state}  {cell(service['error'] or service.get('url', ''))}")
    click.echo(f"{'jobs':<9} {_counted(found['jobs'], 'job')}")
    click.echo(f"{'VMs':<9} {_counted(found['vms'], 'VM')}")
    if not found["up"]:
        click.echo("not everything is up; `remuda up` starts it, `remuda doctor` looks closer")


def _counted(states: dict[str, int], noun: str) -> str:
    total = count(sum(states.values()), noun)
    parts = ", ".join(f"{number} {state}" for state, number in states.items() if number)
    return f"{total}: {parts}" if parts else f"no {noun}s"
