"""One command on a host over SSH: written to, read line by line, ended when its time is up."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paramiko

from remuda.errors import NoResources, VmUnreachable
from remuda.hosts import Host

__all__ = ["NEED", "NO_PYTHON", "Session"]

PIECE = 1 << 18
MAX_CHATTER = 4 << 20  # bytes a login shell may print before we give up
NO_PYTHON = "remuda-no-python3"
NEED = "Remuda needs it there, in the PATH of a login by SSH: apt-get install python3"


class Session:
    """One command on a host; what it prints is read line by line."""

    def __init__(self, host: Host, channel: Any) -> None:
        self.host, self.channel = host, channel
        self.rest = bytearray()
        self.late = False

    @contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        """Close the session when the time is up, whatever it is doing; VmUnreachable then."""

        def end() -> None:
            self.late = True
            self.channel.close()

        timer = threading.Timer(timeout_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError, paramiko.SSHException) as error:
            why = f"within {timeout_s:g} s" if self.late else f"any more: {error}"
            raise VmUnreachable(f"host {self.host.name} does not answer {why}") from error
        finally:
            timer.cancel()

    def execute(self, script: str) -> None:
        self.channel.exec_command(f"exec /bin/sh -c {shlex.quote(script)}")

    def write(self, data: bytes) -> bool:
        """Write all; False if nobody reads any more."""
        try:
            self.channel.sendall(data)
        except OSError:
            return False
        return True

    def until(self, *starts: str) -> str:
        """Return the next line that begins with one of these; what is before is chatter."""
        wanted, skipped = tuple(s.encode() for s in (*starts, NO_PYTHON)), 0
        while True:
            line, end, rest = self.rest.partition(b"\n")
            if end:
                self.rest, skipped = bytearray(rest), skipped + len(line)
                if line.startswith(wanted):
                    break
                continue
            data = self.channel.recv(PIECE)
            if not data or skipped + len(self.rest) > MAX_CHATTER:
                self._failed()
            self.rest += data
        text = bytes(line).decode(errors="replace").strip()
        if text.startswith(NO_PYTHON):
            raise NoResources(f"host {self.host.name} has no python3 >= 3.7", hint=NEED)
        return text

    def _failed(self) -> None:
        if self.late:
            raise EOFError("too late")
        errors = b""
        while self.channel.recv_stderr_ready() and len(errors) < PIECE:
            errors += self.channel.recv_stderr(PIECE)
        said = errors.decode(errors="replace").strip()[-500:]
        raise VmUnreachable(
            f"host {self.host.name} does not do what is asked: {said or 'it ended'}"
        )
