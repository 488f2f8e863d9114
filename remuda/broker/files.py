"""File-system steps the broker is made of: each one atomic, or harmless when it fails half-way."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from urllib.parse import quote

_REMEMBERED = 200  # characters: of longer names the file name is made anew each time


def escape(name: str) -> str:
    """Return a file name for any queue or exchange name; different names never share one."""
    return _known(name) if len(name) <= _REMEMBERED else _escaped(name)


def _escaped(name: str) -> str:
    escaped = quote(name, safe="@+=,:")
    if len(escaped) > 160:
        escaped = f"{escaped[:80]}%{hashlib.sha256(name.encode()).hexdigest()}"
    return escaped if escaped[:1] not in (".", "") else f"%{escaped}"


_known = lru_cache(maxsize=1000)(_escaped)


def make_private(path: str) -> None:
    """Make the folder and its missing parents with mode 0700; leave what exists as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_private(os.path.dirname(path))
        make_private(path)


def listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def drop_older(folder: str, age_s: float) -> None:
    limit = time.time() - age_s
    for name in listdir(folder):
        path = os.path.join(folder, name)
        with suppress(OSError):
            if name != ".alive" and os.stat(path).st_mtime < limit:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def hold(folder: str) -> int:
    """Make `folder` with its `.alive` file and return the descriptor that keeps it flocked."""
    path = os.path.join(folder, ".alive")
    while True:
        make_private(folder)
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    return fd
            os.close(fd)  # a sweeper removed the folder between the open and the lock


@contextmanager
def locked_if_unheld(path: str) -> Iterator[bool]:
    """Yield whether `path` exists and no live process holds it; keep it locked meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield _lock_if_free(path, fd)
    finally:
        os.close(fd)


def _lock_if_free(path: str, fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except (BlockingIOError, FileNotFoundError):
        return False
