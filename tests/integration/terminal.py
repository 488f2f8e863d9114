"""A program on a terminal of its own, typed at."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Mapping, Sequence


def on_terminal(
    line: Sequence[str], env: Mapping[str, str], typed: str, *, wanted: Sequence[str]
) -> int:
    """Run it, type once it has said something, and return its exit code.

    Fails unless it printed the lines `wanted`, in that order.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(line[0], list(line), dict(env))
    said, deadline, sent = b"", time.monotonic() + 30, False
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                said += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if not sent:  # that was its prompt
                os.write(terminal, typed.encode())
                sent = True
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    lines = said.decode(errors="replace").replace("\r", "").split("\n")
    assert [text for text in lines if text in wanted] == list(wanted), said
    return os.waitstatus_to_exitcode(status)
