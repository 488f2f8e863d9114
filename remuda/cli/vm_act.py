"""`remuda vm reboot`, `interrupt` and `leaks`."""

from __future__ import annotations

from dataclasses import asdict

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, Row, format_duration, note, print_json, print_rows
from remuda.cli.records import find_vms
from remuda.cli.types import DURATION_OR_ZERO, json_option

_LEAKS = [
    Column("PROVIDER", "provider"),
    Column("MACHINE", "provider_id"),
    Column("POOL", lambda row: row["pool"] or f"foreign ({row['tag']})"),
    Column("SINCE", "first_seen_at"),
    Column("UNOWNED", lambda row: format_duration(row["unowned_s"]), right=True),
    Column("STATE", lambda row: _standing(row)),
    Column("ERROR", "error"),
]


@click.command("reboot", cls=Command, short_help="Restart the machines of VMs.")
@click.argument("vms", nargs=-1, required=True, metavar="ID|NAME...")
@click.option("--drain", is_flag=True, help="Let their jobs end first; else these run again.")
def reboot(vms: tuple[str, ...], drain: bool) -> None:
    """Restart the machines of VMs; they take jobs again when they have come up.

    What runs on them is lost and runs again, unless --drain lets it end first. A VM that does not
    come up within its pool's launch time-out is replaced.
    """
    with connect.open_client() as client:
        for vm in find_vms(client, vms):
            client.reboot_vm(vm.id, drain=drain)
            after = " after its jobs" if drain and vm.jobs else ""
            click.echo(f"VM {vm.name} reboots{after}")


@click.command("interrupt", cls=Command, short_help="Tell that VMs will be taken away.")
@click.argument("vms", nargs=-1, required=True, metavar="ID|NAME...")
@click.option(
    "--in", "in_s", type=DURATION_OR_ZERO, default="2m", show_default=True, help="In how long."
)
def interrupt(vms: tuple[str, ...], in_s: float) -> None:
    """Tell that VMs will be taken away, as the notice of a spot market does.

    They take no new jobs; those that wait on them go elsewhere at once, those that run have the
    time until then. What has not ended by then runs again, first of all, and no loss is counted.
    """
    with connect.open_client() as client:
        for vm in find_vms(client, vms):
            client.interrupt_vm(vm.id, in_s=in_s)
            click.echo(f"VM {vm.name} ends in {format_duration(in_s) or '0s'}")


@click.command("leaks", cls=Command, short_help="List machines that no VM owns.")
@click.option("--all", "past", is_flag=True, help="Those that are gone by now too.")
@json_option
def leaks(past: bool, as_json: bool) -> None:
    """List machines that providers have and no VM owns.

    Those of pools here are ended when REMUDA_UNOWNED_GRACE_S is over; foreign ones, of other
    installations in the same account, are only shown.
    """
    with connect.open_client() as client:
        machines = [asdict(machine) for machine in client.leaks(all=past)]
        unowned_s = client.unowned_seconds()
    if as_json:
        print_json({"machines": machines, "unowned_vm_seconds": unowned_s})
        return
    print_rows(_LEAKS, machines, as_json=False)
    note(f"unowned VM-seconds past the grace: {unowned_s:.0f}")


def _standing(row: Row) -> str:
    if row["gone_at"] is not None:
        return "gone"
    if row["pool"] is None:
        return "not ours"
    if not row["token"]:
        return "has no token: end it by hand"
    return "being ended" if row["terminate_calls"] else "in its grace"
