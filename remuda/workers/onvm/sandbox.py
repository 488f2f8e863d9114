"""Sandboxes: their folders, names that stay inside, inputs copied in, outputs found."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable

# A shell script: removes folders however deep or unwritable, and never follows a link.
REMOVE = """rm -rf -- "$@" || {
    find "$@" -type d ! -perm -700 -exec chmod u+rwx {} \\;
    rm -rf -- "$@"
}"""


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


def size_of(folder: str, name: str) -> int | None:
    """Return the size of a regular file in the folder, None if there is no such file."""
    try:
        return os.stat(find_file(folder, name) or "").st_size
    except OSError:
        return None


def find_file(folder: str, name: str) -> str | None:
    """Return the real path of a regular file in the folder; a link leading out is no such file."""
    try:
        path = os.path.realpath(os.path.join(folder, inside(name)))
        good = path.startswith(folder + "/") and stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None
    return path if good else None


def copy_in(folder: str, name: str, source: str, mode: int) -> None:
    """Copy a regular file into the folder under a new name; OSError or ValueError if it cannot."""
    target = os.path.join(folder, inside(name))
    if not os.path.isabs(source):
        raise ValueError(f"cannot read {source[:200]!r} here")
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as src:
        if not stat.S_ISREG(os.fstat(src.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        with open(os.open(target, flags, 0o600), "wb") as dst:
            os.fchmod(dst.fileno(), mode & 0o777 | 0o400)
            at = 0
            while True:
                sent = os.sendfile(dst.fileno(), src.fileno(), at, 1 << 24)
                at += sent
                if not sent:
                    return
