"""`remuda job list`, `show` and `explain`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import (
    Column,
    elapsed,
    format_duration,
    format_size,
    format_time,
    note,
    print_details,
    print_json,
    print_rows,
    printable,
)
from remuda.cli.records import job_record
from remuda.cli.types import JOB_STATES, json_option

if TYPE_CHECKING:
    pass

_COLUMNS = [
    Column("ID", "id", right=True),
    Column("NAME", "name"),
    Column("POOL", "pool"),
    Column("STATE", "state"),
    Column("REASON", "reason"),
    Column("EXIT", lambda row: _exit(row), right=True),
    Column("TRIES", "attempts", right=True),
    Column("VM", "vm"),
    Column("SUBMITTED", "submitted_at"),
    Column("TIME", lambda row: format_duration(_took(row)), right=True),
]


@click.command("list", cls=Command, short_help="List jobs, oldest first.")
@click.option("--pool", metavar="POOL", help="Only those of this pool.")
@click.option(
    "--state",
    "states",
    type=click.Choice(JOB_STATES, case_sensitive=False),
    multiple=True,
    help="Only those in this state. Repeatable.",
)
@click.option("--array", type=click.IntRange(1), metavar="A", help="Only those of this array.")
@click.option("--name", metavar="NAME", help="Only those of this name; * is any text.")
@click.option("--owner", metavar="OWNER", help="Only those of this owner.")
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Only those with this tag. Repeatable: all."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="At most so many, the newest ones.",
)
@json_option
def list_jobs(
    pool: str | None,
    states: tuple[str, ...],
    array: int | None,
    name: str | None,
    owner: str | None,
    tags: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, oldest first; TIME is how long the last try took, or takes so far."""
    with connect.open_client() as client:
        jobs = client.jobs(
            pool=pool,
            state=list(states) or None,
            array=array,
            name=name,
            owner=owner,
            tags=list(tags) or None,
            limit=limit,
        )
        records = [job_record(job) for job in jobs]
    print_rows(_COLUMNS, records, as_json=as_json)
    if len(records) == limit and not as_json:
        note(f"the newest {limit}; --limit gives more")


@click.command("show", cls=Command, short_help="Show all about one job.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@json_option
def show(job_id: int, as_json: bool) -> None:
    """Show a job's spec, how it stands, its attempts, what it left, and its transitions."""
    with connect.open_client() as client:
        record = job_record(client.job(job_id))
        history = client.job_history(job_id)
    if as_json:
        names = ("spec", "attempts", "outputs", "events", "dependencies")
        parts = {name: history[name] for name in names}
        print_json([{**record, **parts}])
        return
    from remuda.spec_files import filler

    spec = history["spec"]
    filled = filler(record["index"], history["job"]["params"])

    print_details(
        [
            ("job", record["id"]),
            ("name", record["name"]),
            ("command", shlex.join(filled(word) for word in spec["command"])),
            ("pool", record["pool"]),
            ("owner", record["owner"]),
            ("array", record["array"]),
            ("index", record["index"]),
            ("parameters", history["job"]["params"]),
            ("state", record["state"]),
            ("reason", record["reason"]),
            ("exit code", record["exit_code"]),
            ("signal", record["signal"]),
            ("message", record["message"]),
            ("cores", record["cores"]),
            ("memory", format_size(record["memory_bytes"])),
            ("walltime", format_duration(record["walltime_s"])),
            ("priority", record["priority"] or None),
            ("GPUs", record["gpus"] or None),
            ("architecture", record["architecture"]),
            ("constraints", record["constraints"]),
            ("sandbox", record["sandbox"] or None),
            ("tags", record["tags"]),
            ("to start within", format_duration(record["max_queue_s"])),
            ("environment", sorted(spec["environment"])),
            ("inputs", [filled(item["name"]) for item in spec["inputs"]]),
            ("outputs", [filled(item["name"]) for item in spec["outputs"]]),
            ("output dir", filled(spec["output_dir"] or "")),
            ("after", [_waited_for(edge, record["state"]) for edge in history["dependencies"]]),
            ("submitted", record["submitted_at"]),
            ("started", record["started_at"]),
            ("ended", record["ended_at"]),
            ("time", format_duration(_took(record))),
            ("CPU", format_duration(_sum(record["user_s"], record["system_s"]))),
            ("memory used", format_size(record["peak_memory_bytes"] or record["max_rss_bytes"])),
            ("read", format_size(record["io_read_bytes"] or None)),
            ("written", format_size(record["io_write_bytes"] or None)),
        ]
    )
    _show_history(history)


@click.command("explain", cls=Command, short_help="Say why a job is where it is.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@json_option
def explain(job_id: int, as_json: bool) -> None:
    """Say why a job is where it is, the strongest reason first, and when it may start.

    As JSON: {"reasons": [{"kind", "text", "blocks"}], "start_s": seconds or null, "basis"}; "blocks":
    it cannot start before that changes.
    """
    with connect.open_client() as client:
        if as_json:
            print_json(asdict(client.why(job_id)))
            return
        for sentence in client.explain(job_id):
            click.echo(printable(sentence))


def _show_history(history: dict[str, Any]) -> None:
    if history["attempts"]:
        click.echo("\nattempts")
        columns = [
            Column("N", "epoch", right=True),
            Column("VM", "vm"),
            Column("STATE", "state"),
            Column("REASON", "reason"),
            Column("EXIT", lambda row: _exit(row), right=True),
            Column("STARTED", "started_at"),
            Column("TIME", lambda row: format_duration(row["wall_s"]), right=True),
            Column("MESSAGE", "message"),
        ]
        print_rows(columns, history["attempts"], as_json=False)
    if history["outputs"]:
        click.echo("\nleft behind")
        columns = [
            Column("KIND", "kind"),
            Column("NAME", "name"),
            Column("SIZE", lambda row: format_size(row["size"]), right=True),
        ]
        print_rows(columns, history["outputs"], as_json=False)
    click.echo("\ntransitions")
    for event in history["events"]:
        click.echo(
            f"{format_time(event['at'])}  {event['kind']:<7}  "
            f"{event['from_state'] or '-'} → {event['to_state']}"
        )


def _waited_for(edge: Any, state: str) -> str:
    """Return a dependency as `--after` reads it, and whether it is met."""
    of = f"array:{edge['parent_array_id']}:{edge['quantifier']}"
    what = of if edge["parent_id"] is None else str(edge["parent_id"])
    how = "" if edge["condition"] == "success" else f":{edge['condition']}"
    open_ = "not met" if state == "TERMINATED" else "open"
    return f"{what}{how} ({'met' if edge['met'] else open_})"


def _exit(row: Any) -> str:
    if row["signal"] is not None:
        return f"sig {row['signal']}"
    return "" if row["exit_code"] is None else str(row["exit_code"])


def _took(row: Any) -> float | None:
    if row["wall_s"] is not None:
        return float(row["wall_s"])
    return elapsed(row["started_at"], row["ended_at"])


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
