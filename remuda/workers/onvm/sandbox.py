"""Sandboxes: their folders, names that stay inside, inputs copied in, outputs found."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from typing import Any

# A shell script: removes folders however deep or unwritable, and never follows a link.
REMOVE = """rm -rf -- "$@" || {
    find "$@" -type d ! -perm -700 -exec chmod u+rwx {} \\;
    rm -rf -- "$@"
}"""


# The time of change of every input has these nanoseconds, until somebody writes to it.
STAMP_NS = 271_828_182
ONCE = "/cache/once/"  # in the home: links to inputs, each for one use, so none goes while needed

BOX_ENDS = ("", ".out", ".err")  # a sandbox, and what was too long of its job's output


class Boxes:
    """The folders of a VM's jobs. Empty ones are used again: making a folder takes time."""

    def __init__(self, path: str) -> None:
        """Keep them under this path."""
        self.path, self.life, self.count = path, f"{time.time_ns():x}", 0
        self.spare: list[str] = []
        os.makedirs(path, 0o700, exist_ok=True)

    def of(self, attempt: int) -> str:
        """Return where an attempt's box is, if it has one of its own."""
        return f"{self.path}/{attempt}"

    def make(self, attempt: int) -> str:
        """Make an attempt's own box; OSError if it cannot be."""
        os.mkdir(self.of(attempt), 0o700)
        return self.of(attempt)

    def empty(self) -> str:
        """Return an empty folder, for a job that may leave nothing behind."""
        if self.spare:
            return self.spare.pop()
        folder = self._fresh()
        os.mkdir(folder, 0o700)
        return folder

    def close(self, attempt: int, folder: str) -> tuple[str, list[str]]:
        """Take a folder back: return the attempt's own box, if it has one now, and what to delete.

        A borrowed folder with something in it becomes the attempt's own.
        """
        if not folder or folder == self.of(attempt):
            return folder, []
        try:
            if os.listdir(folder):
                os.rename(folder, self.of(attempt))
                return self.of(attempt), []
            self.spare.append(folder)
        except OSError:  # whatever the job made of it, it is no good any more
            return "", self.doom([folder])
        return "", []

    def doom(self, paths: Iterable[str]) -> list[str]:
        """Take what there is of these paths out of sight; returns what is to be deleted, at leisure.

        A deletion must never know a name that may come to be used again.
        """
        doomed = []
        for path in paths:
            new = self._fresh()
            try:
                os.rename(path, new)
            except OSError:
                continue
            doomed.append(new)
        return doomed

    def free(self, attempts: Iterable[int]) -> list[str]:
        """Give up the boxes of attempts; returns what is to be deleted."""
        return self.doom(self.of(attempt) + end for attempt in attempts for end in BOX_ENDS)

    def keep(self, attempts: Iterable[int]) -> list[str]:
        """Give up everything but the boxes of these attempts; returns what is to be deleted."""
        kept = {str(attempt) + end for attempt in attempts for end in BOX_ENDS}
        return self.doom(
            f"{self.path}/{name}" for name in os.listdir(self.path) if name not in kept
        )

    def _fresh(self) -> str:
        """Return a name nobody ever had here."""
        self.count += 1
        return f"{self.path}/_{self.life}.{self.count}"


def inside(name: str) -> str:
    """Return a relative file name that stays in its folder; ValueError for any other."""
    if "\0" in name or {"", ".", ".."} & set(name.split("/")) or len(os.fsencode(name)) > 4000:
        raise ValueError(f"bad file name {name[:100]!r}")
    return name


def find_file(folder: str, name: str) -> str | None:
    """Return the real path of a regular file in the folder; a link leading out is no such file."""
    try:
        path = os.path.realpath(os.path.join(folder, inside(name)))
        good = path.startswith(folder + "/") and stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None
    return path if good else None


def copy_in(folder: str, name: str, source: str, mode: int) -> int:
    """Copy a regular file into the folder under a new name and return its size.

    OSError or ValueError if it cannot.
    """
    target = os.path.join(folder, inside(name))
    if source.startswith("!"):
        raise ValueError(source[1:2000])
    if not os.path.isabs(source):
        raise ValueError(f"cannot read {source[:200]!r} here")
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as src:
        found = os.fstat(src.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        with open(os.open(target, flags, 0o600), "wb") as dst:
            os.fchmod(dst.fileno(), mode & 0o777 | 0o400)
            size = _copy(src.fileno(), dst.fileno())
            if size != found.st_size:
                raise OSError(errno.EIO, "it changed while it was copied", source)
            # Older than anything the job makes of it, and told from all it writes.
            when = (time.time_ns() // 1_000_000_000 - 2) * 1_000_000_000 + STAMP_NS
            os.utime(dst.fileno(), ns=(when, when))
    if ONCE in source:
        os.unlink(source)
    return size


def _copy(source: int, target: int) -> int:
    """Copy a whole file, within the kernel, sharing its blocks where that is possible."""
    at = 0
    share: Any = getattr(os, "copy_file_range", None)  # Python 3.8
    try:
        while share:
            done = int(share(source, target, 1 << 30, at))
            at += done
            if not done:
                return at
    except OSError:
        if at:
            raise
    while True:
        done = os.sendfile(target, source, at, 1 << 24)
        at += done
        if not done:
            return at
