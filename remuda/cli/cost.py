"""`remuda cost` and `remuda budget`: what was spent, on what, and how much may be."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.history import When
from remuda.cli.output import Column, Row, print_rows
from remuda.cli.types import json_option


def _money(key: str) -> Column:
    return Column(
        key.upper().replace("_", " "), lambda row: f"{row.get(key) or 0.0:.4f}", right=True
    )


def _hours(key: str) -> Column:
    return Column(key.upper().replace("_", " "), lambda row: f"{row[key]:.3f}", right=True)


def _idle(row: Row) -> str:
    return f"{max(0.0, row['cost'] - row['jobs_cost'] - row['leases_cost']):.4f}"


_USED = [_money("jobs_cost"), _money("leases_cost"), Column("IDLE COST", _idle, right=True)]
_COLUMNS = {
    "pool": [
        Column("POOL", "pool"),
        Column("VMS", "vms", right=True),
        _hours("vm_hours"),
        _hours("unpriced_hours"),
        _money("cost"),
        *_USED,
    ],
    "owner": [
        Column("OWNER", "owner"),
        Column("JOBS", "jobs", right=True),
        _hours("slot_hours"),
        _money("cost"),
        _money("jobs_cost"),
        _money("leases_cost"),
    ],
    "vm": [
        Column("VM", "vm"),
        Column("POOL", "pool"),
        Column("STATE", "state"),
        Column("PRICE", "price", right=True),
        _hours("vm_hours"),
        _hours("unpriced_hours"),
        _money("cost"),
        *_USED,
    ],
    "job": [
        Column("JOB", "id", right=True),
        Column("NAME", "name"),
        Column("OWNER", "owner"),
        Column("POOL", "pool"),
        Column("STATE", "state"),
        Column("ATTEMPTS", "attempts", right=True),
        _hours("slot_hours"),
        _money("cost"),
    ],
    "attempt": [
        Column("ATTEMPT", "id", right=True),
        Column("JOB", "job", right=True),
        Column("EPOCH", "epoch", right=True),
        Column("VM", "vm"),
        Column("STATE", "state"),
        _hours("slot_hours"),
        _money("cost"),
    ],
}


@click.command("cost", cls=Command, short_help="Show what pools, owners, VMs and jobs cost.")
@click.option(
    "--by", type=click.Choice(list(_COLUMNS)), default="pool", show_default=True, help="Of each."
)
@click.option("--since", type=When(), default="30d", show_default=True, help="From when on.")
@click.option("--until", type=When(zero=True), default="0s", help="Up to when. Default: now.")
@click.option("--pool", metavar="POOL", help="Only of this pool.")
@click.option("--owner", metavar="OWNER", help="Only of this owner's jobs and leases.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@json_option
def cost(
    by: str,
    since: datetime | timedelta,
    until: datetime | timedelta,
    pool: str | None,
    owner: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show what pools, owners, VMs, jobs or attempts cost, the dearest first.

    \b
        remuda cost --since 7d
        remuda cost --by job --owner alice --limit 10

    A VM costs the price of its offer from when it was asked for until it was gone; a job its share
    of the slots of VMs while it ran. What no price is known of is counted as 0: UNPRICED HOURS
    tells of how many hours of VMs that is so.
    """
    with connect.open_client() as client:
        found = client.costs(by, since=since, until=until, pool=pool, owner=owner, limit=limit)
    print_rows(_COLUMNS[by], found, as_json=as_json)


def _level(key: str) -> Column:
    return Column(
        key.upper(), lambda row: "" if row[key] is None else f"{row[key]:.12g}", right=True
    )


_BUDGETS = [
    Column("OF", lambda row: "owner" if row["owner"] else "pool"),
    Column("NAME", lambda row: row["owner"] or row["pool"]),
    Column("IN POOL", lambda row: (row["pool"] or "") if row["owner"] else ""),
    Column("PERIOD", "period"),
    Column("SPENT", lambda row: f"{row['spent']:.4f}", right=True),
    _level("warn"),
    _level("stop"),
    Column("LEVEL", "level"),
    Column("CHECKED", "checked_at"),
]


@click.command("list", cls=Command, short_help="List budgets.")
@json_option
def list_budgets(as_json: bool) -> None:
    """List the budgets of pools, owners and owners in pools, and what was spent in the present period."""
    with connect.open_client() as client:
        found = client.budgets()
    print_rows(_BUDGETS, found, as_json=as_json)


_WHOSE = [
    click.option(
        "--pool",
        metavar="POOL",
        help="Of this pool: all that its VMs cost, or (--owner) that part.",
    ),
    click.option("--owner", metavar="OWNER", help="Of this owner: the share of jobs and leases."),
]


@click.command("set", cls=Command, short_help="Set a budget, with levels to warn and to stop.")
@_WHOSE[0]
@_WHOSE[1]
@click.option(
    "--period",
    type=click.Choice(["day", "week", "month", "total"]),
    default="month",
    show_default=True,
    help="Begins anew each (UTC; weeks on Monday).",
)
@click.option("--warn", type=float, metavar="AMOUNT", help="From there on it is told.")
@click.option("--stop", type=float, metavar="AMOUNT", help="From there on nothing new is begun.")
def set_(
    pool: str | None, owner: str | None, period: str, warn: float | None, stop: float | None
) -> None:
    """Limit what a pool, an owner, or (both named) an owner in a pool spends.

    \b
        remuda budget set --pool cloud --period month --warn 80 --stop 100
        remuda budget set --owner alice --period day --stop 5
        remuda budget set --owner alice --pool cloud --period day --stop 2

    From --stop on nothing more of theirs is placed or launched (of an owner in a pool: there), and
    `explain` says so, until the next period or a higher budget. What runs goes on. Of a group its
    members' spend counts together.
    """
    with connect.open_client() as client:
        client.set_budget(pool=pool, owner=owner, period=period, warn=warn, stop=stop)
    click.echo(f"budget of {_whose(pool, owner)} is set")


@click.command("remove", cls=Command, short_help="Remove a budget.")
@_WHOSE[0]
@_WHOSE[1]
def remove(pool: str | None, owner: str | None) -> None:
    """Remove a budget; what it stopped goes on. Of an owner in a pool: name both."""
    with connect.open_client() as client:
        there = client.remove_budget(pool=pool, owner=owner)
    whose = _whose(pool, owner)
    click.echo(f"budget of {whose} is removed" if there else f"{whose} had no budget")


def _whose(pool: str | None, owner: str | None) -> str:
    if owner is None:
        return f"pool {pool}"
    return f"owner {owner}" if pool is None else f"owner {owner} in pool {pool}"
