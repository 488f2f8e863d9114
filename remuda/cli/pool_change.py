"""`remuda pool delete`, `update` and `confirm-loss`: what takes its time, with progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import count, note, printable
from remuda.cli.types import DURATION_OR_ZERO
from remuda.errors import WaitTimeout

if TYPE_CHECKING:
    from remuda.client import Pool

TIMED_OUT = 124  # as of timeout(1)


class _Progress:
    """One line on stderr each time there is something else to tell."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, text: str) -> None:
        if text != self._last:
            note(text)
            self._last = text

    def left(self, state: Mapping[str, Any]) -> None:
        parts = [count(state["vms"], "VM")] if state["vms"] else []
        parts += [count(state["unowned"], "machine") + " without a VM"] if state["unowned"] else []
        self.tell(f"left: {' and '.join(parts)}" if parts else "its provider is asked")

    def rollout(self, state: Mapping[str, Any]) -> None:
        total = state["current"] + state["outdated"]
        text = f"{state['running']} of {count(total, 'VM')} run from {state['image']}"
        if state["message"]:
            text += f"; a launch failed: {printable(state['message'])}"
        self.tell(text)


@click.command("delete", cls=Command, short_help="Delete a closed pool.")
@click.argument("name")
@click.option("--purge-results", is_flag=True, help="With what is stored of its jobs' results.")
@click.option("--purge-resources", is_flag=True, help="With the resources that are stored for it.")
@click.option("--no-wait", is_flag=True, help="Do not wait until nothing of it is left.")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Wait at most so long.")
@click.pass_context
def delete(
    ctx: click.Context,
    name: str,
    purge_results: bool,
    purge_resources: bool,
    no_wait: bool,
    timeout: float | None,
) -> None:
    """Delete a closed pool (or one never opened).

    Returns when its provider has confirmed that no machine of it is left. It goes on without you:
    with --no-wait, after the time is over (exit code 124), or after Ctrl-C.
    """
    with connect.open_client() as client:
        pool = client.pool(name)
        pool.delete(purge_resources, purge_results=purge_results)
        if no_wait:
            click.echo(f"pool {name} is being deleted")
            return
        try:
            pool.wait_deleted(timeout, on_progress=_Progress().left)
        except WaitTimeout as error:
            note(f"remuda: {error}")
            ctx.exit(TIMED_OUT)
    click.echo(f"pool {name} is deleted")


@click.command("update", cls=Command, short_help="Have a pool's VMs made of another image.")
@click.argument("name")
@click.option(
    "--image", required=True, metavar="IMAGE", help="What its VMs are made of from now on."
)
@click.option("--rolling", is_flag=True, help="Replace the VMs there are, a few at a time.")
@click.option(
    "--max-unavailable",
    type=click.IntRange(1),
    metavar="N",
    help="Rolling: so many VMs may be missing at a time.  [default: 1]",
)
@click.option("--no-wait", is_flag=True, help="Rolling: do not wait until it is done.")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Rolling: wait at most so long.")
@click.pass_context
def update(
    ctx: click.Context,
    name: str,
    image: str,
    rolling: bool,
    max_unavailable: int | None,
    no_wait: bool,
    timeout: float | None,
) -> None:
    """Have a pool's VMs made of another image.

    \b
        remuda pool update sim --image debian-13 --rolling --max-unavailable 2

    Without --rolling only new VMs are. With it old ones are drained and replaced, idle ones first:
    jobs end in peace. The update goes on without you: with --no-wait, after the time is over (exit
    code 124), after Ctrl-C, or a restart of everything. To turn it round, update to the old image.
    """
    if not rolling and (max_unavailable is not None or no_wait or timeout is not None):
        raise click.UsageError("--max-unavailable, --no-wait and --timeout are for --rolling")
    with connect.open_client() as client:
        pool = client.pool(name)
        pool.update_image(image, max_unavailable=(max_unavailable or 1) if rolling else None)
        if rolling and not no_wait and not _updated(pool, timeout):
            ctx.exit(TIMED_OUT)
        state = pool.rollout()
    if state["under_way"]:
        click.echo(f"pool {name} is being updated to {image}")
    elif rolling:
        click.echo(f"pool {name} is updated to {image}")
    else:
        click.echo(f"new VMs of pool {name} are made of {image}")


def _updated(pool: Pool, timeout: float | None) -> bool:
    try:
        pool.wait_updated(timeout, on_progress=_Progress().rollout)
    except WaitTimeout as error:
        note(f"remuda: {error}")
        return False
    return True


@click.command(
    "confirm-loss", cls=Command, short_help="Believe that most of a frozen pool's VMs are gone."
)
@click.argument("name")
def confirm_loss(name: str) -> None:
    """Believe what a provider says of a pool that is frozen: that most of its VMs are gone.

    Nothing is done about such news until they are confirmed by you, or by a second look a while
    later. The VMs' jobs are then placed anew, and the pool makes other VMs.
    """
    with connect.open_client() as client:
        client.pool(name).confirm_loss()
    click.echo(f"the loss of pool {name} is confirmed")
