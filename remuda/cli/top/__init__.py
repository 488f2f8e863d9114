"""`remuda top`: pools, VMs and jobs, live on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.types import DURATION, json_option
from remuda.errors import ConfigError

if TYPE_CHECKING:
    from remuda.client import Client

__all__ = ["top"]

_ONCE = 20  # jobs that run, that wait, and that have ended


@click.command("top", cls=Command, short_help="Watch pools, VMs and jobs live.")
@click.option(
    "--interval", type=DURATION, default="1s", show_default=True, help="How often to look."
)
@click.option("--pool", metavar="POOL", help="Begin with this pool.")
@click.option("--once", is_flag=True, help="Print what there is now, and end.")
@json_option
def top(interval: float, pool: str | None, once: bool, as_json: bool) -> None:
    """Watch pools, VMs, jobs and throughput live; look into a pool, VM or job with Enter.

    \b
    1 2 3    pools, VMs, jobs        Enter    look into it       Esc      back
    l        follow a job's output   e        why is it so       c        cancel a job
    d        drain a VM              /        find by name       space    pause
    q        leave

    Without a terminal, and with --once or --json, it prints once what it would show.
    """
    if interval < 0.1:
        raise click.UsageError("--interval is at least 0.1 s")
    with connect.open_client() as client:
        pool_id = client.pool(pool).id if pool is not None else None
        if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _print(client, pool_id, as_json=as_json)
        else:
            _watch(client, pool_id, pool, interval_s=interval)


def _print(client: Client, pool_id: int | None, *, as_json: bool) -> None:
    from remuda.cli.output import print_json
    from remuda.cli.top import tables

    with client.lookout() as lookout:
        seen = lookout.look(pool_id=pool_id, limit=_ONCE)
    if as_json:
        print_json([tables.record(seen)])
        return
    click.echo(tables.headline(seen))
    for table in tables.TABLES:
        click.echo(f"\n{table.title}")
        table.print(seen)


def _watch(client: Client, pool_id: int | None, pool: str | None, *, interval_s: float) -> None:
    try:
        from remuda.cli.top.app import Top
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise ConfigError(
            "remuda top needs the package textual",
            hint="pip install 'remuda[top]', or `remuda top --once`",
        ) from None
    Top(client, interval_s=interval_s, pool_id=pool_id, pool=pool).run()
