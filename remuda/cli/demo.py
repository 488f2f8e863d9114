"""`remuda demo`: a thin door to `remuda.demo`."""

from __future__ import annotations

from pathlib import Path

import click

from remuda.cli.base import Command


@click.command(
    "demo", cls=Command, short_help="Render a picture on an elastic pool, with live progress."
)
@click.option(
    "--tiles",
    type=click.IntRange(4, 1024),
    default=64,
    show_default=True,
    metavar="N",
    help="Tiles of the picture, a square number; each is a job.",
)
@click.option("--chaos", is_flag=True, help="Kill a VM half-way; its jobs run again.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the picture goes.  [default: remuda-demo]",
)
@click.pass_context
def demo(ctx: click.Context, tiles: int, chaos: bool, out: Path | None) -> None:
    """Render a picture on an elastic pool of this machine, one job a tile.

    Starts the embedded default when nothing is configured. Exits with 0 only if every tile is
    right and the pool is back at zero.
    """
    from remuda.demo import run

    ctx.exit(run(tiles=tiles, chaos=chaos, out=out))
