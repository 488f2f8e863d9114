"""Message queues as folders: what the `filesystem://` broker keeps on disk.

    queues/<queue>/<message>      one file per message; the names sort in the order of arrival
    queues/<queue>/.alive         of a transient queue: flocked by each process that declared it
    claims/<process>/<message>@<queue>   taken, not yet acknowledged; `.alive` is flocked
    exchanges/<exchange>/<hash>   one file per binding
    tmp/                          files being written

Every step is one rename or one unlink, so a process killed at any point leaves nothing half done:
a message is in a queue or in one process's claims, and is seen by nobody while it is written. The
kernel drops a dead process's flocks; `Spool.sweep` then gives its claims back and removes the
transient queues nobody holds. Nothing is synced: a power cut may lose messages.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from remuda.broker.files import (
    drop_older,
    escape,
    hold,
    listdir,
    locked_if_unheld,
    make_private,
    unlink,
)

logger = logging.getLogger(__name__)

#: A message is dropped when this many processes died holding it.
MAX_DEATHS = 20
#: Messages nobody fetched from a transient queue are dropped after this time.
TRANSIENT_TTL_S = 60.0
#: A folder's mtime is trusted only when it is older than the coarsest clock tick in use.
MTIME_TICK_NS = 50_000_000
_SWEEP_S = 2.0


class Binding(NamedTuple):
    """A queue's subscription to an exchange; `pattern` is a regex (topic exchanges) or empty."""

    routing_key: str
    pattern: str
    queue: str


class Claimed(NamedTuple):
    """A message this process holds until it acknowledges or requeues `tag`."""

    tag: str
    body: bytes


class Spool:
    """The folders under `root`, shared by any number of processes; thread-safe."""

    def __init__(self, root: Path | str) -> None:
        """Use `root`, which must exist; everything below it is made when needed."""
        self.root = str(root)
        self._lock = threading.Lock()  # held while a file lock is waited for
        self._naming = threading.Lock()  # nothing is waited for, so who has a file lock may take it
        self._token = os.urandom(6).hex()
        self._last_ns = 0
        self._claims: tuple[str, int] | None = None
        self._holds: dict[str, int] = {}
        self._tables: dict[str, tuple[int, int, list[Binding]]] = {}
        self._swept = 0.0
        _spools.add(self)

    # -- messages ---------------------------------------------------------------------------

    def put(self, queue: str, body: bytes, *, create: bool = True) -> bool:
        """Append a message; False if the queue is gone and `create` is false."""
        folder = self._queue(queue)
        if not os.path.isdir(folder):
            if not create:
                return False
            make_private(folder)
        elif self._reap(escape(queue)):
            return False
        with suppress(FileNotFoundError):
            self._write(os.path.join(folder, f"{self._name()}.0.0"), body)
            return True
        return False

    def claim(self, queue: str, name: str) -> Claimed | None:
        """Take message `name`; None if another process was quicker. Raises OSError."""
        tag = f"{name}@{escape(queue)}"
        path = os.path.join(self._claims_folder(), tag)
        try:
            os.rename(os.path.join(self._queue(queue), name), path)
        except FileNotFoundError:
            return None
        try:
            with open(path, "rb") as file:
                return Claimed(tag, file.read())
        except OSError:
            self.requeue(tag)
            raise

    def ack(self, tag: str) -> None:
        """Forget a claimed message; harmless when repeated."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._claims_folder(), tag))

    def requeue(self, tag: str) -> None:
        """Give a claimed message back, at its old place; harmless when repeated."""
        self._give_back(self._claims_folder(), tag, died=False)

    def names(self, queue: str) -> list[str]:
        """Return the waiting messages, oldest first."""
        try:
            return sorted(n for n in os.listdir(self._queue(queue)) if n[:1].isdigit())
        except FileNotFoundError:
            return []

    def purge(self, queue: str) -> int:
        """Remove the waiting messages; return how many there were."""
        return sum(unlink(os.path.join(self._queue(queue), name)) for name in self.names(queue))

    # -- queues and bindings ----------------------------------------------------------------

    def declare(self, queue: str, *, transient: bool = False) -> None:
        """Make the queue; a transient one lives as long as a process that declared it."""
        folder = self._queue(queue)
        with self._lock:
            if not transient:
                make_private(folder)
            elif queue not in self._holds or not os.path.isdir(folder):
                self._close_hold(queue)
                self._holds[queue] = hold(folder)

    def holds(self, queue: str) -> bool:
        """Tell whether this process declared `queue` as transient."""
        return queue in self._holds

    def leave(self, queue: str) -> None:
        """End this process's hold on a transient queue; the last to leave removes it."""
        with self._lock:
            self._close_hold(queue)
        self._reap(escape(queue))

    def remove(self, queue: str) -> None:
        """Remove a queue, its messages and its bindings; harmless when repeated."""
        with self._lock:
            self._close_hold(queue)
        self._discard(escape(queue))

    def exists(self, queue: str) -> bool:
        """Tell whether the queue has been declared and not removed."""
        return os.path.isdir(self._queue(queue))

    def folder(self, queue: str) -> str:
        """Return the folder that changes when a message arrives."""
        return self._queue(queue)

    def bind(self, exchange: str, binding: Binding) -> None:
        """Add a binding; harmless when repeated."""
        data = json.dumps(binding).encode()
        folder = os.path.join(self.root, "exchanges", escape(exchange))
        path = os.path.join(folder, hashlib.sha256(data).hexdigest())
        if not os.path.exists(path):
            make_private(folder)
            self._write(path, data)

    def bindings(self, exchange: str) -> list[Binding]:
        """Return the bindings of an exchange; one stat when they have not changed."""
        folder = os.path.join(self.root, "exchanges", escape(exchange))
        now = time.time_ns()
        try:
            changed = os.stat(folder).st_mtime_ns
            known = self._tables.get(exchange)
            if known and known[0] == changed and known[1] - changed > MTIME_TICK_NS:
                return known[2]
            table = [binding for _, binding in _read_bindings(folder)]
        except FileNotFoundError:
            return []
        self._tables[exchange] = (changed, now, table)
        return table

    # -- what the dead left -----------------------------------------------------------------

    def sweep(self) -> None:
        """Undo what dead processes left behind; at most every 2 s, a few file calls."""
        with self._lock:
            if time.monotonic() - self._swept < _SWEEP_S:
                return
            self._swept = time.monotonic()
        try:
            self._sweep()
        except OSError as error:
            logger.warning("cannot tidy %s: %s", self.root, error)

    def _sweep(self) -> None:
        for name in listdir(os.path.join(self.root, "claims")):
            self._recover(os.path.join(self.root, "claims", name))
        for queue in listdir(os.path.join(self.root, "queues")):
            folder = os.path.join(self.root, "queues", queue)
            if os.path.exists(os.path.join(folder, ".alive")) and not self._reap(queue):
                drop_older(folder, TRANSIENT_TTL_S)
        drop_older(os.path.join(self.root, "tmp"), TRANSIENT_TTL_S)

    def _recover(self, folder: str) -> None:
        """Give back the claims in `folder` if its process is dead."""
        with locked_if_unheld(os.path.join(folder, ".alive")) as dead:
            if not dead:
                return
            tags = [tag for tag in listdir(folder) if not tag.startswith(".")]
            for tag in tags:
                self._give_back(folder, tag, died=True)
            shutil.rmtree(folder, ignore_errors=True)
        if tags:
            logger.warning("gave back %d messages of a worker that died", len(tags))

    def _give_back(self, folder: str, tag: str, *, died: bool) -> None:
        name, _, queue = tag.partition("@")
        stem, returns, deaths = name.rsplit(".", 2)
        counts = f"{int(returns) + (not died)}.{int(deaths) + died}"
        if died and int(deaths) + 1 >= MAX_DEATHS:
            logger.error("dropped message %s of %s: %s workers died of it", name, queue, deaths)
            unlink(os.path.join(folder, tag))
            return
        target = os.path.join(self.root, "queues", queue, f"{stem}.{counts}")
        try:
            os.rename(os.path.join(folder, tag), target)
        except FileNotFoundError:  # acknowledged meanwhile, or the queue has been removed
            unlink(os.path.join(folder, tag))

    def _reap(self, escaped: str) -> bool:
        """Remove the queue if it is transient and no process holds it."""
        with locked_if_unheld(os.path.join(self.root, "queues", escaped, ".alive")) as dead:
            if dead:
                self._discard(escaped)
            return dead

    def _discard(self, escaped: str) -> None:
        # Bindings first: whoever declares the queue anew binds it after its folder is there again.
        for exchange in listdir(os.path.join(self.root, "exchanges")):
            folder = os.path.join(self.root, "exchanges", exchange)
            for path, binding in _read_bindings(folder):
                if escape(binding.queue) == escaped:
                    unlink(path)
        grave = os.path.join(self._tmp(), self._name())
        with suppress(FileNotFoundError):
            os.rename(os.path.join(self.root, "queues", escaped), grave)
            shutil.rmtree(grave, ignore_errors=True)

    # -- this process -----------------------------------------------------------------------

    def _name(self) -> str:
        with self._naming:
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            return f"{self._last_ns:020d}-{self._token}"

    def _claims_folder(self) -> str:
        with self._lock:
            if self._claims is None or not os.path.isdir(self._claims[0]):
                self._claims = self._new_claims()
            return self._claims[0]

    def _new_claims(self) -> tuple[str, int]:
        # Locked before it gets its name, so a sweeper never sees it unlocked.
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        fresh = os.path.join(self._tmp(), name)
        held = hold(fresh)
        make_private(os.path.join(self.root, "claims"))
        folder = os.path.join(self.root, "claims", name)
        os.rename(fresh, folder)
        return folder, held

    def _close_hold(self, queue: str) -> None:
        held = self._holds.pop(queue, None)
        if held is not None:
            os.close(held)

    def _forget(self) -> None:
        """In a forked child: the holds and the claims are the parent's."""
        for fd in [*self._holds.values(), *([self._claims[1]] if self._claims else [])]:
            os.close(fd)
        self._holds.clear()
        self._claims = None
        self._token = os.urandom(6).hex()
        self._lock = threading.Lock()
        self._naming = threading.Lock()

    def _queue(self, queue: str) -> str:
        return os.path.join(self.root, "queues", escape(queue))

    def _tmp(self) -> str:
        folder = os.path.join(self.root, "tmp")
        make_private(folder)
        return folder

    def _write(self, path: str, data: bytes) -> None:
        """Make `path` appear whole, or not at all."""
        draft = os.path.join(self._tmp(), self._name())
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            os.rename(draft, path)
        except BaseException:
            unlink(draft)
            raise


def _read_bindings(folder: str) -> Iterator[tuple[str, Binding]]:
    for name in listdir(folder):
        path = os.path.join(folder, name)
        with suppress(OSError, ValueError, TypeError), open(path, "rb") as file:
            yield path, Binding(*json.load(file))


_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _after_fork() -> None:
    for spool in list(_spools):
        spool._forget()


os.register_at_fork(after_in_child=_after_fork)
