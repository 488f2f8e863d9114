"""`remuda job submit`."""

from __future__ import annotations

from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.job_options import job_options, take
from remuda.cli.output import print_json, ranges
from remuda.cli.records import job_record
from remuda.cli.types import Indices, json_option
from remuda.errors import NoResources


@click.command(
    "submit",
    cls=Command,
    context_settings={"allow_interspersed_args": False},
    short_help="Submit a job, or an array of jobs.",
)
@job_options
@click.option(
    "--array",
    type=Indices(),
    help="Many jobs: a count, or 0-99, 1-10:3, 3,5,8; '{index}' is each one's index.",
)
@click.option("--join", is_flag=True, help="Put its stderr into its stdout.")
@click.option("--key", metavar="KEY", help="Submitting again with the same key gives the same job.")
@click.option(
    "--allow-pending", is_flag=True, help="Accept a job that fits no VM of the pool as it is now."
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(
    command: tuple[str, ...],
    array: int | list[int] | None,
    join: bool,
    key: str | None,
    allow_pending: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit COMMAND as a job, or as an array of jobs, and print its id.

    \b
        remuda job submit --pool sim --memory 2G -- python3 fit.py
        remuda job submit --pool sim --array 100 --output '{index}.txt' -- ./tile '{index}'

    In an array '{index}' is filled in in the command, the inputs, the outputs and the name.
    Prints the id, or for an array a line like `array 12: jobs 101..200`.
    """
    shared = take(options)
    if array is not None and key is not None:
        raise click.UsageError("--key is for one job, not for an array")
    spec = shared.spec(command, join_output=join, idempotency_key=key)
    with connect.open_client() as client:
        try:
            if array is None:
                jobs = [client.submit(spec, pool=shared.pool, allow_pending=allow_pending)]
            else:
                jobs = client.submit_array(
                    spec, array, pool=shared.pool, name=shared.name, allow_pending=allow_pending
                )
        except NoResources as error:
            error.hint = "--allow-pending submits it all the same"
            raise
        if array is None:
            if as_json:
                print_json([job_record(jobs[0])])
            else:
                click.echo(jobs[0].id)
            return
        made = job_record(client.job(jobs[0].id))["array"]
        if as_json:
            print_json([job_record(job) for job in client.jobs(array=made, limit=None)])
        else:
            click.echo(f"array {made}: jobs {ranges(job.id for job in jobs)}")
