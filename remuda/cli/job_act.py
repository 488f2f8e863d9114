"""`remuda job cancel` and `retry`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import count, note
from remuda.cli.records import find_jobs
from remuda.cli.types import JOB_IDS, LIVE_JOB_STATES, ArrayPart
from remuda.errors import BadInput, Refused

if TYPE_CHECKING:
    from remuda.client import Client


@click.command("cancel", cls=Command, short_help="Cancel jobs.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--pool", metavar="POOL", help="Those of this pool.")
@click.option("--array", type=ArrayPart(), help="Those of this array, or of these indices of it.")
@click.option(
    "--state",
    "states",
    type=click.Choice(LIVE_JOB_STATES, case_sensitive=False),
    multiple=True,
    help="Those in this state. Repeatable.",
)
@click.option("--name", metavar="NAME", help="Those of this name; * is any text.")
@click.option("--tag", metavar="TAG", help="Those with this tag.")
@click.option("--owner", metavar="OWNER", help="Those of this owner.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@click.option("--yes", is_flag=True, help="Don't ask, whoever's and however many they are.")
def cancel(
    ids: tuple[tuple[int, ...], ...],
    pool: str | None,
    array: tuple[int, list[int] | None] | None,
    states: tuple[str, ...],
    name: str | None,
    tag: str | None,
    owner: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Cancel jobs: waiting ones at once, running ones are killed with all their processes.

    \b
        remuda job cancel 101..150 203
        remuda job cancel --array 12:0-49
        remuda job cancel --pool sim --state new --tag night

    Of the options all must hold. Those that name neither a pool nor an array reach far: they need
    --yes, or an answer. Jobs that have ended stay as they are.
    """
    wanted = list(itertools.chain.from_iterable(ids))
    filters: dict[str, Any] = {
        "pool": pool,
        "array": array[0] if array else None,
        "indices": array[1] if array else None,
        "states": list(states) or None,
        "name": name,
        "tag": tag,
        "owner": owner,
    }
    given = {key: value for key, value in filters.items() if value is not None}
    if bool(wanted) == bool(given):
        raise click.UsageError("say which jobs: ids, or --pool, --array and other filters")
    with connect.open_client() as client:
        if wanted:
            _cancel_these(client, wanted, dry_run=dry_run)
            return
        if dry_run:
            click.echo(f"would cancel {count(client.cancel(dry_run=True, **given), 'job')}")
            return
        if pool is None and array is None and not yes:
            number = count(client.cancel(dry_run=True, **given), "job")
            click.confirm(f"cancel {number}?", abort=True, err=True)
        click.echo(f"cancelled {count(client.cancel(**given), 'job')}")


def _cancel_these(client: Client, wanted: list[int], *, dry_run: bool) -> None:
    jobs = find_jobs(client, ids=wanted)
    if dry_run:
        click.echo(f"would cancel {count(sum(not job.done for job in jobs), 'job')}")
        return
    cancelled = client.cancel(jobs)
    click.echo(f"cancelled {count(cancelled, 'job')}")
    if cancelled < len(jobs):
        note(f"{count(len(jobs) - cancelled, 'job')} had already ended")


@click.command("retry", cls=Command, short_help="Run ended jobs again.")
@click.argument("ids", nargs=-1, required=True, type=JOB_IDS, metavar="ID...")
@click.option("--pool", metavar="POOL", help="In this pool instead of their own.")
def retry(ids: tuple[tuple[int, ...], ...], pool: str | None) -> None:
    """Run ended jobs again, each as a new job, and print the new ids, one a line."""
    wanted = list(itertools.chain.from_iterable(ids))
    if len(set(wanted)) != len(wanted):
        raise BadInput("a job is named twice")
    with connect.open_client() as client:
        jobs = find_jobs(client, ids=wanted)
        for job in jobs:
            if not job.done:
                raise Refused(f"job {job.id} is {job.state}", hint="cancel it first, or wait")
        for job in jobs:
            click.echo(client.retry(job, pool=pool).id)
