"""One consumer's view of a queue."""

from __future__ import annotations

import logging
import os
import time
from collections import deque

from remuda.broker.bell import RESCAN_S
from remuda.broker.spool import MTIME_TICK_NS, Claimed, Spool

logger = logging.getLogger(__name__)


class Inbox:
    """Lists a queue once, then takes message after message."""

    def __init__(self, spool: Spool, queue: str) -> None:
        """Read `queue` of `spool`; an Inbox belongs to one thread."""
        self._spool = spool
        self._queue = queue
        self._names: deque[str] = deque()
        self._mtime_ns = -1
        self._listed_ns = 0
        self._listed = 0.0

    def take(self) -> Claimed | None:
        """Claim the oldest message; None if there is none. Costs one stat while idle."""
        try:
            while self._names or self._list():
                claimed = self._spool.claim(self._queue, self._names.popleft())
                if claimed is not None:
                    return claimed
        except OSError as error:
            self._names.clear()
            logger.warning("cannot take messages of %s: %s", self._queue, error)
        return None

    def _list(self) -> bool:
        now, now_ns = time.monotonic(), time.time_ns()
        try:
            mtime_ns = os.stat(self._spool.folder(self._queue)).st_mtime_ns
        except FileNotFoundError:
            return False
        settled = self._listed_ns - mtime_ns > MTIME_TICK_NS
        if mtime_ns == self._mtime_ns and settled and now - self._listed < RESCAN_S:
            return False
        self._names.extend(self._spool.names(self._queue))
        self._mtime_ns, self._listed_ns, self._listed = mtime_ns, now_ns, now
        return bool(self._names)
