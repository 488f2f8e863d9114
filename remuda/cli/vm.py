"""`remuda vm`: look at VMs, drain or terminate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import (
    Column,
    Row,
    count,
    format_duration,
    format_size,
    print_details,
    print_json,
    print_rows,
    printable,
)
from remuda.cli.records import find_vms, vm_record
from remuda.cli.selecting import filters_of, vm_filters
from remuda.cli.types import json_option

_COLUMNS = [
    Column("ID", "id", right=True),
    Column("NAME", "name"),
    Column("POOL", "pool"),
    Column("STATE", lambda row: _state(row)),
    Column("SLOTS", "slots", right=True),
    Column("BUSY", lambda row: row["busy_slots"] + row["leased_slots"], right=True),
    Column("JOBS", "jobs", right=True),
    Column("LOAD", lambda row: _load(row["load"]), right=True),
    Column("SEEN", lambda row: format_duration(row["heartbeat_age_s"]), right=True),
    Column("CREATED", "created_at"),
    Column("ERROR", "error"),
]
_EVENTS = [
    Column("AT", "at"),
    Column("STATE", "to_state"),
    Column("DETAIL", lambda row: (row["detail"] or {}).get("error")),
]
_BEATS = [
    Column("HEARD", "at"),
    Column("STATE", "state"),
    Column("LOAD", lambda row: _load(row["load"]), right=True),
    Column("RUNNING", "running_jobs", right=True),
    Column("QUEUED", "queued_jobs", right=True),
    Column("FREE MEMORY", lambda row: format_size(row["memory_free_bytes"]), right=True),
    Column("FREE DISK", lambda row: format_size(row["disk_free_bytes"]), right=True),
    Column("FILES", "transferred_files", right=True),
    Column("MOVED", lambda row: format_size(row["transferred_bytes"]), right=True),
    Column("UP", lambda row: format_duration(row["uptime_s"]), right=True),
]


@click.command("list", cls=Command, short_help="List VMs.")
@vm_filters
@click.option("--all", "gone", is_flag=True, help="Those that are gone (HALTED) too.")
@click.option("--sort", metavar="FIELD,...", help="Order by fields; -FIELD: descending.")
@click.option("--limit", type=click.IntRange(0, 2**31), help="At most so many.")
@click.option("--start", type=click.IntRange(0, 2**31), default=0, help="Leave out the first.")
@json_option
def list_vms(
    gone: bool,
    sort: str | None,
    limit: int | None,
    start: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """List VMs; SEEN is how long ago each gave a sign of life.

    \b
        remuda vm list --state RUNNING --pool a --older 10m --sort -created_at --limit 50
        remuda vm list --where load=2.. --where 'image=debian*'
    """
    chosen = filters_of(**filters)
    with connect.open_client() as client:
        vms = client.vms(all=gone, sort=sort, limit=limit, start=start, **chosen)
        records = [vm_record(vm) for vm in vms]
    print_rows(_COLUMNS, records, as_json=as_json)


@click.command("count", cls=Command, short_help="Count VMs by any of their fields.")
@vm_filters
@click.option("--by", default="state", show_default=True, metavar="FIELD,...", help="Groups.")
@json_option
def count_vms(by: str, as_json: bool, **filters: Any) -> None:
    """Count VMs, those that are gone too, by the values of one or more fields.

    \b
        remuda vm count --by pool,state
    """
    chosen = filters_of(**filters)
    with connect.open_client() as client:
        found = client.count("vms", by=by, **chosen)
    names = [*(name.strip() for name in by.split(",")), "count"]
    columns = [Column(name.upper(), name, right=name == "count") for name in names]
    print_rows(columns, found, as_json=as_json)


@click.command("history", cls=Command, short_help="Show what became of one VM.")
@click.argument("vm", metavar="ID|NAME")
@click.option("--beats", type=click.IntRange(0, 10**7), default=20, show_default=True)
@json_option
def vm_history(vm: str, beats: int, as_json: bool) -> None:
    """Show a VM's states since it was asked for, and its last heartbeats."""
    with connect.open_client() as client:
        found = client.vm_history(find_vms(client, [vm])[0].id, newest=beats)
    if as_json:
        print_json([found])
        return
    print_rows(_EVENTS, found["events"], as_json=False)
    if found["heartbeats"]:
        click.echo()
        print_rows(_BEATS, found["heartbeats"], as_json=False)


@click.command("show", cls=Command, short_help="Show all about one VM.")
@click.argument("vm", metavar="ID|NAME")
@json_option
def show(vm: str, as_json: bool) -> None:
    """Show all about a VM."""
    with connect.open_client() as client:
        record = vm_record(find_vms(client, [vm])[0])
    if as_json:
        print_json([record])
        return
    print_details(
        [
            ("VM", record["id"]),
            ("name", record["name"]),
            ("pool", record["pool"]),
            ("state", record["state"]),
            ("draining", record["draining"] or None),
            ("error", record["error"]),
            ("provider", record["provider"]),
            ("provider's id", record["provider_id"]),
            ("address", record["address"]),
            ("private IP", record["private_ip"]),
            ("public IP", record["public_ip"]),
            ("slots", record["slots"]),
            ("busy slots", record["busy_slots"]),
            ("leased slots", record["leased_slots"]),
            ("jobs", record["jobs"]),
            ("image", record["image"] + (" (outdated)" if record["outdated"] else "")),
            ("checked", record["checked_at"]),
            ("failed checks", record["check_failures"] or None),
            ("last check", record["check_error"]),
            ("taken away at", record["interruption_at"]),
            ("makes room", record["preempted_for"]),
            ("reboot", record["reboot"]),
            ("cores", record["facts"].get("cores") or record["cores"]),
            ("said to have", _promised(record["facts"].get("promised") or {})),
            ("disk", format_size(record["facts"].get("disk_bytes"))),
            ("preparation", _prepared(record["preparation"])),
            ("memory", format_size(record["memory_bytes"])),
            ("architecture", record["architecture"]),
            ("load", _load(record["load"])),
            ("up for", format_duration(record["uptime_s"])),
            ("files moved", record["transferred_files"] or None),
            ("bytes moved", format_size(record["transferred_bytes"] or None)),
            ("seen", record["heartbeat_at"]),
            ("created", record["created_at"]),
            ("running since", record["running_at"]),
            ("gone since", record["halted_at"]),
        ]
    )


def _promised(said: Mapping[str, int]) -> str | None:
    """Say what its provider said that the VM has, if anything."""
    cores = said.get("cores")
    words = [cores and f"{cores} core{'s' if cores != 1 else ''}"]
    words.append(format_size(said.get("memory_bytes")))
    return ", ".join(word for word in words if word) or None


@click.command(
    "drain", cls=Command, short_help="Give VMs no new jobs; they end after their present ones."
)
@click.argument("vms", nargs=-1, required=True, metavar="ID|NAME...")
def drain(vms: tuple[str, ...]) -> None:
    """Give VMs no new jobs; they end when their present ones have."""
    with connect.open_client() as client:
        for vm in find_vms(client, vms):
            client.drain_vm(vm.id)
            click.echo(f"VM {vm.name} is draining")


@click.command("terminate", cls=Command, short_help="Terminate VMs.")
@click.argument("vms", nargs=-1, required=True, metavar="ID|NAME...")
@click.option("--now", is_flag=True, help="Do not wait for their jobs: these run again elsewhere.")
def terminate(vms: tuple[str, ...], now: bool) -> None:
    """Terminate VMs, idle ones at once, others after their jobs.

    The pool starts others if its size asks for them.
    """
    with connect.open_client() as client:
        for vm in find_vms(client, vms):
            at_once = client.terminate_vm(vm.id, now=now)
            after = "" if at_once else f" after {count(vm.jobs, 'job')}"
            click.echo(f"VM {vm.name} goes{after}")


def _state(row: Row) -> str:
    draining = row["draining"] and row["state"] in ("RUNNING", "STALLED")
    return f"{row['state']} draining" if draining else str(row["state"])


def _prepared(result: Row | None) -> str | None:
    if result is None:
        return None
    lines = result["output"].strip().splitlines()
    how = f"signal {result['signal']}" if result["signal"] else f"exit code {result['exit_code']}"
    return f"{how}: {printable(lines[-1][:200])}" if lines else how


def _load(load: float | None) -> str:
    return "" if load is None else f"{load:.2f}"
