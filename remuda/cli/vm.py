"""`remuda vm`: look at VMs, drain or terminate them."""

from __future__ import annotations

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
)
from remuda.cli.records import find_vms, vm_record
from remuda.cli.types import VM_STATES, json_option

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


@click.command("list", cls=Command, short_help="List VMs.")
@click.option("--pool", metavar="POOL", help="Only those of this pool.")
@click.option(
    "--state",
    "states",
    type=click.Choice(VM_STATES, case_sensitive=False),
    multiple=True,
    help="Only those in this state. Repeatable.",
)
@click.option("--all", "gone", is_flag=True, help="Those that are gone (HALTED) too.")
@json_option
def list_vms(pool: str | None, states: tuple[str, ...], gone: bool, as_json: bool) -> None:
    """List VMs; SEEN is how long ago each gave a sign of life."""
    with connect.open_client() as client:
        vms = client.vms(pool=pool, state=list(states) or None, all=gone)
        records = [vm_record(vm) for vm in vms]
    print_rows(_COLUMNS, records, as_json=as_json)


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
            ("memory", format_size(record["memory_bytes"])),
            ("architecture", record["architecture"]),
            ("load", _load(record["load"])),
            ("seen", record["heartbeat_at"]),
            ("created", record["created_at"]),
            ("running since", record["running_at"]),
            ("gone since", record["halted_at"]),
        ]
    )


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


def _load(load: float | None) -> str:
    return "" if load is None else f"{load:.2f}"
