"""`remuda owner`: who there is, whose turn it is, and what they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, count, print_rows
from remuda.cli.types import json_option


def _quotas(row: Mapping[str, Any]) -> str:
    told = []
    for quota in row["quotas"]:
        where = f" in {quota['pool']}" if quota["pool"] else ""
        if quota["max_slots"] is not None:
            told.append(f"{count(quota['max_slots'], 'slot')}{where}")
        if quota["max_queued"] is not None:
            told.append(f"{quota['max_queued']} queued{where}")
        if quota.get("max_vms") is not None:
            told.append(f"{count(quota['max_vms'], 'VM')}{where}")
    return ", ".join(told)


_COLUMNS = [
    Column("OWNER", "name"),
    Column(
        "GROUP", lambda row: row["group"] or (f"{row['members']} in it" if row["members"] else "")
    ),
    Column("WEIGHT", lambda row: f"{row['weight']:g}", right=True),
    Column("USED", lambda row: f"{row['usage_slot_s'] / 3600:.2f} h", right=True),
    Column("SLOTS", "slots", right=True),
    Column("QUEUED", "queued", right=True),
    Column("QUOTAS", _quotas),
    Column("VMS", "vms", right=True),
    Column("MAX VMS", lambda row: "" if row["max_vms"] is None else row["max_vms"], right=True),
    Column("POOLS", "pools", right=True),
    Column(
        "MAX POOLS", lambda row: "" if row["max_pools"] is None else row["max_pools"], right=True
    ),
    Column("LEASES", "leases", right=True),
    Column("WAITING", "waiting", right=True),
]


@click.command("list", cls=Command, short_help="List owners.")
@json_option
def list_owners(as_json: bool) -> None:
    """List owners: their part, what they use and wait for, their limits.

    USED are slot-hours, of which half are forgotten after each half-life; WAITING are requests for
    leases. VMS of a group are those of its members together, each counted once.
    """
    with connect.open_client() as client:
        found = client.owners()
    print_rows(_COLUMNS, found, as_json=as_json)


@click.command("set", cls=Command, short_help="Set an owner's weight, group and limits.")
@click.argument("name")
@click.option(
    "--weight",
    type=float,
    metavar="W",
    help="Its part where several owners' jobs wait; 1 if not set.",
)
@click.option(
    "--group", metavar="OWNER", help="Whose weight and limits it shares with the members."
)
@click.option("--no-group", is_flag=True, help="In no group.")
@click.option("--max-slots", type=click.IntRange(0), metavar="N", help="Slots its jobs may have.")
@click.option("--no-max-slots", is_flag=True, help="Any number of slots.")
@click.option("--max-queued", type=click.IntRange(0), metavar="N", help="Jobs of it that may wait.")
@click.option("--no-max-queued", is_flag=True, help="Any number of waiting jobs.")
@click.option(
    "--pool", metavar="POOL", help="The limits of slots, waiting jobs and VMs are of this pool."
)
@click.option("--max-vms", type=click.IntRange(0), metavar="N", help="At most so many VMs at once.")
@click.option("--no-max-vms", is_flag=True, help="Any number of VMs.")
@click.option("--max-pools", type=click.IntRange(0), metavar="N", help="At most so many pools.")
@click.option("--no-max-pools", is_flag=True, help="Any number of pools.")
def set_(name: str, pool: str | None, weight: float | None, **given: Any) -> None:
    """Set an owner's part and what it may have; what is not named stays as it is.

    The limits of slots, waiting jobs and VMs hold in all pools together, or in one (--pool); those
    of a group for its members together, besides their own. VMs count while its leases or jobs are
    there; those that serve it alone until they are gone. Pools count until they are deleted. What
    it has stays.
    """
    changes: dict[str, Any] = {} if weight is None else {"weight": weight}
    for key in ("group", "max_slots", "max_queued", "max_vms", "max_pools"):
        option = key.replace("_", "-")
        if given[key] is not None and given[f"no_{key}"]:
            raise click.UsageError(f"say --{option}, or --no-{option}")
        if given[key] is not None or given[f"no_{key}"]:
            changes[key] = given[key]
    if not changes:
        raise click.UsageError(
            "say what to set: --weight, --group, --max-slots, --max-queued, --max-vms or --max-pools"
        )
    with connect.open_client() as client:
        client.set_owner(name, pool=pool, **changes)
    where = f" in pool {pool}" if pool else ""
    told = ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in changes.items())
    click.echo(f"owner {name}{where}: {told}")


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
