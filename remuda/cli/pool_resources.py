"""`remuda pool resources`: the files that every VM of a pool has."""

from __future__ import annotations

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, count, format_size, note, print_rows
from remuda.cli.types import Input, inputs_of, json_option

_COLUMNS = [
    Column("NAME", "name"),
    Column("SIZE", lambda row: format_size(row["size"]) if row["sha256"] else "", right=True),
    Column("URL", "url"),
    Column("VERSION", "version", right=True),
]


@click.command("resources", cls=Command, short_help="List a pool's resources, or add to them.")
@click.argument("name")
@click.argument("files", nargs=-1, type=Input(), metavar="[FILE]...")
@click.option("--update", is_flag=True, help="Have VMs look again at what is at URLs.")
@json_option
def resources(
    name: str, files: tuple[str | tuple[str, str], ...], update: bool, as_json: bool
) -> None:
    """List the files that every VM of a pool has in $REMUDA_RESOURCES, after adding those given.

    \b
        remuda pool resources sim model.bin tables/ a.csv=https://example.org/2.csv

    Files take the place of those of the same name. Running VMs get them soon, without a restart; jobs
    submitted with --wait-for-resources start when they are there. Nothing is taken away.
    """
    with connect.open_client() as client:
        pool = client.pool(name)
        if files or update:
            added = pool.update_resources(inputs_of(files))
            note(f"{count(added, 'resource')} new")
        found = pool.resources
    print_rows(_COLUMNS, found, as_json=as_json)
