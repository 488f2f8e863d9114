"""Beginnings of files that outlive their writer: whoever writes the same file next goes on there.

Each has a name made of its key, and is locked by its writer; the kernel lets go of it if that dies.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from remuda.errors import ConfigError, DataStagingError, OutputNotAvailable
from remuda.files import telling, trouble

__all__ = ["STALE_S", "partial"]

STALE_S = 86400.0  # since its last byte; its attempt was lost, or nobody came back
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FINAL = (ConfigError, DataStagingError, OutputNotAvailable)  # nobody tries again after these


@contextmanager
def partial(folder: Path, key: str) -> Iterator[BinaryIO]:
    """Open what there is of `key` in `folder`, at its start, for reading and writing.

    It is removed when the block ends, unless that renamed it (`name` is its path), is cut short or
    killed: then it stays for the next. While another writes it, this is an empty file of one's own.
    Raises DataStagingError if it cannot be made, or the disk is full.
    """
    with telling(str(folder)):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sweep(folder)
        path = folder / f".{hashlib.sha256(os.fsencode(key)).hexdigest()}.part"
        shared = _locked(path)
        stream = shared or open(folder / f".{secrets.token_hex(8)}.part", "x+b")  # noqa: SIM115
    done = shared is None
    try:
        yield stream
        done = True
    except _FINAL:
        done = True
        raise
    except OSError as error:
        if error.errno in _FULL:
            done = True
            raise trouble(str(folder), error) from error
        raise
    finally:
        if done:
            _remove(stream)
        with suppress(OSError):  # a full disk was told of before
            stream.close()


def _locked(path: Path) -> BinaryIO | None:
    """Open it, made if it is not there, and lock it; None if another has."""
    while True:
        stream = open(path, "r+b", opener=_open)  # noqa: SIM115 (closed by who asked for it)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # by another, or the file system has no locks
            stream.close()
            return None
        if _there(stream):
            return stream
        stream.close()  # it was renamed or removed before it was let go of


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _there(stream: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.lstat(stream.name), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _remove(stream: BinaryIO) -> None:
    """Remove it, unless it was renamed; what is there by that name may be another's by now."""
    with suppress(OSError):
        if _there(stream):
            os.unlink(stream.name)


def _sweep(folder: Path) -> None:
    """Remove what nobody writes and nobody came for."""
    old = time.time() - STALE_S
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.name.endswith(".part") and entry.stat(follow_symlinks=False).st_mtime < old:
                stream = _locked(Path(entry.path))
                if stream is not None:
                    _remove(stream)
                    stream.close()
