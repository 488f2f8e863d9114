"""`remuda job cancel` and `retry`."""

from __future__ import annotations

import itertools

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import count, note
from remuda.cli.records import find_jobs
from remuda.cli.types import JOB_IDS, LIVE_JOB_STATES
from remuda.errors import BadInput, Refused


@click.command("cancel", cls=Command, short_help="Cancel jobs.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--pool", metavar="POOL", help="All jobs of this pool that have not ended.")
@click.option("--array", type=click.IntRange(1), metavar="A", help="All jobs of this array.")
def cancel(ids: tuple[tuple[int, ...], ...], pool: str | None, array: int | None) -> None:
    """Cancel jobs: waiting ones at once, running ones are killed with all their processes.

    Jobs that have ended stay as they are.
    """
    wanted = list(itertools.chain.from_iterable(ids))
    if bool(wanted) == (pool is not None or array is not None):
        raise click.UsageError("say which jobs: ids, or --pool, --array or both of these")
    with connect.open_client() as client:
        jobs = find_jobs(client, ids=wanted, pool=pool, array=array, states=LIVE_JOB_STATES)
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
