"""`remuda image`: what VMs are made of, and whether any may be launched from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, print_details, print_json, print_rows
from remuda.cli.types import json_option

_COLUMNS = [
    Column("ID", "id", right=True),
    Column("PROVIDER", "provider"),
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("VMS", "live_vms", right=True),
    Column("VALIDATED", "validated_at"),
    Column("MESSAGE", "message"),
]
_STATES = click.Choice(("NEW", "VALIDATED", "ERROR"), case_sensitive=False)


def _key(image: str) -> int | str:
    return int(image) if image.isascii() and image.isdigit() and len(image) < 19 else image


@click.command("list", cls=Command, short_help="List images.")
@click.option("--provider", metavar="KIND", help="Only those of this provider.")
@click.option("--state", "states", type=_STATES, multiple=True, help="Only those. Repeatable.")
@json_option
def list_images(provider: str | None, states: tuple[str, ...], as_json: bool) -> None:
    """List images; VMS: how many there are of it now."""
    given: dict[str, Any] = {"provider": provider} if provider else {}
    if states:
        given["state"] = list(states)
    with connect.open_client() as client:
        found = [asdict(image) for image in client.images(sort="provider,name", **given)]
    print_rows(_COLUMNS, found, as_json=as_json)


@click.command("show", cls=Command, short_help="Show all about one image.")
@click.argument("image", metavar="ID|NAME")
@json_option
def show(image: str, as_json: bool) -> None:
    """Show all about an image."""
    with connect.open_client() as client:
        record = asdict(client.image(_key(image)))
    if as_json:
        print_json([record])
        return
    print_details(
        [
            ("image", record["id"]),
            ("provider", record["provider"]),
            ("name", record["name"]),
            ("state", record["state"]),
            ("message", record["message"]),
            ("VMs now", record["live_vms"]),
            ("VMs ever", record["vms"]),
            ("validated", record["validated_at"]),
            ("in this state since", record["state_changed_at"]),
            ("first named", record["created_at"]),
        ]
    )


@click.command("mark-error", cls=Command, short_help="Have no VM launched from an image.")
@click.argument("image", metavar="ID|NAME")
@click.option("--message", required=True, help="Why; shown wherever it is refused.")
def mark_error(image: str, message: str) -> None:
    """Have no VM launched from an image any more; those there are go on."""
    with connect.open_client() as client:
        client.mark_image_error(_key(image), message)
    click.echo(f"image {image} is in ERROR: no VM is launched from it")


@click.command("reset", cls=Command, short_help="Let VMs be launched from an image again.")
@click.argument("image", metavar="ID|NAME")
def reset(image: str) -> None:
    """Bring an image from ERROR back to NEW: VMs may be launched from it again."""
    with connect.open_client() as client:
        client.reset_image(_key(image))
    click.echo(f"image {image} is NEW")
