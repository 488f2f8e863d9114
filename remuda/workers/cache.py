"""A VM's cache of inputs, for VMs of this machine: each content once, the least used goes first.

    <home>/cache/<key>              a content
    <home>/cache/once/<key>.<n>     a link to it for one job, which takes it away when it has copied

So a content is in use as long as it has more than one link.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from remuda.files import telling

__all__ = ["LIMIT_BYTES", "Cache"]

LIMIT_BYTES = 20 << 30  # or a tenth of the disk, if that is less
FORGOTTEN_S = 7 * 86400.0  # a link nobody came for; its job was cancelled


class Cache:
    """The cache of one VM; many threads and processes may use it at once."""

    def __init__(self, home: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Make nothing yet."""
        self._path = home / "cache"
        self._limit = limit_bytes

    def link(self, key: str, fetch: Callable[[Path], None]) -> Path:
        """Return a file with the content of `key` for one job; `fetch` gets it if it is not there.

        Whoever comes while it is fetched waits for that. Raises what `fetch` does, and
        DataStagingError when the cache cannot be written; nothing half is ever there.
        """
        once = self._path / "once"
        with telling(str(self._path)):
            once.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine, entry = once / f"{key}.{uuid.uuid4().hex[:16]}", self._path / key
        while not self._linked(entry, mine):
            with self._alone(f"{key}.lock"):
                if not entry.exists():
                    aside = self._path / f"{key}.{uuid.uuid4().hex[:16]}.part"
                    try:
                        fetch(aside)
                        with telling(str(entry)):
                            aside.replace(entry)
                    finally:
                        aside.unlink(missing_ok=True)
                self._linked(entry, mine)
            self._shrink()
        return mine

    def _linked(self, entry: Path, mine: Path) -> bool:
        """Link the entry if it is there, and note its use."""
        try:
            with telling(str(mine)):
                os.utime(entry)
                os.link(entry, mine)
        except Exception as error:
            if isinstance(error.__cause__, FileExistsError):
                return True
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        return True

    def _shrink(self) -> None:
        """Remove what was used longest ago and is not in use, until the rest fits."""
        with self._alone("evict.lock"), telling(str(self._path)):
            self._sweep_links()
            found = []
            for entry in os.scandir(self._path):
                if entry.is_file(follow_symlinks=False) and "." not in entry.name:
                    found.append((entry.stat(), entry.path))
            total = sum(status.st_size for status, _ in found)
            limit = min(self._limit, shutil.disk_usage(self._path).total // 10)
            for status, path in sorted(found, key=lambda item: item[0].st_mtime):
                if total <= limit:
                    break
                # A link made since we looked keeps the content; it is fetched anew for the next.
                if status.st_nlink == 1:
                    Path(path).unlink(missing_ok=True)
                    Path(f"{path}.lock").unlink(missing_ok=True)
                    total -= status.st_size

    def _sweep_links(self) -> None:
        old = time.time() - FORGOTTEN_S
        for link in os.scandir(self._path / "once"):
            if link.stat(follow_symlinks=False).st_mtime < old:
                Path(link.path).unlink(missing_ok=True)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock file; the kernel lets go of it if we die."""
        with telling(str(self._path)):
            lock = os.open(self._path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
