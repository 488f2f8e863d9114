"""Copy and write files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from remuda.errors import DataStagingError

PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_IN_KERNEL = (
    errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF
)  # fmt: skip


def sha256_of(file: int) -> str:
    """Return the hash of a whole open file, in hexadecimal."""
    sha256 = hashlib.sha256()
    at = 0
    while piece := os.pread(file, PIECE, at):
        sha256.update(piece)
        at += len(piece)
    return sha256.hexdigest()


def copy_file(source: int, target: int) -> None:
    """Copy a whole file; inside the kernel if it can, which may share the blocks."""
    at = 0
    try:
        while count := os.copy_file_range(source, target, 1 << 30, at, at):
            at += count
    except OSError as error:
        if error.errno not in _NOT_IN_KERNEL:
            raise
    while piece := os.pread(source, PIECE, at):
        rest = memoryview(piece)
        while rest:
            count = os.pwrite(target, rest, at)
            rest = rest[count:]
            at += count


@contextmanager
def written_aside(
    target: Path, *, what: str, mode: int | None = None, sync: bool = False
) -> Iterator[BinaryIO]:
    """Write a file beside `target` that takes its place, whole, when the block succeeds.

    `mode`: its permissions. `sync`: it survives a power failure. Raises DataStagingError about
    `what` when the file cannot be written.
    """
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    with telling(what):
        stream = open(aside, "x+b")  # noqa: SIM115
    try:
        yield stream
        with telling(what):
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            if sync:
                os.fdatasync(stream.fileno())
            stream.close()
            aside.replace(target)
    except BaseException as error:
        with suppress(OSError):  # what is left in its buffer is not wanted any more
            stream.close()
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise trouble(what, error) from error
        raise


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn any OSError into a DataStagingError about `what`."""
    try:
        yield
    except OSError as error:
        raise trouble(what, error) from error


def trouble(what: str, error: OSError) -> DataStagingError:
    """Return the error that tells what the system said about `what`."""
    hint = "free some space" if error.errno in _FULL else ""
    return DataStagingError(f"{what}: {error.strerror or error}", hint=hint)
