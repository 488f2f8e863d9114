"""`remuda profile`: named templates that pools are made from."""

from __future__ import annotations

import json
from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, print_details, print_json, print_rows
from remuda.cli.pool_elastic import elastic_changes
from remuda.cli.pool_options import fields_of, pool_options
from remuda.cli.types import json_option

_COLUMNS = [
    Column("PROFILE", "name"),
    Column("PROVIDER", "provider"),
    Column("IMAGE", "image"),
    Column("POOLS", "pools", right=True),
    Column("DESCRIPTION", "description"),
]


@click.command("create", cls=Command, short_help="Store a template of pools.")
@click.argument("name")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option(
    "--provider", default="local", show_default=True, metavar="KIND", help="Who makes the VMs."
)
@click.option(
    "--backend", metavar="KIND", help="How jobs are run on them.  [default: the provider's way]"
)
@click.option(
    "--image", default="default", show_default=True, metavar="IMAGE", help="What VMs are made of."
)
@click.option("--replace", is_flag=True, help="In place of one of the same name.")
@pool_options
def create(
    name: str,
    description: str,
    provider: str,
    backend: str | None,
    image: str,
    replace: bool,
    **options: Any,
) -> None:
    """Store a template of pools: settings, but no names, resources and secrets.

    \b
        remuda profile create big --slots-per-vm 16 --constraint min_memory_bytes=68719476736
        remuda pool create sim --profile big --max-slots 64

    Pools keep what they were made with when their profile is replaced or deleted.
    """
    fields = {**fields_of(options), **elastic_changes(options)}
    with connect.open_client() as client:
        client.create_profile(
            name,
            description=description,
            provider=provider,
            backend=backend,
            image=image,
            replace=replace,
            **fields,
        )
    click.echo(f"profile {name} is stored")


@click.command("list", cls=Command, short_help="List profiles.")
@json_option
def list_profiles(as_json: bool) -> None:
    """List profiles, with the open pools made from each."""
    with connect.open_client() as client:
        found = client.profiles()
    print_rows(_COLUMNS, found, as_json=as_json)


@click.command("show", cls=Command, short_help="Show all of one profile.")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what pools of a profile are made with."""
    with connect.open_client() as client:
        found = client.profile(name)
    if as_json:
        print_json([found])
        return
    pairs = [(key, found[key]) for key in ("name", "description", "provider", "backend", "image")]
    fields = [(key, json.dumps(value)) for key, value in sorted(found["fields"].items())]
    print_details([*pairs, *fields])


@click.command("delete", cls=Command, short_help="Remove a profile.")
@click.argument("name")
def delete(name: str) -> None:
    """Remove a profile; pools made from it stay as they are."""
    with connect.open_client() as client:
        client.delete_profile(name)
    click.echo(f"profile {name} is removed")
