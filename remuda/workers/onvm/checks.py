"""Short commands that a controller has run on the VM to see how it does; any number at once.

They are answered when they end. What they leave running is killed with them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from abc import abstractmethod
from typing import Any

from remuda.workers.onvm import marks
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.executor import EXIT_CODES
from remuda.workers.onvm.job import NEVER
from remuda.workers.onvm.ledger import dumps
from remuda.workers.onvm.prepare import Preparation, Preparing
from remuda.workers.onvm.processes import launch, now

MOST = 16  # at once
LATER = {"later": True}  # in place of an answer: it comes when there is one


class Checking(Preparing):
    """The request `check`, and what follows from it."""

    def __init__(self, home: str, **options: Any) -> None:
        """Run none yet."""
        self.checks: dict[int, tuple[Preparation, Connection, Any]] = {}
        super().__init__(home, **options)

    def do_check(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{c, env, timeout}: run a command and answer with {st, sig, out, timed_out}."""
        if len(self.checks) >= MOST:
            raise ValueError("too many checks at once")
        check = Preparation({**ask, "key": ""})
        fd, inner = os.pipe()
        os.set_blocking(fd, False)
        check.fds[fd] = ""
        env = {**self.environ, **check.env, "REMUDA_VM": self.name, "REMUDA_VM_HOME": self.home}
        check.deadline = now() + check.timeout
        try:
            os.chdir(self.home)
            mark = marks.mark(self.home, marks.CHECK)
            check.pid = launch(check.argv, env, inner, inner, mark=mark)
        except (OSError, ValueError) as error:
            os.close(fd)
            text = f"{getattr(error, 'strerror', None) or error}: {check.argv[0]}"
            return check.told(out=text, st=EXIT_CODES.get(getattr(error, "errno", 0) or 0, 126))
        finally:
            os.close(inner)
        self.pids[check.pid] = None
        self.checks[check.pid] = (check, connection, ask.get("id"))
        self.attend(fd, lambda _: self.attended(check, fd))
        return LATER

    def check_deadline(self) -> float:
        """Return when the first check has to end."""
        return min((check.deadline for check, _, _ in self.checks.values()), default=NEVER)

    def tick(self) -> None:
        """End the checks whose time is over."""
        super().tick()
        for pid, (check, _, _) in list(self.checks.items()):
            if check.deadline <= now():
                check.timed_out, check.deadline = True, NEVER
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)

    def helper_ended(self, pid: int, status: int) -> None:
        """Answer whoever asked for it."""
        super().helper_ended(pid, status)
        check, connection, number = self.checks.pop(pid, (None, None, None))
        if check is None or connection is None:
            return
        self.take_rest(check)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # what it left behind
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        ended = check.told(st=code, sig=os.WTERMSIG(status) if code is None else None)
        if connection in self.connections_open():
            connection.send(dumps({"re": number, "ok": True, **ended}))

    @abstractmethod
    def connections_open(self) -> set[Connection]:
        """Return whom an answer can still be sent; for the subclass."""
