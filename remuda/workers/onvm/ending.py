"""How a runner ends with its machine: told to restart it, or left alone for too long."""

from __future__ import annotations

from typing import Any

from remuda.workers.onvm.checks import Checking
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.job import NEVER
from remuda.workers.onvm.processes import now


def words_of(value: Any) -> list[str]:
    """Return a command, empty for none; TypeError if it is none."""
    words = value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError("the command is no list of words")
    return words


class Ending(Checking):
    """The dead-man timer, and the requests that end the runner with its machine."""

    def __init__(self, home: str, **options: Any) -> None:
        """Have no timer yet; a controller sets it."""
        self.dead_man, self.dead_man_command = 0.0, []  # type: float, list[str]
        self.heard_at = now()
        self.farewell: list[str] = []  # run in place of the runner, when it has ended all else
        super().__init__(home, **options)

    def do_configure(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{dead_man, command}: end everything here when no controller speaks for so many seconds.

        0 is never. Then `command`, if there is one, is run: to power the machine off.
        """
        seconds, command = float(ask.get("dead_man") or 0.0), words_of(ask.get("command"))
        if not 0 <= seconds < NEVER:
            raise ValueError("dead_man is a number of seconds from 0 up")
        self.dead_man, self.dead_man_command = seconds, command

    def do_heard(self, _connection: Connection, _ask: dict[str, Any]) -> None:
        """{}: a controller is there."""

    def do_reboot(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{c}: end everything here and run a command, to restart the machine."""
        self.farewell, self.stopping = words_of(ask.get("c")), True

    def left_alone_at(self) -> float:
        """Return when the dead-man timer is over."""
        return self.heard_at + self.dead_man if self.dead_man else NEVER

    def tick(self) -> None:
        """End everything if nobody has spoken for so long."""
        super().tick()
        if now() >= self.left_alone_at() and not self.stopping:
            print(f"no controller spoke for {self.dead_man:g} s: ending everything", flush=True)
            self.farewell, self.stopping = self.dead_man_command, True
