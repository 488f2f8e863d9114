"""How an idle consumer waits: in the kernel, by inotify; where there is none, by short sleeps."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
from contextlib import suppress

#: Between two looks where inotify is not to be had.
POLL_S = 0.010
#: A watched folder is looked at this often all the same.
RESCAN_S = 1.0
_IN_MOVED_TO = 0x80


class Bell:
    """Sleeps until a message is moved into a watched folder, or another thread rings."""

    def __init__(self) -> None:
        """Cost nothing until the first `watch`."""
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._rung = -1
        self._inotify = -1
        self._usable = True

    def watch(self, folder: str) -> None:
        """Wake up when something arrives in `folder`; repeat it if the folder was made anew."""
        with self._lock:
            if self._rung < 0 and self._usable:
                self._rung = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._poll.register(self._rung, select.POLLIN)
            if self._inotify < 0 and self._usable:
                self._inotify = _inotify_open()
                self._usable = self._inotify >= 0
                if self._usable:
                    self._poll.register(self._inotify, select.POLLIN)
            if self._inotify >= 0 and not _inotify_watch(self._inotify, folder):
                self._drop_inotify()

    def ring(self) -> None:
        """End the present or the next `wait`; from any thread."""
        with self._lock:
            if self._rung >= 0:
                os.eventfd_write(self._rung, 1)

    def wait(self, timeout_s: float) -> None:
        """Sleep for `timeout_s` (0.01 s at most without inotify) or until woken."""
        limit = RESCAN_S if self._inotify >= 0 else POLL_S
        for fd, _ in self._poll.poll(max(1.0, min(timeout_s, limit) * 1000)):
            with suppress(BlockingIOError):
                os.read(fd, 65536)

    def close(self) -> None:
        """Give the descriptors back; harmless when repeated."""
        with self._lock:
            self._drop_inotify()
            if self._rung >= 0:
                self._poll.unregister(self._rung)
                os.close(self._rung)
                self._rung = -1

    def _drop_inotify(self) -> None:
        self._usable = False
        if self._inotify >= 0:
            self._poll.unregister(self._inotify)
            os.close(self._inotify)
            self._inotify = -1


_libc = ctypes.CDLL(None, use_errno=True)


def _inotify_open() -> int:
    """Return a descriptor, or -1 where there is no inotify or no instance left."""
    try:
        return int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    except AttributeError:
        return -1


def _inotify_watch(fd: int, folder: str) -> bool:
    """Watch `folder` for files moved in; False only if no watch can be had at all."""
    if _libc.inotify_add_watch(fd, os.fsencode(folder), _IN_MOVED_TO) >= 0:
        return True
    return ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR)
