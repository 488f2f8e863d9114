"""`remuda job submit-dag`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import print_json, ranges
from remuda.cli.records import job_record
from remuda.cli.types import json_option
from remuda.errors import BadInput

if TYPE_CHECKING:
    from remuda.spec import JobSpec

_AFTER_HELP = '"after": ["prep", 12, {"target": "prep", "condition": "failure"}]'


@click.command(
    "submit-dag", cls=Command, short_help="Submit jobs that wait for each other, from a file."
)
@click.argument("file", type=click.File("r", encoding="utf-8"), metavar="FILE")
@click.option("--pool", metavar="POOL", help="The pool they run on; the default pool if none.")
@click.option("--name", default="", metavar="NAME", help="A name for all of them together.")
@click.option("--allow-pending", is_flag=True, help="Accept jobs that fit no VM as it is now.")
@json_option
def submit_dag(file: Any, pool: str | None, name: str, allow_pending: bool, as_json: bool) -> None:
    """Submit the jobs of FILE (- is stdin), all or none, and print their array and ids.

    FILE is a JSON list of objects, or has one a line. Their keys are the fields of JobSpec; in
    "after" a job names those it waits for:

    \b
        {"name": "prep", "command": ["./prep"]}
        {"name": "fit", "command": "./fit --fast", "after": ["prep"]}
        {"name": "mourn", "command": ["./mourn"],
         "after": [{"target": "fit", "condition": "failure"}]}
    """
    try:
        text = file.read()
    except UnicodeDecodeError:
        raise BadInput("the file is not UTF-8 text") from None
    specs = [_spec(item, place) for place, item in enumerate(_items(text))]
    if not specs:
        raise BadInput("the file holds no job")
    with connect.open_client() as client:
        jobs = client.submit_many(specs, pool=pool, name=name, allow_pending=allow_pending)
        if as_json:
            found = client.jobs(ids=[job.id for job in jobs], limit=None)
            print_json([job_record(job) for job in found])
            return
        array = job_record(client.job(jobs[0].id))["array"]
    click.echo(f"array {array}: jobs {ranges(job.id for job in jobs)}")


def _items(text: str) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
            return found if isinstance(found, list) else [found]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the file is neither a JSON list nor JSON lines: {error}") from None


def _spec(item: Any, place: int) -> JobSpec:
    from dataclasses import fields

    from remuda.spec import JobSpec

    if not isinstance(item, dict):
        raise BadInput(f"job {place} is not an object")
    known = {field.name for field in fields(JobSpec)} | {"shell"}
    unknown = sorted(set(item) - known)
    if unknown or "command" not in item:
        what = f"there is no field {unknown[0]!r}" if unknown else "it has no command"
        raise BadInput(f"job {place}: {what}", hint=f"fields: {', '.join(sorted(known))}")
    given = dict(item)
    for key in ("inputs", "outputs"):
        if isinstance(given.get(key), list):
            given[key] = [tuple(f) if isinstance(f, list) else f for f in given[key]]
    try:
        return JobSpec(**given)
    except BadInput as error:
        hint = error.hint or (_AFTER_HELP if "after" in error.message else "")
        raise BadInput(f"job {place}: {error.message}", hint=hint) from None
