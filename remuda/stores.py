"""Files at URLs, by fsspec: read, put and looked at; with time-outs, and in pieces.

Credentials are those the stores' own libraries find where this process runs: never in a URL.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from remuda.errors import ConfigError, DataStagingError, OutputNotAvailable, RemudaError
from remuda.files import PIECE, trouble
from remuda.reading import (
    HttpSource,
    ObjectSource,
    Reader,
    SftpSource,
    Source,
    passing,
    persistent,
)
from remuda.spec_files import SCHEMES

__all__ = [
    "file_system",
    "open_url",
    "pull",
    "push",
    "reader_of",
    "remove_tree",
    "size_of",
    "validate_urls",
    "version_of",
]

PART_BYTES = 8 << 20  # of a large upload or download; a few are in memory at once
MOST_PARTS = 9000
CONNECT_S = 30.0
SILENCE_S = 60.0
S3_TRIES = 9  # of each request: about as long as PAUSES_S are together
_UNVERSIONED_S = 60.0  # how long content that bears no mark of its version is taken for the same


def validate_urls(urls: Iterable[str]) -> bool:
    """Tell whether all these can be staged from here: their kind is known, and installed."""
    import fsspec

    for url in urls:
        scheme = url.partition("://")[0] if "://" in url else "file"
        try:
            if scheme not in SCHEMES:
                return False
            fsspec.get_filesystem_class(scheme)
        except ImportError:
            return False
    return True


def file_system(url: str) -> Any:
    """Return fsspec's file system of a URL; raises ConfigError if there is none."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        kind: Any = _sftp() if scheme == "sftp" else fsspec.get_filesystem_class(scheme)
        with _told(url):
            system = kind(**kind._get_kwargs_from_urls(url), **_options(scheme))
    except ImportError as error:
        raise ConfigError(
            f"files at {scheme}:// need a package that is not installed: {error}",
            hint=f"pip install 'remuda[{'http' if scheme == 'https' else scheme}]'",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{shown_url(url)}: {error}") from None

    if scheme == "s3":
        system.retries = S3_TRIES
    return system


def open_url(url: str) -> BinaryIO:
    """Open a file for reading (it can seek, where the server lets it)."""
    system = file_system(url)
    with _told(url):
        return cast("BinaryIO", system.open(system._strip_protocol(url), "rb"))


def pull(url: str, target: str | os.PathLike[str]) -> None:
    """Copy the file at a URL to a local path, in pieces."""
    with reader_of(url) as reader, open(target, "wb") as file:
        while True:
            with _told(url):
                piece = reader.read(PIECE)
            if not piece:
                return
            file.write(piece)


def reader_of(url: str) -> Reader:
    """Return a reader of the file at a URL: what breaks off is gone on with, within its budget."""

    def opened(at: int, mark: Any) -> Source:
        system = file_system(url)
        path = system._strip_protocol(url)
        if url.startswith("http"):
            return HttpSource(system, path, at, mark)
        kind = SftpSource if url.startswith("sftp:") else ObjectSource
        return kind(system, path, at)

    return Reader(opened)


def push(path: str | os.PathLike[str], url: str, *, system: Any = None) -> None:
    """Put a local file at a URL, in pieces; it appears when it is complete.

    What breaks off is tried again, within a budget: each part of its own at s3 and gs, what is
    missing over sftp, all of it over http.
    """
    aside = f".{os.urandom(6).hex()}.part"
    given = [system] if system else []
    with _told(url):
        persistent(lambda: _push(path, url, given.pop() if given else file_system(url), aside))


def _push(path: str | os.PathLike[str], url: str, system: Any, aside: str) -> None:
    scheme = url.partition("://")[0]
    more: dict[str, Any] = {}
    if scheme in ("s3", "gs"):
        step = 1 << 20
        least = os.path.getsize(path) // MOST_PARTS
        more["chunksize"] = max(PART_BYTES, -(-least // step) * step)
    elif scheme in ("http", "https"):
        more["method"] = "put"
    to = system._strip_protocol(url)
    if scheme == "sftp":
        more["aside"] = aside
    if scheme not in ("s3", "gs", "http", "https"):
        system.makedirs(system._parent(to), exist_ok=True)
    system.put_file(os.fspath(path), to, **more)


def size_of(url: str, *, system: Any = None) -> int:
    """Return the size of the file at a URL in bytes."""
    system = system or file_system(url)
    with _told(url):
        return int(system.size(system._strip_protocol(url)))


def remove_tree(url: str, *, system: Any = None) -> None:
    """Remove the file at a URL, or all that is under it; harmless when there is nothing."""
    system = system or file_system(url)
    with _told(url):
        path = system._strip_protocol(url)
        system.invalidate_cache()
        if system.exists(path):
            system.rm(path, recursive=True)


_batch = threading.local()


@contextmanager
def one_batch() -> Iterator[None]:
    """Look at each URL only once within this block (in this thread)."""
    if getattr(_batch, "versions", None) is not None:
        yield
        return
    _batch.versions = {}
    try:
        yield
    finally:
        _batch.versions = None


def version_of(url: str) -> str:
    """Return a word that changes when the file at a URL does."""
    known: dict[str, str] | None = getattr(_batch, "versions", None)
    if known is not None and url in known:
        return known[url]
    system = file_system(url)
    with _told(url):
        info = system.info(system._strip_protocol(url))
    marks = [info.get(key) for key in ("ETag", "etag", "generation", "md5Hash", "Content-MD5")]
    marks += [info.get(key) for key in ("LastModified", "Last-Modified", "mtime", "created")]
    if not any(marks):
        marks.append(int(time.time() / _UNVERSIONED_S))
    text = repr([url, info.get("size"), *map(str, marks)])
    version = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    if known is not None:
        known[url] = version
    return version


def shown_url(url: str) -> str:
    """Return a URL without its query, which may hold a signature."""
    return f"{url.partition('?')[0]:.500}"


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn whatever a store's library raises into what it means."""
    try:
        yield
    except (RemudaError, ImportError):
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        # To fsspec whatever a web server says, or that there is none, is a file not found.
        of_web = cause is not None and type(cause).__module__.startswith("aiohttp")
        if cause is None or not of_web or getattr(cause, "status", None) in (404, 410):
            raise OutputNotAvailable(f"there is nothing at {shown_url(url)}") from None
        raise _trouble_of(url, cause) from cause
    except Exception as error:
        raise _trouble_of(url, error) from error


def _trouble_of(url: str, error: BaseException) -> RemudaError:
    if isinstance(error, OSError) and error.errno is not None:
        return trouble(shown_url(url), error)
    said = str(error) or type(error).__name__
    if hasattr(error, "status"):  # aiohttp's words repeat the URL
        said = f"the server says {error.status} {getattr(error, 'message', '')}".strip()
    query = url.partition("?")[2]
    said = said.replace(query, "…") if query else said
    return DataStagingError(f"{shown_url(url)}: {said:.500}")


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        return {
            "use_listings_cache": False,  # others write there, too
            "default_block_size": PART_BYTES,
            "max_concurrency": 2,
        }
    if scheme == "gs":
        return {"use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        return {"client_kwargs": {"timeout": limits}, "use_listings_cache": False}
    return {}


def _sftp() -> Any:
    """Return a file system over SFTP that believes no host key but those of known_hosts."""
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    class Refusing(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            # Of ours, not of paramiko's: those may pass, and this never does.
            raise DataStagingError(
                f"the host key of {hostname} is not known here", hint="add it to known_hosts"
            )

    class Sftp(SFTPFileSystem):  # type: ignore[misc]
        protocol = ("sftp",)
        cachable = False

        def _connect(self) -> None:
            config = paramiko.SSHConfig()
            file = Path("~/.ssh/config").expanduser()
            if file.is_file():
                config = paramiko.SSHConfig.from_path(str(file))
            said = config.lookup(self.host)
            keys = said.get("userknownhostsfile", "~/.ssh/known_hosts").split()
            self.client = paramiko.SSHClient()
            self.client.set_missing_host_key_policy(Refusing())
            for known in (*keys, "/etc/ssh/ssh_known_hosts"):
                if os.path.isfile(os.path.expanduser(known)):
                    self.client.load_host_keys(os.path.expanduser(known))
            self.client.connect(
                said.get("hostname", self.host),
                port=int(self.ssh_kwargs.get("port") or said.get("port", 22)),
                username=self.ssh_kwargs.get("username") or said.get("user"),
                key_filename=[os.path.expanduser(key) for key in said.get("identityfile", [])],
                timeout=CONNECT_S,
                banner_timeout=CONNECT_S,
                auth_timeout=CONNECT_S,
                channel_timeout=CONNECT_S,
            )
            self.ftp = self.client.open_sftp()
            self.ftp.get_channel().settimeout(SILENCE_S)

        def put_file(self, lpath: str, rpath: str, *, aside: str = ".part", **_: Any) -> None:
            """Go on with `aside`, added to the name, where an earlier call broke off."""
            path = self._strip_protocol(rpath)
            new = path + aside
            try:
                done = self.ftp.stat(new).st_size if self.exists(new) else 0
                with open(lpath, "rb") as source, self.ftp.open(new, "r+b" if done else "wb") as to:
                    source.seek(done)
                    to.seek(done)
                    to.set_pipelined(True)
                    while piece := source.read(PIECE):
                        to.write(piece)
                if self.ftp.stat(new).st_size != os.path.getsize(lpath):
                    raise EOFError("the server has not all of the file")
                self.ftp.posix_rename(new, path)
            except Exception as error:
                if not passing(error) and self.exists(new):
                    self.ftp.remove(new)
                raise

        def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
            file = super()._open(path, mode, **more)
            file.connection = self  # which lives as long as the file
            return file

        def __del__(self) -> None:
            client = getattr(self, "client", None)
            if client is not None:
                client.close()

    return Sftp
