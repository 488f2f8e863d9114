"""`remuda vm ssh`: a shell, or one command, on a VM."""

from __future__ import annotations

import os

import click
from click.exceptions import Exit

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.records import find_vms
from remuda.errors import Refused


@click.command(
    "ssh",
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Open a shell on a VM.",
)
@click.argument("vm", metavar="ID|NAME")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]...")
def ssh(vm: str, command: tuple[str, ...]) -> None:
    """Log in to a VM, or run one command there: by ssh, with its pinned host key, user, port and key.

    It goes there straight from here: the key must be on this machine. A VM of the local provider
    has a shell in its home. COMMAND is a program with its arguments; for what a shell understands
    say so: `-- sh -c 'cd /tmp && ls'`. Exits with the exit code of the shell or command.
    """
    from remuda.workers.shells import open_machine

    with connect.open_client() as client:
        found = find_vms(client, [vm])[0]
    if found.state in ("NEW", "HALTED"):
        gone = "is gone" if found.state == "HALTED" else "is not there yet"
        raise Refused(f"VM {found.name} {gone}", hint="`remuda vm list` shows those there are")
    if command[:1] == ("--",):
        command = command[1:]
    terminal = not command and os.isatty(0)
    raise Exit(open_machine(found.address, command, terminal=terminal))
