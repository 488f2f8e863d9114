"""`remuda array`: arrays of jobs as wholes."""

from __future__ import annotations

from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.job_wait import wait_and_tell
from remuda.cli.output import (
    Column,
    count,
    format_duration,
    print_details,
    print_json,
    print_rows,
)
from remuda.cli.types import DURATION_OR_ZERO, IndexList, json_option

_ID = click.IntRange(1)
_COLUMNS = [
    Column("ID", "id", right=True),
    Column("NAME", "name"),
    Column("OWNER", "owner"),
    Column("JOBS", "size", right=True),
    Column("BLOCKED", "blocked", right=True),
    Column("QUEUED", "queued", right=True),
    Column("RUNNING", "running", right=True),
    Column("OK", "succeeded", right=True),
    Column("FAILED", "failed", right=True),
    Column("LEFT", lambda row: format_duration(row["eta_s"]), right=True),
    Column("SUBMITTED", "created_at"),
]


@click.command("list", cls=Command, short_help="List arrays, oldest first.")
@click.option("--owner", metavar="OWNER", help="Only those of this owner.")
@click.option("--live", is_flag=True, help="Only those with jobs that have not ended.")
@click.option(
    "--limit", type=_ID, default=100, show_default=True, metavar="N", help="The newest so many."
)
@json_option
def list_arrays(owner: str | None, live: bool, limit: int, as_json: bool) -> None:
    """List arrays, oldest first; LEFT is an estimate of the time they still take."""
    with connect.open_client() as client:
        print_rows(_COLUMNS, client.arrays(owner=owner, live=live, limit=limit), as_json=as_json)


@click.command("show", cls=Command, short_help="Show how far an array is.")
@click.argument("array", type=_ID, metavar="ID")
@json_option
def show(array: int, as_json: bool) -> None:
    """Show how far an array is, and how its ended jobs ended."""
    with connect.open_client() as client:
        found = client.array(array)
        info, reasons = found.info(), found.reasons()
    if as_json:
        print_json([{**info, "reasons": reasons}])
        return
    print_details(
        [
            ("array", info["id"]),
            ("name", info["name"]),
            ("owner", info["owner"]),
            ("jobs", info["size"]),
            ("blocked", info["blocked"] or None),
            ("queued", info["queued"]),
            ("running", info["running"]),
            ("ended", info["ended"]),
            ("at most", f"{info['max_running']} at once" if info["max_running"] else None),
            ("a job takes", format_duration(info["mean_wall_s"])),
            ("time left", format_duration(info["eta_s"])),
            ("submitted", info["created_at"]),
            *sorted(reasons.items()),
        ]
    )


@click.command("wait", cls=Command, short_help="Wait until all jobs of an array have ended.")
@click.argument("array", type=_ID, metavar="ID")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Give up after this time: 600, 10m, 2h.")
@click.pass_context
def wait(ctx: click.Context, array: int, timeout: float | None) -> None:
    """Wait until all jobs of an array have ended.

    Exits with 0 only if all succeeded, with 1 if any failed (up to 10 of them are named on
    stderr), with 124 when the time is over.
    """
    with connect.open_client() as client:
        client.array(array)  # there must be one
        ctx.exit(wait_and_tell(client, [], array=array, timeout_s=timeout))


@click.command("cancel", cls=Command, short_help="Cancel an array, or some of its indices.")
@click.argument("array", type=_ID, metavar="ID")
@click.argument("indices", type=IndexList(), required=False, metavar="[INDICES]")
def cancel(array: int, indices: list[int] | None) -> None:
    """Cancel an array's jobs that have not ended, or those of INDICES: 0-49, 3,5,8."""
    with connect.open_client() as client:
        cancelled = client.array(array).cancel(indices)
    click.echo(f"cancelled {count(cancelled, 'job')}")


@click.command(
    "resubmit", cls=Command, short_help="Submit an array's failed jobs again, as a new array."
)
@click.argument("array", type=_ID, metavar="ID")
@click.argument("indices", type=IndexList(), required=False, metavar="[INDICES]")
@click.option("--pool", metavar="POOL", help="In this pool instead of their own.")
@json_option
def resubmit(array: int, indices: list[int] | None, pool: str | None, as_json: bool) -> None:
    """Submit what failed again, as a new array of the same specs and indices; print its id."""
    with connect.open_client() as client:
        info: dict[str, Any] = client.array(array).resubmit(indices, pool=pool).info()
    if as_json:
        print_json([info])
    else:
        click.echo(f"array {info['id']}: {count(info['size'], 'job')}")


@click.command("limit", cls=Command, short_help="Let at most so many jobs of an array run at once.")
@click.argument("array", type=_ID, metavar="ID")
@click.argument("most", type=click.IntRange(0), metavar="N")
def limit(array: int, most: int) -> None:
    """Let at most N jobs of an array be on machines at once; 0: any number."""
    with connect.open_client() as client:
        client.array(array).limit(most or None)
