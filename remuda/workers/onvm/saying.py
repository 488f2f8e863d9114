"""What a VM itself says: the stdout and stderr of its preparation, and the runner's own log.

The last of each is in HOME/said, in pieces named after the offset they begin at, so that it
outlives the runner. The log follows what the preparation wrote to stderr. The watcher is pushed
what it has not acknowledged.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.processes import slurp
from remuda.workers.onvm.requests import AttemptRequests, b64

PIECE, PIECES = 32 << 10, 4  # bytes in a file, and how many files are kept
ENOUGH = 1 << 20  # bytes of runner.log, all of them told, before it is emptied


class Ring:
    """The last pieces of one output; offsets count all that was ever written."""

    def __init__(self, folder: str, name: str) -> None:
        """Go on where the last runner was."""
        self.path = f"{folder}/{name}."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        mine = [each[len(name) + 1 :] for each in names if each.startswith(name + ".")]
        self.starts = sorted(int(each) for each in mine if each.isdigit())
        self.total = 0
        if self.starts:
            self.total = self.starts[-1] + os.path.getsize(self._file(self.starts[-1]))

    def write(self, data: bytes) -> None:
        """Add something; what the disk does not take is lost."""
        done = 0
        while done < len(data):
            if not self.starts or self.total >= self.starts[-1] + PIECE:
                self.starts.append(self.total)
                while len(self.starts) > PIECES:
                    with contextlib.suppress(OSError):
                        os.unlink(self._file(self.starts[0]))
                    del self.starts[0]
            room = self.starts[-1] + PIECE - self.total
            with open(self._file(self.starts[-1]), "ab", buffering=0) as file:
                count = file.write(data[done : done + room]) or 0
            done += count
            self.total += count

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes from an offset on, and the offset they really begin at."""
        for start in self.starts:
            if start + PIECE > offset:
                at = max(start, offset)
                try:
                    with open(self._file(start), "rb") as file:
                        file.seek(at - start)
                        return at, file.read(size)
                except OSError:
                    continue
        return max(offset, self.total), b""

    def _file(self, start: int) -> str:
        return self.path + str(start)


class Saying(AttemptRequests):
    """The requests `said` and `said_ack`, and what is pushed of it."""

    def __init__(self, home: str, **options: Any) -> None:
        """Go on where the last runner was."""
        folder = home + "/said"
        self.said: dict[str, Ring] = {name: Ring(folder, name) for name in ("stdout", "stderr")}
        self.said_acked: dict[str, int] = dict.fromkeys(self.said, 0)  # acknowledged
        self.log_told = int(slurp(home + "/said.log") or 0)  # bytes of runner.log
        super().__init__(home, **options)

    def on_said(self) -> None:
        """Hear that there is something new; for the subclass."""

    def say(self, name: str, data: bytes) -> None:
        """Keep what was said."""
        with contextlib.suppress(OSError):  # the disk may be full
            os.makedirs(self.home + "/said", 0o700, exist_ok=True)
            self.said[name].write(data)
        self.on_said()

    def take_log(self) -> None:
        """Keep what the runner wrote to its log since the last time."""
        try:
            with open(self.home + "/runner.log", "rb+", buffering=0) as log:
                size = os.fstat(log.fileno()).st_size
                if size == self.log_told:
                    return
                self.log_told = log.seek(self.log_told if size > self.log_told else 0)
                data = log.read(ENOUGH) or b""
                self.say("stderr", data)
                self.log_told += len(data)
                if self.log_told >= ENOUGH and self.log_told == os.fstat(log.fileno()).st_size:
                    log.truncate(0)
                    self.log_told = 0
            with open(self.home + "/said.log", "w") as file:
                file.write(str(self.log_told))
        except OSError:
            return  # the next time, then

    def do_said(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{s, offset}: a piece of "stdout" or "stderr" from the offset on; it may begin later."""
        self.take_log()
        at, data = self.said[str(ask["s"])].read(int(ask["offset"]), PIECE)
        return {"at": at, "d": b64(data)}

    def do_said_ack(self, _connection: Connection, ask: dict[str, Any]) -> None:
        """{s, n}: the first n bytes are recorded."""
        name = str(ask["s"])
        self.said_acked[name] = max(
            self.said_acked[name], min(int(ask["n"]), self.said[name].total)
        )
