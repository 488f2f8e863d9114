"""`remuda pool logs`: the output of preparations, and the logs of runners."""

from __future__ import annotations

import sys
import time

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import write_whole

_PAUSE_S = 0.5  # between two looks for what is new
_OVER = ("CLOSED", "PENDING_DELETE")


@click.command("logs", cls=Command, short_help="Print what a pool's VMs say, live with -f.")
@click.argument("name")
@click.option("--vm", metavar="ID|NAME", help="Of this VM only, also one that is gone.")
@click.option("--stderr", is_flag=True, help="Its stderr, and the log of its runner.")
@click.option("--fresh", is_flag=True, help="What nobody has read as fresh yet.")
@click.option(
    "-f", "--follow", is_flag=True, help="As --fresh, and go on until the pool is closed."
)
def logs(name: str, vm: str | None, stderr: bool, fresh: bool, follow: bool) -> None:
    """Print what the preparation command of a pool wrote on its VMs, the oldest VM first.

    Of each VM the last 128 KiB of each stream are kept.
    """
    instance = int(vm) if vm is not None and vm.isascii() and vm.isdigit() else vm
    if fresh and follow:
        raise click.UsageError("--fresh does not go with --follow")
    out = sys.stdout.buffer
    with connect.open_client() as client:
        pool = client.pool(name)
        if not (fresh or follow):
            write_whole(out, pool.stderr(instance) if stderr else pool.stdout(instance))
            return
        while True:
            over = pool.update().state in _OVER
            write_whole(out, pool.fresh_stderr(instance) if stderr else pool.fresh_stdout(instance))
            if over or not follow:
                return
            time.sleep(_PAUSE_S)
