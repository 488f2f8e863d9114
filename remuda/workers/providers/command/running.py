"""Run one hook: in a process group of its own, for so long, with so much output, and no longer."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import IO

from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.hooks import Command

__all__ = ["MOST_BYTES", "run_hook"]

MOST_BYTES = 1 << 20  # of what a hook may print: 10,000 names and more
_TAIL_BYTES = 4096
_DRAIN_S = 2.0
_GRACE_S = 5.0
# What a hook says by its exit code (those of sysexits.h); every other but 0 may pass.
_CODES: Mapping[int, type[ProviderError]] = {
    64: PermanentProviderError,
    65: PermanentProviderError,
    66: ImageError,
    69: CapacityError,
    73: QuotaExceeded,
    77: ProviderAuthError,
    78: PermanentProviderError,
    126: PermanentProviderError,
    127: PermanentProviderError,
}


def run_hook(
    what: str, command: Command, *, environment: Mapping[str, str], timeout_s: float
) -> str:
    """Run a hook and return what it printed.

    Its whole process group is killed when its time is over. Raises TransientProviderError for that,
    and for a failure that does not say what it is; else the error its exit code stands for;
    PermanentProviderError if it prints more than MOST_BYTES, or no UTF-8.
    """
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    guard = shutil.which("timeout")  # for the day on which this process does not live to kill it
    if guard:
        words = [guard, "--kill-after=5", f"{timeout_s + _GRACE_S:g}", *words]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise PermanentProviderError(f"{what} cannot be run: {error.strerror}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    printed = _Reader(process.stdout, MOST_BYTES)
    said = _Reader(process.stderr, MOST_BYTES)
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise TransientProviderError(
            f"{what} did not end in {timeout_s:g} s, and was killed"
        ) from None
    finally:
        if process.poll() is None:
            _kill(process)
        for reader in (printed, said):
            reader.finish()
    if code:
        kind = _CODES.get(code, TransientProviderError)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise kind(f"{what} {how}{said.tail()}")
    return printed.text(what)


class _Reader(threading.Thread):
    """Reads a pipe, and keeps so many bytes of it."""

    def __init__(self, pipe: IO[bytes], most: int) -> None:
        super().__init__(name="remuda-hook", daemon=True)
        self._pipe, self._most = pipe, most
        self._kept = bytearray()
        self._over = False
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            ended = self._ended.is_set()  # what is there by then is still read
            if poll.poll(0 if ended else 50):
                data = os.read(self._pipe.fileno(), 65536)
                if not data:
                    break
                self._over |= len(self._kept) + len(data) > self._most
                self._kept += data[: self._most - len(self._kept)]
            elif ended:
                break
        self._pipe.close()

    def finish(self) -> None:
        """Read no further than what the hook itself printed: what it left running may hold on."""
        self._ended.set()
        self.join(_DRAIN_S)

    def tail(self) -> str:
        text = bytes(self._kept[-_TAIL_BYTES:]).decode(errors="replace").replace("\0", "").strip()
        return f": {text.splitlines()[-1][:500]}" if text else ""

    def text(self, what: str) -> str:
        kept = bytes(self._kept)
        if self._over:
            raise PermanentProviderError(f"{what} printed more than {self._most} bytes")
        try:
            text = kept.decode()
        except UnicodeDecodeError:
            raise PermanentProviderError(f"{what} printed what is no UTF-8") from None
        if "\0" in text:
            raise PermanentProviderError(f"{what} printed a NUL character")
        return text


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the hook and all of its group; what left the group on purpose lives on."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0 if number == signal.SIGTERM else 5.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
