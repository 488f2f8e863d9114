"""`remuda secret`: values for jobs that nobody else is to see."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, count, print_rows
from remuda.cli.types import json_option
from remuda.errors import BadInput

_MOST_BYTES = 1 << 20  # more is refused without being read
_COLUMNS = [
    Column("NAME", "name"),
    Column("POOLS", lambda row: ",".join(row["pools"])),
    Column("STORED", "updated_at"),
]


@click.command("put", cls=Command, short_help="Store a secret.")
@click.argument("name")
@click.option("--file", type=click.File("rb"), metavar="FILE", help="Where its value is.")
def put(name: str, file: BinaryIO | None) -> None:
    """Store a secret, in place of an older one of its name.

    \b
        remuda secret put DB_PASSWORD < password.txt
        remuda secret put DB_PASSWORD                     # asks for it

    The value is read from standard input or a file, never from the command line; one newline at its
    end is taken off. Jobs of pools that say so (`pool set --secret`) find it in the variable NAME.
    """
    if file is None and sys.stdin.isatty():
        value = click.prompt("value", hide_input=True, confirmation_prompt=True)
    else:
        value = _read(file or sys.stdin.buffer)
    with connect.open_client() as client:
        client.put_secret(name, value)
    click.echo(f"secret {name} is stored")


@click.command("list", cls=Command, short_help="List secrets, without their values.")
@json_option
def list_secrets(as_json: bool) -> None:
    """List your secrets and the open pools whose jobs are given them."""
    with connect.open_client() as client:
        found = client.secrets()
    print_rows(_COLUMNS, found, as_json=as_json)


@click.command("delete", cls=Command, short_help="Remove secrets.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(names: tuple[str, ...]) -> None:
    """Remove secrets. One that an open pool names is not removed."""
    with connect.open_client() as client:
        for name in names:
            client.delete_secret(name)
            click.echo(f"secret {name} is removed")


@click.command("init", cls=Command, short_help="Make a key ring, unless there is one.")
def init() -> None:
    """Make a file with a key that secrets are encrypted with, unless there is one.

    Every machine that stores secrets or runs workers needs the same file, of mode 0600.
    """
    with connect.open_client() as client:
        click.echo(client.init_secrets())


@click.command("rotate", cls=Command, short_help="Encrypt all secrets with a new key.")
@click.option("--prepare", "step", flag_value="prepare", help="Only add a new key, to be copied.")
@click.option("--finish", "step", flag_value="finish", help="Go over to the key that was copied.")
@click.option(
    "--reencrypt", "step", flag_value="reencrypt", help="Use the first key; add and drop none."
)
def rotate(step: str | None) -> None:
    """Encrypt the secrets of all owners with a new key and drop the old ones.

    Where several machines have the key ring: `--prepare` on one, copy its file to all, then
    `--finish` there, and copy it again.
    """
    with connect.open_client() as client:
        done = client.rotate_secrets(step or "all")  # type: ignore[arg-type]
    if step == "prepare":
        click.echo("a new key is added; copy the file to every machine, then rotate --finish")
    else:
        click.echo(f"{count(done, 'secret')} encrypted anew")


def _read(file: BinaryIO) -> str:
    data = file.read(_MOST_BYTES)
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise BadInput("the value of a secret must be text in UTF-8") from None
