"""`remuda acquire`: a machine without a job, for a command here or until it is released."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import note, print_json
from remuda.cli.records import lease_record
from remuda.cli.run import OWN_FAILURE
from remuda.cli.types import DURATION, DURATION_OR_ZERO, Assignment

if TYPE_CHECKING:
    from remuda.client import Lease

LEASE_LOST = 124  # as of timeout(1): the command's time was over before it was done
GRACE_S = 10.0  # between TERM and KILL for a command whose lease is lost
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class AcquireCommand(Command):
    """Failures of Remuda itself, wrong usage included, have an exit code of their own."""

    failure_code = OWN_FAILURE


@click.command(
    "acquire",
    cls=AcquireCommand,
    context_settings={"allow_interspersed_args": False},
    short_help="Lease a machine, for a command here or until it is released.",
)
@click.option(
    "--pool", "pools", multiple=True, metavar="POOL", help="From this pool. Repeatable, in order."
)
@click.option("--owner", metavar="NAME", help="Whose lease it is.  [default: you]")
@click.option("--sandbox", default="", metavar="NAME", help="What it is for: used VMs are reused.")
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Slots of a VM.",
)
@click.option("--whole-vm", is_flag=True, help="All slots of a VM.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Of a pool that has it.")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Wait for so long.  [default: not at all]")
@click.option(
    "--ttl",
    type=DURATION,
    default="15m",
    show_default=True,
    help="It ends so long after its last renewal.",
)
@click.option("--priority", type=int, default=0, show_default=True, help="Higher waits less.")
@click.option("--task-id", metavar="ID", help="Of your own, to find it by.")
@click.option("--build-id", metavar="ID", help="Of your own, to find it by.")
@click.option(
    "--label", "labels", type=Assignment(), multiple=True, metavar="NAME=VALUE", help="Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Without a command: print a JSON array.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def acquire(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    pools: tuple[str, ...],
    slots: int,
    whole_vm: bool,
    timeout: float | None,
    ttl: float,
    labels: tuple[tuple[str, str], ...],
    as_json: bool,
    **wanted: Any,
) -> None:
    """Lease a machine and run COMMAND here while it is held.

    \b
        remuda acquire --pool builders --timeout 10m -- ./build.sh
        remuda acquire --pool builders --pool spare --tag arm64 --ttl 1h

    The command sees REMUDA_VM_ID, _NAME, _ADDRESS, _PORT, _USER, _KEY_FILE, _HOST_KEY, _HOME, _SLOTS,
    REMUDA_LEASE_ID, REMUDA_LEASE_TOKEN and, of a pool of the command provider, REMUDA_VM_DATA: what
    its cmd_new printed. Signals are passed on to it; the lease is renewed as long as it runs, and
    released when it has ended.

    Without a command the lease is printed, and lasts for --ttl: `remuda lease renew` extends it,
    `remuda lease release ID --token TOKEN` gives it back.

    Exit code: the command's own; 128 + N when signal N ended it; 124 when the lease was lost, and
    the command ended for it; 125 when Remuda itself failed, also when no VM became free.
    """
    if not pools and not wanted["tags"]:
        raise click.UsageError("say which pools: --pool, or --tag for any that has it")
    if as_json and command:
        raise click.UsageError("--json is for an acquisition without a command")
    with connect.open_client() as client, _Signals() as signals:
        lease = client.acquire(
            pools=list(pools) or None,
            slots=None if whole_vm else slots,
            timeout=timeout,
            ttl_s=ttl,
            labels=dict(labels),
            pause=signals.pause,
            **wanted,
        )
        if not command and not signals.number:
            _told(lease, as_json=as_json)
            return
        with lease:
            signals.act()
            code = _Held(lease, signals).run(command)
    ctx.exit(code)


def environment_of(lease: Lease) -> dict[str, str]:
    """Return the variables that tell a command of its lease."""
    vm = lease.vm
    told = {
        "REMUDA_VM_ID": vm.id,
        "REMUDA_VM_NAME": vm.name,
        "REMUDA_VM_ADDRESS": vm.address,
        "REMUDA_VM_PORT": vm.port,
        "REMUDA_VM_USER": vm.user,
        "REMUDA_VM_KEY_FILE": vm.key_file,
        "REMUDA_VM_HOST_KEY": vm.host_key,
        "REMUDA_VM_HOME": vm.details.get("home"),
        "REMUDA_VM_SLOTS": lease.slots,
        "REMUDA_LEASE_ID": lease.id,
        "REMUDA_LEASE_TOKEN": lease.token,
    }
    return {name: "" if value is None else str(value) for name, value in told.items()}


def _told(lease: Lease, *, as_json: bool) -> None:
    """Print a lease that is to outlive this process; it is not renewed here any more."""
    lease.detach()
    if as_json:
        print_json([lease_record(lease)])
        return
    for name, value in environment_of(lease).items():
        click.echo(f"{name}={value}")
    note(
        f"remuda: it ends at {lease.expires_at:%H:%M:%S}; "
        f"`remuda lease renew {lease.id} --token $REMUDA_LEASE_TOKEN` extends it"
    )


class _Signals:
    """Signals that come before there is a command: they end the wait for a VM, and nothing else.

    Anywhere else their exceptions would strike in the middle of a query.
    """

    def __init__(self) -> None:
        self.number = 0  # of the one that came
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _PASSED_ON:
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pause(self, event: threading.Event, seconds: float) -> None:
        """Wait for the event; a signal, before or meanwhile, ends it as it is to end us."""
        self._waits = True
        try:
            self.act()
            event.wait(seconds)
        finally:
            self._waits = False

    def act(self) -> None:
        """End if a signal came."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise click.exceptions.Exit(128 + self.number)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        if self._waits:
            self.act()


class _Held:
    """A command that runs as long as its lease is held."""

    def __init__(self, lease: Lease, signals: _Signals) -> None:
        self._lease = lease
        self._signals = signals
        self._process: subprocess.Popen[bytes] | None = None
        self._killer: threading.Timer | None = None
        self._early: list[int] = []  # signals that came before there was a process

    def run(self, command: Sequence[str]) -> int:
        """Run it to its end and return what is to be our exit code."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        self._early += [self._signals.number] if self._signals.number else []
        try:
            return self._run(command)
        finally:
            if self._killer is not None:
                self._killer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, command: Sequence[str]) -> int:
        try:
            self._process = subprocess.Popen(
                command,
                env={
                    **os.environ,
                    **environment_of(self._lease),
                    "REMUDA_VM_DATA": self._lease.data(),  # for the command alone
                },
            )
        except OSError as error:
            note(f"remuda: {command[0]}: {error.strerror or error}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        for number in self._early:
            self._process.send_signal(number)
        self._lease.when_lost(self._end)
        code = self._process.wait()
        if self._lease.lost:
            note(f"remuda: error: lease {self._lease.id} was lost, the command was ended")
            return LEASE_LOST
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self._process is None:
            self._early.append(number)
        # On a terminal Ctrl-C reaches the command without us.
        elif number != signal.SIGINT or not os.isatty(0):
            self._process.send_signal(number)

    def _end(self) -> None:
        """Tell the command that its lease is lost: TERM, and KILL if it does not end."""
        process = self._process
        if process is None:
            return
        process.terminate()
        self._killer = threading.Timer(GRACE_S, process.kill)
        self._killer.daemon = True
        self._killer.start()
