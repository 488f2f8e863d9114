"""The pool's preparation command: run once on a VM, before its first job.

What came of it is in HOME/prepared, so a later runner knows. It runs in HOME/prepare, in a process
group of its own; what it leaves running in sessions of their own (a daemon the jobs need) stays
until the VM ends. One that a runner's death cut short runs again when asked for again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any, Callable

from remuda.workers.onvm import marks
from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.executor import EXIT_CODES, KILL_S
from remuda.workers.onvm.job import NEVER
from remuda.workers.onvm.ledger import dumps
from remuda.workers.onvm.processes import launch, now, signal_tree, slurp
from remuda.workers.onvm.resources import Resources

TAIL = 64 << 10  # bytes of output that are kept
PIECE = 1 << 16


class Preparation:
    """A preparation that runs."""

    def __init__(self, ask: dict[str, Any]) -> None:
        """Read the request; KeyError, TypeError or ValueError if it is none."""
        self.key, self.argv = str(ask["key"]), ask["c"]
        self.env: dict[str, str] = ask.get("env") or {}
        self.timeout = float(ask.get("timeout") or NEVER)
        if not isinstance(self.argv, list) or not isinstance(self.env, dict):
            raise TypeError("the command is no list, or the environment no object")
        words = [*self.argv, *self.env, *self.env.values()]
        if not self.argv or not all(isinstance(word, str) for word in words):
            raise ValueError("no command, or a word that is no string")
        if not self.timeout > 0:
            raise ValueError("a timeout is a number of seconds above 0")
        self.pid, self.deadline = 0, NEVER
        self.fds: dict[int, str] = {}  # that are listened to, and as what it is said ("": not)
        self.timed_out, self.tail = False, bytearray()

    def pull(self, fd: int) -> bytes:
        """Take in a piece of what it wrote; empty at the end. BlockingIOError: nothing now."""
        data = os.read(fd, PIECE)
        self.tail += data
        del self.tail[:-TAIL]
        return data

    def told(self, **end: Any) -> dict[str, Any]:
        """Return what is known of it."""
        out = self.tail.decode("utf-8", "replace")
        about = {"state": "running", "st": None, "sig": None, "out": out}
        return {"key": self.key, **about, "timed_out": self.timed_out, **end}


class Preparing(Resources):
    """The request `prepare`, and what follows from it."""

    def __init__(self, home: str, **options: Any) -> None:
        """Remember what an earlier runner's preparation came to."""
        self.preparation: Preparation | None = None
        self.asked_to_prepare: set[Connection] = set()  # are told when it ends, like the watcher
        self.prepared: dict[str, Any] = json.loads(slurp(home + "/prepared") or b"{}")
        super().__init__(home, **options)

    def on_prepared(self, result: dict[str, Any]) -> None:
        """Hear that a preparation ended; for the subclass."""

    def do_prepare(self, connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{c, env, timeout, key}: run a command, but for one of the same key that ran already."""
        new, running = Preparation(ask), self.preparation
        if running:
            if running.key != new.key:
                raise ValueError("another preparation is running")
            self.asked_to_prepare.add(connection)
            return running.told()
        if self.prepared.get("key") != new.key:
            self.prepare(new)
        if not self.preparation:
            return self.prepared
        self.asked_to_prepare.add(connection)
        return self.preparation.told()

    def prepare(self, new: Preparation) -> None:
        """Start a preparation."""
        folder, mark = self.home + "/prepare", marks.mark(self.home, marks.PREPARATION)
        env = {**self.environ, **new.env, "REMUDA_VM": self.name, "REMUDA_VM_HOME": self.home}
        self.preparation, new.deadline = new, now() + new.timeout
        inner = []
        for name in ("stdout", "stderr"):
            fd, end = os.pipe()
            os.set_blocking(fd, False)
            new.fds[fd] = name
            inner.append(end)
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            os.chdir(folder)
            new.pid = launch(new.argv, env, *inner, mark=mark)
        except (OSError, ValueError) as error:
            told = f"{getattr(error, 'strerror', None) or error}: {new.argv[0]}\n".encode()
            new.tail += told
            self.say("stderr", told)
            self.preparation_over(EXIT_CODES.get(getattr(error, "errno", 0) or 0, 126), None)
        else:
            self.pids[new.pid] = None
            for fd in new.fds:
                self.attend(fd, self.attending(new, fd))
        finally:
            for end in inner:
                os.close(end)

    def attending(self, running: Preparation, fd: int) -> Callable[[int], None]:
        """Return what takes in output."""
        return lambda _: self.attended(running, fd)

    def attended(self, running: Preparation, fd: int) -> None:
        """Take in output; at its end, listen no more."""
        with contextlib.suppress(BlockingIOError):
            if not self.pull(running, fd):
                self.ignore(running, fd)

    def pull(self, running: Preparation, fd: int) -> bytes:
        """Take in a piece of what it wrote and keep it; empty at the end."""
        data = running.pull(fd)
        if data and running.fds[fd]:
            self.say(running.fds[fd], data)
        return data

    def take_rest(self, running: Preparation) -> None:
        """Take in all that is there, and listen no more."""
        for fd in list(running.fds):
            with contextlib.suppress(OSError):
                while self.pull(running, fd):
                    pass
            self.ignore(running, fd)

    def ignore(self, running: Preparation, fd: int) -> None:
        """Listen to it no more."""
        del running.fds[fd]
        self.handlers.pop(fd, None)
        os.close(fd)

    def tick(self) -> None:
        """End a preparation whose time is over."""
        super().tick()
        running = self.preparation
        if running and running.deadline <= now():
            mark = marks.mark(self.home, marks.PREPARATION)
            number = signal.SIGKILL if running.timed_out else signal.SIGTERM
            running.deadline = NEVER if running.timed_out else now() + KILL_S
            running.timed_out = True
            signal_tree(running.pid, mark, number)

    def helper_ended(self, pid: int, status: int) -> None:
        super().helper_ended(pid, status)
        if self.preparation and self.preparation.pid == pid:
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            self.preparation_over(code, os.WTERMSIG(status) if code is None else None)

    def preparation_over(self, code: int | None, number: int | None) -> None:
        """Keep what it came to, and tell."""
        running = self.preparation
        if not running:
            return
        self.take_rest(running)
        self.prepared = running.told(state="done", st=code, sig=number)
        self.preparation = None
        path = self.home + "/prepared"
        try:
            with open(path + ".new", "w") as file:
                file.write(dumps(self.prepared))
            os.rename(path + ".new", path)
        except OSError as error:
            print(f"cannot keep {path}: {error}", flush=True)  # it would run again, that is all
        self.on_prepared(self.prepared)
