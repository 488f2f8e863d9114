"""One command on a host over SSH: written to, read line by line, ended when its time is up."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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
        self._moved_at = 0.0  # when something went or came

    @contextmanager
    def limited(self, timeout_s: float, *, lasting: bool = False) -> Iterator[None]:
        """Close the session when the time is up, whatever it is doing; VmUnreachable then.

        If it is `lasting`, the time begins anew with everything that goes or comes.
        """
        over = threading.Event()
        self._moved_at = time.monotonic()

        def watch() -> None:
            left = timeout_s
            while left > 0:
                if over.wait(left):
                    return
                left = self._moved_at + timeout_s - time.monotonic() if lasting else 0.0
            self.late = True
            self.channel.close()

        threading.Thread(target=watch, name=f"ssh {self.host.name} time", daemon=True).start()
        try:
            yield
        except (OSError, EOFError, paramiko.SSHException) as error:
            why = f"within {timeout_s:g} s" if self.late else f"any more: {error}"
            raise VmUnreachable(f"host {self.host.name} does not answer {why}") from error
        finally:
            over.set()

    def execute(self, script: str) -> None:
        self.channel.exec_command(f"exec /bin/sh -c {shlex.quote(script)}")

    def write(self, data: bytes) -> bool:
        """Write all; False if nobody reads any more."""
        try:
            self.channel.sendall(data)
        except OSError:
            return False
        self._moved_at = time.monotonic()
        return True

    def pieces(self, size: int) -> Iterator[bytes]:
        """Give exactly so many bytes of what comes next, in pieces; VmUnreachable if it ends."""
        while size:
            if self.rest:
                data = bytes(self.rest[:size])
                del self.rest[:size]
            else:
                data = self.channel.recv(min(size, PIECE))
                self._moved_at = time.monotonic()
            if not data:
                self._failed()
            size -= len(data)
            yield data

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
            self._moved_at = time.monotonic()
            if not data or skipped + len(self.rest) > MAX_CHATTER:
                self._failed()
            self.rest += data
        text = bytes(line).decode(errors="replace").strip()
        if text.startswith(NO_PYTHON):
            raise NoResources(f"host {self.host.name} has no python3 >= 3.7", hint=NEED)
        return text

    def _failed(self) -> NoReturn:
        if self.late:
            raise EOFError("too late")
        errors = b""
        while self.channel.recv_stderr_ready() and len(errors) < PIECE:
            errors += self.channel.recv_stderr(PIECE)
        said = errors.decode(errors="replace").strip()[-500:]
        raise VmUnreachable(
            f"host {self.host.name} does not do what is asked: {said or 'it ended'}"
        )
