"""What a runner must never forget, kept in an append-only journal.

Every change is one JSON line, applied to the ledger and appended to the journal, so reading the
journal again gives the same ledger. Writing is deferred to `commit`; what a full disk refuses waits
in memory and keeps its place. A line cut short by a kill -9 never happened: whoever depends on a
line commits it first.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
from typing import Any

from remuda.workers.onvm.processes import slurp

dumps = json.JSONEncoder(separators=(",", ":")).encode
GAP = 1 << 20  # more entries than a runner can have pushed that were not yet in its journal
ROTATE = 1 << 20  # bytes


class Ledger:
    """The known attempts, and the entries (starts and exits) nobody has acknowledged yet."""

    def __init__(self, path: str) -> None:
        """Read the journal, if there is one."""
        self.path, self.fd, self.size, self.enough = path, -1, 0, ROTATE
        self.waiting = bytearray()
        self.n = self.floor = self.acked = self.session = 0
        self.boot = ""
        self.epochs: dict[int, list[int]] = {}  # job: [highest epoch seen, its attempt]
        self.open: dict[int, list[int]] = {}  # attempt: [job, epoch, pid; 0 queued, -1 intended]
        # exited attempt: whether it left files; or what was cut out of its output, by stream
        self.done: dict[int, Any] = {}
        self.stale: set[int] = set()  # recalled and freed attempts
        self.entries: collections.deque[tuple[int, str]] = collections.deque()
        self.held = 0  # bytes of entries
        for line in slurp(path).split(b"\n"):
            try:
                self._apply(json.loads(line), line.decode())
            except ValueError:
                continue

    def begin(self, boot: str, session: int) -> None:
        """Start a new life of the runner: its own numbers, its own journal file."""
        self.n += GAP if self.n else 0
        self.boot, self.session = boot, session
        if not self.rotate():
            self.fd = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            self.waiting += b"\n" + self._head()

    def add(self, **line: Any) -> str:
        """Make a change; returns its line."""
        text = dumps(line)
        self._apply(line, text)
        self.waiting += text.encode() + b"\n"
        return text

    def commit(self) -> str:
        """Write what waits; returns the system's complaint if it could not."""
        while self.waiting:
            try:
                written = os.write(self.fd, self.waiting)
            except OSError as error:
                return error.strerror or "error"
            self.size += written
            del self.waiting[:written]
        if self.size > self.enough:
            self.rotate()
        return ""

    def acknowledge(self, n: int) -> None:
        """Forget the entries up to n."""
        self.acked = max(self.acked, min(n, self.n))
        while self.entries and self.entries[0][0] <= self.acked:
            self.held -= len(self.entries.popleft()[1])

    def state(self, attempt: int) -> str:
        """Return "exited" or "stale" for an attempt that is over, else an empty string."""
        return "exited" if attempt in self.done else "stale" if attempt in self.stale else ""

    def rotate(self) -> bool:
        """Replace the journal by a short one of the same meaning; False if it was left alone."""
        self.enough = max(self.enough, self.size) + ROTATE  # the next try, should this one fail
        self.stale = {a for a in self.stale if a >= self.floor}
        self.done = {a: box for a, box in self.done.items() if box or a >= self.floor}
        self.epochs = {
            j: x for j, x in self.epochs.items() if x[1] >= self.floor or x[1] in self.open
        }
        text = self._head() + b"".join(line.encode() + b"\n" for _, line in self.entries)
        new = self.path + ".new"
        try:
            with open(new, "wb") as file:
                file.write(text)
            fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.rename(new, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            return False
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.size, self.enough = fd, len(text), 2 * len(text) + ROTATE
        self.waiting.clear()
        return True

    def _head(self) -> bytes:
        head: dict[str, Any] = {"t": "head", "stale": sorted(self.stale)}
        for name in ("n", "floor", "acked", "session", "boot"):
            head[name] = getattr(self, name)
        for name in ("epochs", "open", "done"):  # as pairs: the keys of a JSON object are strings
            head[name] = list(getattr(self, name).items())
        return dumps(head).encode() + b"\n"

    def _apply(self, line: dict[str, Any], text: str) -> None:
        kind, a = line["t"], line.get("a", 0)
        if kind == "head":
            for name in ("n", "floor", "acked", "session", "boot"):
                setattr(self, name, line[name])
            for name in ("epochs", "open", "done"):
                getattr(self, name).update(line[name])
            self.stale.update(line["stale"])
        elif kind == "job":
            self.floor = line["floor"]
            self.epochs[line["j"]] = [line["e"], a]
            self.open[a] = [line["j"], line["e"], 0]
        elif kind == "intent":
            self.open[a][2] = -1
        elif kind == "step":
            self.open[a][2] = line["pid"]
        elif kind == "drop":
            self.stale.add(a)
            self.open.pop(a, None)
            self.done.pop(a, None)
        else:
            self.n = max(self.n, line["n"])
            if kind == "start" and a in self.open:
                self.open[a][2] = line["pid"]
            elif kind == "exit" and self.open.pop(a, None):
                self.done[a] = line.get("cut") or line.get("box", False)
            if line["n"] > self.acked:
                self.entries.append((line["n"], text))
                self.held += len(text)
