"""`remuda lease`: look at leases and at who waits for one; release, renew and revoke them."""

from __future__ import annotations

from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, elapsed, format_duration, note, print_rows
from remuda.cli.types import DURATION, json_option
from remuda.errors import StaleHolder

_COLUMNS = [
    Column("ID", "id", right=True),
    Column("VM", "vm"),
    Column("POOL", "pool"),
    Column("OWNER", "owner"),
    Column("SANDBOX", "sandbox"),
    Column("SLOTS", "slots", right=True),
    Column("TASK", "task_id"),
    Column("BUILD", "build_id"),
    Column("HOLDER", "holder"),
    Column("HELD", lambda row: _held(row), right=True),
    Column("EXPIRES", "expires_at"),
    Column("ENDED", "ended"),
]
_WAITING = [
    Column("ID", "id", right=True),
    Column("OWNER", "owner"),
    Column("SANDBOX", "sandbox"),
    Column("POOLS", lambda row: ", ".join(row["pools"] or ())),
    Column("SLOTS", lambda row: "all" if row["slots"] is None else row["slots"], right=True),
    Column("PRIORITY", "priority", right=True),
    Column("TASK", "task_id"),
    Column("WAITS", lambda row: format_duration(elapsed(row["created_at"], None)), right=True),
    Column("UNTIL", "deadline_at"),
    Column("REASON", "reason"),
]
_TOKEN = click.option(
    "--token", required=True, envvar="REMUDA_LEASE_TOKEN", metavar="TOKEN", help="Of the lease."
)


@click.command("list", cls=Command, short_help="List leases.")
@click.option("--pool", metavar="POOL", help="Only those on VMs of this pool.")
@click.option("--owner", metavar="NAME", help="Only those of this owner.")
@click.option("--task-id", metavar="ID", help="Only those for this task.")
@click.option("--build-id", metavar="ID", help="Only those for this build.")
@click.option("--all", "ended", is_flag=True, help="Those that are over too.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, metavar="N")
@json_option
def list_leases(ended: bool, as_json: bool, **filters: Any) -> None:
    """List leases, oldest first; of more than --limit the newest."""
    with connect.open_client() as client:
        found = client.leases(all=ended, **filters)
    print_rows(_COLUMNS if ended else _COLUMNS[:-1], found, as_json=as_json)


@click.command("waiting", cls=Command, short_help="List who waits for a lease, and why.")
@json_option
def waiting(as_json: bool) -> None:
    """List who waits for a lease, in the order in which they are served, and what each waits for."""
    with connect.open_client() as client:
        found = client.lease_requests()
    print_rows(_WAITING, found, as_json=as_json)


@click.command("release", cls=Command, short_help="Give a lease back.")
@click.argument("lease_id", type=click.IntRange(1), metavar="ID")
@_TOKEN
def release(lease_id: int, token: str) -> None:
    """Give a lease back, by the token that came with it; REMUDA_LEASE_TOKEN will do.

    A second time is harmless; a token that never was the lease's is refused.
    """
    with connect.open_client() as client:
        if client.release_lease(lease_id, token):
            click.echo(f"lease {lease_id} is released")
            return
        if any(row["id"] == lease_id for row in client.leases()):
            raise StaleHolder(f"that is not the token of lease {lease_id}; it was left alone")
    note(f"lease {lease_id} was over")


@click.command("renew", cls=Command, short_help="Extend a lease.")
@click.argument("lease_id", type=click.IntRange(1), metavar="ID")
@_TOKEN
@click.option("--ttl", type=DURATION, default="15m", show_default=True, help="From now on.")
def renew(lease_id: int, token: str, ttl: float) -> None:
    """Extend a lease that was printed by `remuda acquire`; one that is over cannot be."""
    with connect.open_client() as client:
        client.renew_lease(lease_id, token, ttl_s=ttl)
    click.echo(f"lease {lease_id} lasts for {format_duration(ttl)}")


@click.command("revoke", cls=Command, short_help="End leases, whoever holds them.")
@click.argument("lease_ids", nargs=-1, required=True, type=click.IntRange(1), metavar="ID...")
def revoke(lease_ids: tuple[int, ...]) -> None:
    """End leases, whoever holds them: they are told at once, and their VMs go to others."""
    with connect.open_client() as client:
        for lease_id in lease_ids:
            client.revoke_lease(lease_id)
            click.echo(f"lease {lease_id} is revoked")


def _held(row: Any) -> str:
    return format_duration(elapsed(row["acquired_at"], row["released_at"]))
