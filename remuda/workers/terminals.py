"""A command on a host with this process's standard input and output, where there is no `ssh`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import paramiko

from remuda.errors import VmUnreachable
from remuda.hosts import Host
from remuda.workers.login import hang_up, log_in

__all__ = ["run"]

_PIECE = 1 << 16


def run(host: Host, command: str, *, terminal: bool, timeout_s: float) -> int:
    """Run it, on a terminal of its own if `terminal`; return its exit code.

    Raises VmUnreachable or AuthError when the host cannot be logged in to, or the line breaks.
    """
    connection = log_in(host, timeout_s)
    try:
        channel = connection.transport.open_session(timeout=timeout_s)
        if terminal:
            width, height = shutil.get_terminal_size()
            channel.get_pty(os.environ.get("TERM", "dumb"), width, height)
        channel.exec_command(command)
        with _resizing(channel) if terminal else contextlib.nullcontext(), _raw(terminal):
            _carry(channel)
        code = channel.recv_exit_status()
        if code < 0:
            raise VmUnreachable(f"the connection to host {host.name} broke")
        return int(code)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise VmUnreachable(f"host {host.name} does not answer any more: {error}") from error
    finally:
        hang_up(connection)


def _carry(channel: Any) -> None:
    """Carry bytes both ways until the command has ended."""
    errors = threading.Thread(
        target=_copy, args=(channel.recv_stderr, sys.stderr.buffer), daemon=True
    )
    errors.start()
    threading.Thread(target=_feed, args=(channel,), daemon=True).start()
    _copy(channel.recv, sys.stdout.buffer)
    errors.join()


def _copy(receive: Callable[[int], bytes], out: BinaryIO) -> None:
    while data := receive(_PIECE):
        out.write(data)
        out.flush()


def _feed(channel: Any) -> None:
    """Send our input; what nobody reads any more is left."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := os.read(0, _PIECE):
            channel.sendall(data)
        channel.shutdown_write()


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Let every key go to the other side, if our input is a terminal."""
    if not (terminal and os.isatty(0)):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(channel: Any) -> Iterator[None]:
    """Tell the other side when our window changes."""

    def tell(*_: Any) -> None:
        channel.resize_pty(*shutil.get_terminal_size())

    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
