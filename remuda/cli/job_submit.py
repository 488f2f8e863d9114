"""`remuda job submit`."""

from __future__ import annotations

from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.job_options import job_options, take
from remuda.cli.output import print_json, ranges
from remuda.cli.records import job_record
from remuda.cli.types import Assignment, Indices, json_option
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
@click.option(
    "--array-from",
    type=click.Path(path_type=str, exists=True, dir_okay=False),
    metavar="FILE",
    help="A job for each row of a .csv (first line: names) or .jsonl; '{name}' is its value.",
)
@click.option(
    "--param",
    "params",
    type=Assignment(),
    multiple=True,
    metavar="NAME=V1,V2,...",
    help="A job for each value, for '{NAME}'; of several every combination. Repeatable.",
)
@click.option(
    "--max-running",
    type=click.IntRange(1),
    metavar="N",
    help="At most so many jobs of the array at once.",
)
@click.option(
    "--after",
    "afters",
    multiple=True,
    metavar="ID[:COND]",
    help="Wait until job ID succeeded, or `:failure`, `:end`; `array:ID`, `:any`, `:each` too. "
    "Repeatable.",
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
    array_from: str | None,
    params: tuple[tuple[str, str], ...],
    max_running: int | None,
    afters: tuple[str, ...],
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
        remuda job submit --param seed=1,2,3 --param rate=0.1,0.2 -- ./sim '{seed}' '{rate}'
        remuda job submit --after 101 --after array:12:end -- ./report

    In an array '{index}', and '{name}' of each parameter, are filled in everywhere. Prints the id,
    or for an array a line like `array 12: jobs 101..200`.
    """
    shared = take(options)
    given = sum((array is not None, array_from is not None, bool(params)))
    if given > 1:
        raise click.UsageError("give one of --array, --array-from and --param")
    if given and key is not None:
        raise click.UsageError("--key is for one job, not for an array")
    if max_running is not None and not given:
        raise click.UsageError("--max-running is for arrays")
    spec = shared.spec(
        command, join_output=join, idempotency_key=key, after=[_after(text) for text in afters]
    )
    with connect.open_client() as client:
        try:
            if not given:
                jobs = [client.submit(spec, pool=shared.pools, allow_pending=allow_pending)]
            else:
                more: dict[str, Any] = {"max_running": max_running} if max_running else {}
                if array is None:
                    more |= {"rows": array_from} if array_from else {"parameters": _values(params)}
                jobs = client.submit_array(
                    spec,
                    array,
                    pool=shared.pools,
                    name=shared.name,
                    allow_pending=allow_pending,
                    **more,
                )
        except NoResources as error:
            error.hint = "--allow-pending submits it all the same"
            raise
        if not given:
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


def _after(text: str) -> Any:
    from remuda.dependencies import parse_after

    after = parse_after(text)
    if isinstance(after.target, str):
        raise click.UsageError(f"--after {text!r} is no job's id; names are for `job submit-dag`")
    return after


def _values(params: tuple[tuple[str, str], ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, values in params:
        if name in found:
            raise click.UsageError(f"--param {name} is given twice; separate its values by commas")
        found[name] = values.split(",")
    return found
