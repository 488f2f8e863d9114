"""`remuda owner`: who there is, and how many VMs they may have."""

from __future__ import annotations

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, print_rows
from remuda.cli.types import json_option

_COLUMNS = [
    Column("OWNER", "name"),
    Column("VMS", "vms", right=True),
    Column("MAX VMS", lambda row: "" if row["max_vms"] is None else row["max_vms"], right=True),
    Column("LEASES", "leases", right=True),
    Column("WAITING", "waiting", right=True),
]


@click.command("list", cls=Command, short_help="List owners.")
@json_option
def list_owners(as_json: bool) -> None:
    """List owners with the VMs that serve them, their leases, and how many they wait for."""
    with connect.open_client() as client:
        found = client.owners()
    print_rows(_COLUMNS, found, as_json=as_json)


@click.command("set", cls=Command, short_help="Set an owner's limits.")
@click.argument("name")
@click.option("--max-vms", type=click.IntRange(0), metavar="N", help="At most so many VMs at once.")
@click.option("--no-max-vms", is_flag=True, help="Any number of VMs.")
def set_(name: str, max_vms: int | None, no_max_vms: bool) -> None:
    """Set how many VMs may serve an owner before it gets no more by leases.

    VMs count from their first lease or job for the owner until they are gone; those it has stay.
    """
    if (max_vms is None) != no_max_vms:
        raise click.UsageError("say --max-vms N, or --no-max-vms")
    with connect.open_client() as client:
        client.set_owner(name, max_vms=max_vms)
    click.echo(f"owner {name} may have {'any number of' if max_vms is None else max_vms} VMs")
