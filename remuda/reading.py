"""Read files at URLs to their end: what breaks is gone on with where it broke, within a budget.

A reader goes on only with the same content, by what the store says of its version; where it says
nothing, the first break is the end.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from remuda.errors import DataStagingError, RemudaError

__all__ = ["PAUSES_S", "Reader", "passing", "persistent"]

log = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # before the tries after the first
PROGRESS = 1 << 20  # bytes after which the budget is whole again
RANGE = 8 << 20  # bytes asked for at once of an object store
WINDOW = 4 << 20  # bytes under way from an SFTP server
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be another the next time
_NETWORK = {
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    socket.EAI_AGAIN,
}

T = TypeVar("T")


class Source(Protocol):
    """What is read of one connection; `mark` tells this content from others, None: nothing does."""

    mark: Any

    def read(self, size: int) -> bytes:
        """Return some bytes, none at the end."""

    def close(self) -> None:
        """Give the connection up."""


class Reader:
    """A file at a URL, opened with the first read; `opened` gives a Source from an offset on."""

    def __init__(self, opened: Callable[[int, Any], Source]) -> None:
        """`opened` gets the offset and the mark that is expected, None for any."""
        self._opened = opened
        self._source: Source | None = None
        self._mark: Any = None
        self._at = self._tries = self._moved = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end; raises what the store does."""
        while True:
            try:
                source = self._source = self._source or self._open()
                data = source.read(size)
            except Exception as error:
                self.close()
                begun = self._at > 0 and self._mark is None
                if begun or self._tries >= len(PAUSES_S) or not passing(error):
                    raise
                wait(self._tries, error)
                self._tries, self._moved = self._tries + 1, 0
                continue
            self._at += len(data)
            self._moved += len(data)
            if self._moved >= PROGRESS:
                self._tries = 0
            return data

    def _open(self) -> Source:
        source = self._opened(self._at, self._mark)
        if self._mark is not None and source.mark != self._mark:
            source.close()
            raise DataStagingError("it changed while it was read")
        self._mark = source.mark
        return source

    def seek(self, offset: int) -> None:
        """Go on from an offset."""
        self.close()
        self._at = offset

    def close(self) -> None:
        """Close the connection; harmless when repeated."""
        source, self._source = self._source, None
        if source is not None:
            try:
                source.close()
            except Exception as error:
                log.debug("closing a broken transfer: %s", error)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def persistent(work: Callable[[], T]) -> T:
    """Do something that may be repeated, again if what went wrong may pass."""
    for tries in range(len(PAUSES_S) + 1):
        try:
            return work()
        except Exception as error:
            if tries == len(PAUSES_S) or not passing(error):
                raise
            wait(tries, error)
    raise AssertionError


def wait(tries: int, error: BaseException) -> None:
    """Wait before the next try, the longer the more there were."""
    log.info("a transfer goes on after: %s", type(error).__name__)
    time.sleep(PAUSES_S[tries] * random.uniform(0.8, 1.2))


def passing(error: BaseException) -> bool:
    """Tell whether what went wrong may not happen the next time."""
    if isinstance(error, RemudaError):
        return error.__cause__ is not None and passing(error.__cause__)
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if status is not None and str(status).isdigit():
        return int(status) in _AGAIN
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)):
        return True
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return True
    if type(error) is OSError and str(error) == "Socket is closed":  # paramiko's, of a channel
        return True
    if isinstance(error, ValueError):
        return False
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).mro()}
    if names & {"paramiko.AuthenticationException", "paramiko.BadHostKeyException"}:
        return False
    return bool(
        names & {"aiohttp.ClientError", "botocore.HTTPClientError", "paramiko.SSHException"}
        or names & {"botocore.ConnectionError", "requests.RequestException"}
        or "paramiko.NoValidConnectionsError" in names
    )


class HttpSource:
    """A response of a web server, from an offset on."""

    def __init__(self, system: Any, url: str, at: int, mark: Any) -> None:
        """Ask for the rest if it is still the same, and skip what comes of the beginning."""
        from fsspec.asyn import sync
        from fsspec.implementations.http import HTTPStreamFile

        headers = {"Accept-Encoding": "identity"}
        if at:
            headers["Range"] = f"bytes={at}-"
            if mark and not mark[0].startswith("W/"):
                headers["If-Range"] = mark[0]
        session = sync(system.loop, system.set_session)
        self._file = HTTPStreamFile(system, url, session=session, loop=system.loop, headers=headers)
        response = self._file.r
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        partial = response.status == 206 and found is not None and int(found[1]) == at
        total = found[2] if partial and found else response.headers.get("Content-Length", "*")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        self.mark = (tag, total) if tag else None
        left = 0 if partial else at
        while left and (data := self._file.read(min(left, 1 << 20))):
            left -= len(data)

    def read(self, size: int) -> bytes:
        """Return some bytes."""
        return bytes(self._file.read(size))

    def close(self) -> None:
        """Hang up."""
        self._file.close()


class ObjectSource:
    """An object of S3 or Google Cloud Storage, read range by range."""

    def __init__(self, system: Any, path: str, at: int) -> None:
        """Look at it."""
        info = system.info(path)
        self._system, self._path, self._at, self._size = system, path, at, int(info["size"])
        self._data = memoryview(b"")
        tags = [str(info[key]) for key in ("generation", "ETag", "etag") if info.get(key)]
        self.mark = (*tags, self._size) if tags else None

    def read(self, size: int) -> bytes:
        """Return some bytes."""
        if not self._data and self._at < self._size:
            end = min(self._at + RANGE, self._size)
            data = self._system.cat_file(self._path, start=self._at, end=end)
            if len(data) != end - self._at:
                raise EOFError("the store sent less than was asked for")
            self._data, self._at = memoryview(data), end
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def close(self) -> None:
        """Nothing is open."""


class SftpSource:
    """A file of an SFTP server."""

    def __init__(self, system: Any, path: str, at: int) -> None:
        """Open it."""
        state = system.ftp.stat(path)
        self._system, self._at, self._size = system, at, int(state.st_size)
        self._file = system.ftp.open(path, "rb")
        self._file._start_prefetch = self._ask
        self._data = memoryview(b"")
        self.mark = (state.st_size, state.st_mtime)

    def _ask(self, chunks: list[tuple[int, int]], _: int | None = None) -> None:
        """Ask for all of a window before the first answer is read.

        paramiko asks in a thread of its own, and takes a window for complete when each part that
        was asked for *so far* is there: the others are then asked for once more, and what comes
        of the first asking stays in memory (paramiko's pull request 2519).
        """
        self._file._prefetching, self._file._prefetch_done = True, not chunks
        self._file._prefetch_thread(chunks, None)

    def read(self, size: int) -> bytes:
        """Return some bytes."""
        if not self._data and self._at < self._size:
            wanted = min(WINDOW, self._size - self._at)
            data = b"".join(self._file.readv([(self._at, wanted)]))
            if not data:
                raise EOFError("the file is shorter than it was")
            self._data, self._at = memoryview(data), self._at + len(data)
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def close(self) -> None:
        """Close the file and the connection."""
        self._file.close()
        self._system.client.close()
