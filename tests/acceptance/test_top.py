"""`remuda top` on a real terminal over a running system."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from pathlib import Path

from remuda import JobSpec
from tests.system import eventually, running_system

DEADLINE_S = 60.0


class Terminal:
    """A program on a terminal of 30 lines of 120 characters."""

    def __init__(self, line: list[str], env: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(line[0], line, {**env, "TERM": "xterm-256color"})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.said = b""

    def until(self, words: str) -> None:
        """Read until it has written these words since the last key."""
        deadline = time.monotonic() + DEADLINE_S
        while words.encode() not in self.said:
            assert time.monotonic() < deadline, f"{words!r} was not shown: {self.said[-3000:]!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.said += os.read(self.fd, 65536)

    def type(self, keys: str) -> None:
        self.said = b""
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if not select.select([self.fd], [], [], 0.2)[0]:
                continue
            try:
                os.read(self.fd, 65536)
            except OSError:  # the program has closed its end
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_job_is_seen_followed_and_cancelled(tmp_path: Path, database_url: str) -> None:
    with (
        running_system(tmp_path, database_url=database_url) as system,
        system.client() as client,
    ):
        pool = client.create_pool("sim", provider="local", slots_per_vm=2, heartbeat_s=1)
        pool.submit()
        spec = JobSpec("echo I-am-alive; exec sleep 600", shell=True, name="sleeper")
        job = client.submit(spec, pool=pool)
        eventually("it runs", lambda: job.refresh().state == "RUNNING")
        terminal = Terminal([sys.executable, "-m", "remuda", "top"], system.environment)
        terminal.until("FULLY_EXECUTING")
        terminal.type("3")
        terminal.until("sleeper")
        terminal.type("l")
        terminal.until("I-am-alive")
        terminal.type("q")
        terminal.until("sleeper")
        terminal.type("c")
        terminal.until(f"Cancel job {job.id}?")
        terminal.type("y")
        client.wait(job, timeout_s=DEADLINE_S)
        assert job.refresh().info()["reason"] == "CANCELLED"
        terminal.until("CANCELLED")
        terminal.type("q")
        assert terminal.end() == 0
