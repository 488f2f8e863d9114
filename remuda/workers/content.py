"""What an input file is made of: where its content comes from and what it is called in caches."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from remuda.errors import DataStagingError
from remuda.files import trouble
from remuda.stores import reader_of, version_of
from remuda.workers.backends.base import InputFile

__all__ = ["Content"]


class Content:
    """The content of one input file; `key` is another for another content.

    `sha256` is "" if it is not known before it is read; then the key is made of the URL and of
    what its server says of it. `size` may be -1.
    """

    def __init__(self, file: InputFile) -> None:
        """Look at the file, unless all is known of it; raises DataStagingError."""
        self._name, url = file.name, file.url
        if "://" not in url:
            if not url.startswith("/"):
                raise DataStagingError(f"{url!r:.200} is no absolute path")
            url = Path(url).as_uri()
        self._url = url
        self.sha256, self.size, self._mark = file.sha256, file.size, ""
        if not self.sha256:
            self.size, self._mark = self._look()
        self.key = self.sha256 or hashlib.sha256(f"{url}\n{self._mark}".encode()).hexdigest()

    def opened(self, at: int) -> BinaryIO:
        """Open it, from an offset on; what breaks off is gone on with."""
        local = self._local()
        if not local:
            reader = reader_of(self._url)
            reader.seek(at)
            return cast("BinaryIO", reader)
        try:
            stream = open(local, "rb")  # noqa: SIM115 (closed by who asked for it)
        except OSError as error:
            raise trouble(f"input {self._name!r}", error) from error
        stream.seek(at)
        return stream

    def check(self) -> None:
        """Raise DataStagingError if it has changed since it was looked at."""
        if not self.sha256 and self._look()[1] != self._mark:
            raise DataStagingError(f"input {self._name!r} changes while it is read")

    def _local(self) -> str:
        local = self._url.startswith("file://")
        return unquote(urlsplit(self._url).path) if local else ""

    def _look(self) -> tuple[int, str]:
        """Return the size, -1 if it is not told, and what tells this content from others."""
        local = self._local()
        if not local:
            return -1, version_of(self._url)
        try:
            state = os.stat(local)
        except OSError as error:
            raise trouble(f"input {self._name!r}", error) from error
        return state.st_size, f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
