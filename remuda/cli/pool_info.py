"""`remuda pool info`: keys and values that users keep with a pool."""

from __future__ import annotations

import json
from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import print_details, print_json
from remuda.cli.types import JsonValue, json_option


@click.command("info", cls=Command, short_help="Keep keys and values of your own with a pool.")
@click.argument("name")
@click.argument("pairs", nargs=-1, type=JsonValue(), metavar="[KEY=VALUE]...")
@json_option
def info(name: str, pairs: tuple[tuple[str, Any], ...], as_json: bool) -> None:
    """Show what is kept with a pool, after setting the pairs given; KEY=null removes one.

    Values that are JSON are kept as such.
    """
    with connect.open_client() as client:
        pool = client.pool(name)
        found = client.write_pool_info(pool, **dict(pairs)) if pairs else client.pool_info(pool)
    if as_json:
        print_json([found])
        return
    print_details([(key, _shown(found[key])) for key in sorted(found)])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
