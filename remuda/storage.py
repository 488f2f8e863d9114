"""Where inputs and results are kept: a directory on this machine, or whatever fsspec reaches.

    inputs/<ab>/<sha256>                     inputs, by their content: the same file is kept once
    pools/<pool>/<ab>/<sha256>               resources of pools, likewise
    jobs/<job>/<attempt>/<file|stream>/<name>   what attempts left
    partial/.<hash>.part                     beginnings of large outputs, for whoever goes on

Nothing is ever half there: files are written aside and renamed, or uploaded when complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from remuda.errors import ConfigError, DataStagingError, OutputNotAvailable
from remuda.files import copy_file, sha256_of, telling, trouble, written_aside
from remuda.partials import partial
from remuda.stores import file_system, open_url, pull, push, remove_tree, size_of, validate_urls

__all__ = ["Storage", "StoredFile", "validate_urls"]

INPUTS = "inputs"
_RACY_S = 2.0  # a file changed so lately may change again within the same tick of its clock
_REMEMBERED = 10_000


class _Changed(Exception):
    """The file changed while it was copied."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the storage. `mode`: the permission bits the original had."""

    url: str
    sha256: str
    size: int
    mode: int


class Storage:
    """Files under one URL; may be used by many threads and processes at once."""

    def __init__(self, url: str) -> None:
        """Open the storage at `url`, a directory's path or a URL; makes nothing yet.

        Raises ConfigError when its kind is unknown or not installed.
        """
        self._base = url.rstrip("/")
        self._known: dict[tuple[Any, ...], StoredFile] = {}
        self._root: Path | None = None
        self._fs: Any = None
        if "://" not in url:
            self._root = Path(url).absolute()
        elif url.startswith("file://"):
            self._root = _file_path(url)
        else:
            try:
                self._fs = file_system(url)
            except ConfigError as error:
                raise ConfigError(f"storage_url: {error.message}", hint=error.hint) from None

    @property
    def folder(self) -> Path | None:
        """The directory it is; None if it is elsewhere."""
        return self._root

    @property
    def partials(self) -> Path | None:
        """The directory for beginnings of files, if the storage is one; see `writing`."""
        return None if self._root is None else self._root / "partial"

    def url(self, key: str) -> str:
        """Return the URL of `key`, a relative path; raises DataStagingError for any other."""
        if not key or key.startswith("/") or ".." in key.split("/") or "\0" in key:
            raise DataStagingError(f"{key!r:.200} cannot be a name in the storage")
        return f"{self._base}/{key}" if self._root is None else (self._root / key).as_uri()

    def size(self, key: str) -> int:
        """Return the size of `key` in bytes; raises OutputNotAvailable if there is none."""
        url = self.url(key)
        if self._root is None:
            return size_of(url, system=self._fs)
        with _translated(url):
            return (self._root / key).stat().st_size

    @contextmanager
    def writing(
        self, key: str, *, mode: int | None = None, partials: Path | None = None
    ) -> Iterator[BinaryIO]:
        """Open `key` for writing; it appears, in place of an older one, if the block succeeds.

        `mode`: its permission bits, where the storage has such. `partials`: a folder for what is
        cut short (of this storage itself, if it is one: `partials`); the stream begins with that.
        """
        url = self.url(key)
        if partials is not None:
            with partial(partials, key) as stream:
                yield stream
                self._take(stream, key, mode)
            return
        if self._root is None:
            with tempfile.TemporaryDirectory(prefix="remuda-") as folder:
                aside = Path(folder) / "file"
                with aside.open("w+b") as stream:
                    yield stream
                push(aside, url, system=self._fs)
            return
        with telling(url):
            target = self._prepare(key)
        with written_aside(target, what=url, mode=mode) as stream:
            yield stream

    def _take(self, stream: BinaryIO, key: str, mode: int | None) -> None:
        """Put a complete file in its place."""
        url = self.url(key)
        with telling(url):
            stream.flush()
            if self._root is not None:
                if mode is not None:
                    os.fchmod(stream.fileno(), mode)
                target = self._prepare(key)
                try:
                    os.replace(stream.name, target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    with written_aside(target, what=url, mode=mode) as copy:
                        copy_file(stream.fileno(), copy.fileno())
                return
        push(stream.name, url, system=self._fs)

    def put_file(
        self, path: str | os.PathLike[str], *, name: str = "", folder: str = INPUTS
    ) -> StoredFile:
        """Keep a local file in a folder under the hash of its content and return where.

        A file seen before and unchanged is not read again. Raises DataStagingError naming it
        (as `name`, if given) when it cannot be read or stored, or changes all the while.
        """
        path = os.fspath(path)
        what = name or path
        try:
            before = os.stat(path)
        except OSError as error:
            raise _unreadable(what, error) from None
        if not stat.S_ISREG(before.st_mode):
            kind = "a directory" if stat.S_ISDIR(before.st_mode) else "no regular file"
            raise DataStagingError(f"input {what!r} is {kind}", hint="name each file")
        mark = _mark(path, before, folder)
        known = self._known.get(mark)
        if known is not None and self._holds(known):
            return known
        for _ in range(3):
            stored = self._put(path, what, folder)
            try:
                after = os.stat(path)
            except OSError as error:
                raise _unreadable(what, error) from None
            if stored is not None and _mark(path, after, folder) == mark:
                if time.time() - max(after.st_mtime, after.st_ctime) > _RACY_S:
                    if len(self._known) >= _REMEMBERED:
                        self._known.clear()
                    self._known[mark] = stored
                return stored
            mark = _mark(path, after, folder)
        raise DataStagingError(f"input {what!r} changes while it is read")

    def open(self, url: str) -> BinaryIO:
        """Open a stored file, or that at any URL, for reading (it can seek, if its server lets it).

        Raises OutputNotAvailable if it is gone.
        """
        path = self.local_path(url)
        if path is None:
            return open_url(url)
        with _translated(url):
            return path.open("rb")

    def read(self, url: str, *, offset: int = 0, size: int | None = None) -> bytes:
        """Return up to `size` bytes (None: all) from `offset` on; negative: from the end."""
        with self.open(url) as stream, _translated(url):
            if offset < 0:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(0, stream.tell() + offset))
            else:
                stream.seek(offset)
            return stream.read() if size is None else stream.read(size)

    def download(
        self, url: str, target: Path, *, mode: int | None = None, sha256: str | None = None
    ) -> Path:
        """Copy a stored file to `target`, replacing it at once when complete; return `target`.

        With `sha256` the content is checked. Raises OutputNotAvailable or DataStagingError.
        """
        with telling(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
        path = self.local_path(url)
        with written_aside(target, what=str(target), mode=mode) as stream:
            if path is None:
                pull(url, stream.name)
            else:
                with _translated(url), path.open("rb") as source:
                    copy_file(source.fileno(), stream.fileno())
            if sha256 is not None and sha256_of(stream.fileno()) != sha256:
                raise DataStagingError(f"{url} is damaged: its content is not what was stored")
        return target

    def remove(self, key: str) -> None:
        """Remove the file `key`, or all that is under it; harmless when there is nothing."""
        url = self.url(key)
        if self._root is None:
            remove_tree(url, system=self._fs)
            return
        path = self._root / key
        with telling(url):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except FileNotFoundError:
                pass  # also when another was quicker

    def local_path(self, url: str) -> Path | None:
        """Return where a stored file lies on this machine; None when it lies elsewhere."""
        return _file_path(url) if url.startswith("file://") else None

    def _put(self, path: str, what: str, folder: str) -> StoredFile | None:
        """Hash and store the file; None when it changed in between, and nothing is stored."""
        try:
            with open(path, "rb") as source:
                found = os.fstat(source.fileno())
                sha256 = sha256_of(source.fileno())
                key = f"{folder}/{sha256[:2]}/{sha256}"
                url = self.url(key)
                stored = StoredFile(url, sha256, found.st_size, stat.S_IMODE(found.st_mode) & 0o777)
                if self._holds(stored) or self._store(source.fileno(), stored, key):
                    return stored
        except OSError as error:
            raise _unreadable(what, error) from error
        return None

    def _store(self, source: int, stored: StoredFile, key: str) -> bool:
        """Copy, hash the copy, keep it if that is still the same."""
        if self._root is None:
            with tempfile.NamedTemporaryFile(prefix="remuda-") as aside:
                copy_file(source, aside.fileno())
                if sha256_of(aside.fileno()) != stored.sha256:
                    return False
                push(aside.name, stored.url, system=self._fs)
                return True
        target = self._prepare(key)
        try:
            with written_aside(target, what="the storage", sync=True) as stream:
                copy_file(source, stream.fileno())
                if sha256_of(stream.fileno()) != stored.sha256:
                    raise _Changed
        except _Changed:
            return False
        return True

    def _holds(self, stored: StoredFile) -> bool:
        try:
            if self._root is not None:
                return _file_path(stored.url).stat().st_size == stored.size
            return size_of(stored.url, system=self._fs) == stored.size
        except (OSError, OutputNotAvailable):
            return False

    def _prepare(self, key: str) -> Path:
        """Return the path of `key`, its directory made; the storage itself is private when new."""
        root = cast("Path", self._root)
        target = root / key
        if not target.parent.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _mark(path: str, found: os.stat_result, folder: str) -> tuple[Any, ...]:
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (folder, path, found.st_dev, found.st_ino, found.st_size, found.st_mode, *times)


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{url!r:.200} names another host", hint="file:///absolute/path")
    # Everything after the host is the path; urlsplit cuts at '?' and '#', as_uri() escapes them.
    return Path(unquote(parts.path))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise OutputNotAvailable(f"there is nothing at {url}") from None
    except OSError as error:
        raise trouble(url, error) from error


def _unreadable(what: str, error: OSError) -> DataStagingError:
    if isinstance(error, FileNotFoundError):
        return DataStagingError(
            f"there is no input file {what!r}", hint="relative paths start where you submit"
        )
    return DataStagingError(f"input {what!r}: {error.strerror or error}")
