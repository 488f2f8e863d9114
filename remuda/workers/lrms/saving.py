"""Saving the files of a run to a directory: nothing overwritten unasked, nothing half there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from remuda.errors import DataStagingError
from remuda.files import telling

__all__ = ["Saver"]

Fetch = Callable[[str, Path], int]  # copies a remote file to a path that is free
Mark = tuple[int, int]


class Saver:
    """Saves files below one directory, which must exist.

    `marks` remembers what was saved before, so that a repeated call finds its own files and does
    not mistake them for somebody else's.
    """

    def __init__(self, directory: Path, *, overwrite: bool, marks: dict[Path, Mark]) -> None:
        """Raises DataStagingError if there is no such directory."""
        if not directory.is_dir():
            raise DataStagingError(f"{directory} is no directory", hint="make it first")
        self._root = directory.resolve()
        self._overwrite, self._marks = overwrite, marks

    def target(self, local: str) -> Path:
        """Return where a file goes; DataStagingError if it would leave the directory."""
        path = self._root / local
        if Path(local).is_absolute():
            return path  # the user named a place of its own
        if path.parent.resolve() not in (self._root, *_below(self._root, path.parent.resolve())):
            raise DataStagingError(f"{path} leads out of {self._root} by a link")
        return path

    def saved(self, path: Path) -> bool:
        """Tell whether this very file was saved here before and is as it was."""
        return path in self._marks and self._marks[path] == _mark(path)

    def check(self, path: Path) -> None:
        """Raise DataStagingError if something else is there that must stay."""
        if os.path.lexists(path) and not self.saved(path):
            if path.is_dir() and not path.is_symlink():
                raise DataStagingError(f"{path} is a directory")
            if not self._overwrite:
                raise DataStagingError(
                    f"{path} is already there", hint="overwrite=True replaces what is there"
                )

    def save(self, path: Path, fetch: Callable[[Path], int], *, executable: bool) -> None:
        """Fetch a file and put it there, whole; one that was saved before is not fetched again."""
        if self.saved(path):
            return
        with telling(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            fetch(aside)
            with telling(str(path)):
                if executable:
                    aside.chmod(aside.stat().st_mode | 0o111)
                if self._overwrite:
                    aside.replace(path)
                else:
                    os.link(aside, path)  # unlike a rename, refuses if somebody was faster
                self._marks[path] = _mark(path) or (0, 0)
        finally:
            aside.unlink(missing_ok=True)


def _below(root: Path, path: Path) -> list[Path]:
    return [path] if path.is_relative_to(root) else []


def _mark(path: Path) -> Mark | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)
