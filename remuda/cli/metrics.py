"""`remuda metrics`: serve metrics to Prometheus, or print them once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from remuda.cli.base import Command

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

    from remuda.config import Settings


@click.command("metrics", cls=Command, short_help="Serve metrics to Prometheus.")
@click.option(
    "--listen",
    default="127.0.0.1:9808",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to serve /metrics, to whoever asks.",
)
@click.option("--once", is_flag=True, help="Print them and end.")
@click.option(
    "--only-processes",
    is_flag=True,
    help="Leave out database and broker: for further hosts with workers.",
)
@click.option(
    "--cache",
    "cache_s",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    help="Seconds for which what was read of database and broker is served again.",
)
@click.option(
    "--max-owners",
    type=click.IntRange(0, 10_000),
    default=50,
    show_default=True,
    help="Owners with series of their own; the others are added up as 'other'.",
)
@click.option(
    "--max-pools",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="Pools with series of their own, open and new ones first.",
)
def metrics(
    listen: str, once: bool, only_processes: bool, cache_s: float, max_owners: int, max_pools: int
) -> None:
    """Serve metrics to Prometheus in the foreground.

    Everything that is in the database is read from it, so one for a system is enough, and several
    say the same. Durations of sweeps and placements are those of the workers that share this
    machine's state directory. docs/metrics.md lists all, docs/runbook.md the alerts.
    """
    from remuda.config import load_settings
    from remuda.tasks.serving import address

    settings = load_settings()
    host, port = address(listen)
    registry = make_registry(
        settings,
        only_processes=only_processes,
        cache_s=cache_s,
        max_owners=max_owners,
        max_pools=max_pools,
    )
    if once:
        from prometheus_client import generate_latest

        sys.stdout.write(generate_latest(registry).decode())
        return
    serve(registry, host, port)


def make_registry(
    settings: Settings, *, only_processes: bool, cache_s: float, max_owners: int, max_pools: int
) -> CollectorRegistry:
    """Return what is served; raises RemudaError when there is no database with this schema."""
    from remuda.tasks.serving import of_processes

    registry = of_processes(settings.state_dir)
    if only_processes:
        return registry
    from remuda import system
    from remuda.cli import health
    from remuda.metrics.collector import SystemCollector
    from remuda.models.database import make_engine

    engine = make_engine(system.bring_up(settings, processes=False), pool_size=1)
    whole = SystemCollector(
        engine,
        lambda: health.check_broker(settings),
        cache_s=cache_s,
        most_owners=max_owners,
        most_pools=max_pools,
    )
    registry.register(whole)
    return registry


def serve(registry: CollectorRegistry, host: str, port: int) -> None:
    """Serve until interrupted; raises BadInput when the address cannot be listened on."""
    from remuda.tasks.serving import listen

    server, thread = listen(registry, host, port)
    click.echo(f"metrics on http://{host}:{server.server_port}/metrics", err=True)
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()
