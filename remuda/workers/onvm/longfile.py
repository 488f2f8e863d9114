"""An output too long for memory, in files: its first half, and the latest of the rest.

    PATH                  the first half; before anything is cut, as much again
    PATH.<half>.<start>   a part of half that size, from the byte `start` of the output on

Parts are only appended to and deleted whole, so whatever moment the runner is killed at, the files
tell what they hold. At the end PATH has the first half, a note of the cut, and the end.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any, List

NOTE = b"\n[remuda: the middle of %d bytes was cut out here]\n"
PIECE = 1 << 20

Cut = List[int]  # [from, to, all]: what is missing, and how many bytes there were


class LongFile:
    """The files of one output. Writing raises OSError; what was written before stays."""

    def __init__(self, path: str, half: int, *, mode: str = "w+b") -> None:
        """Keep twice `half` bytes in the end."""
        self.path, self.half, self.size = path, half, 0
        self.parts: list[tuple[int, Any]] = []
        self.head: Any = open(path, mode, 0)  # noqa: SIM115
        self.head_end = 2 * half  # where what counts of it ends

    def write(self, data: bytes | bytearray) -> int:
        """Append some of the data; returns how much."""
        file, end = self.head, 2 * self.half
        if self.size >= end:
            start = self.size // self.half * self.half
            if not self.parts or self.parts[-1][0] != start:
                self._turn_to(start)
            file, end = self.parts[-1][1], start + self.half
        done = int(file.write(memoryview(data)[: end - self.size]))
        self.size += done
        return done

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes from an offset on, and the offset they really begin at."""
        if self.parts and self.head_end <= offset < self.parts[0][0]:
            offset = self.parts[0][0]
        data, at = b"", offset
        for start, end, file in self._ranges():
            if size > len(data) and start <= at < end:
                data += os.pread(file.fileno(), min(size - len(data), end - at), at - start)
                at = offset + len(data)
        return offset, data

    def finish(self) -> Cut | None:
        """Leave one file; returns what was cut out of it, if anything was.

        The parts are still there; `litter` tells their paths.
        """
        if self.size <= 2 * self.half:
            return None
        note = NOTE % self.size
        to = self.size - self.half + len(note)
        if to < self.head_end:
            self._split(to)
        self._cut_head()
        self.head.seek(self.half)
        write_all(self.head, note)
        for start, end, file in self._ranges()[1:]:
            copy(file, max(0, to - start), end - start, self.head)
        return [self.half, to, self.size]

    def __del__(self) -> None:
        """Close the files with the last who reads them."""
        head = [self.head] if hasattr(self, "head") else []
        for file in (*head, *(file for _, file in self.parts)):
            file.close()

    @property
    def litter(self) -> list[str]:
        """The paths of the parts."""
        return [self._part(start) for start, _ in self.parts]

    @classmethod
    def found(cls, path: str) -> LongFile:
        """Take up what a runner that was killed has left; OSError if there is nothing."""
        names = [name.rsplit(".", 2)[1:] for name in glob.glob(glob.escape(path) + ".*.*")]
        starts = sorted((int(start), int(half)) for half, start in names if start.isdigit())
        size = os.stat(path).st_size
        long = cls(path, starts[0][1] if starts else size, mode="r+b")
        long.size = size
        for start, _ in starts:
            file = open(long._part(start), "r+b", 0)  # noqa: SIM115
            long.parts.append((start, file))
            long.size = start + os.fstat(file.fileno()).st_size
        if [start for start, _ in starts] not in ([], [2 * long.half]):
            long._cut_head()
        return long

    def _ranges(self) -> list[tuple[int, int, Any]]:
        """Return (start, end, file) of all there is, without what is there twice."""
        found = [(0, min(self.head_end, self.size), self.head)]
        for i, (start, file) in enumerate(self.parts):
            end = self.parts[i + 1][0] if i + 1 < len(self.parts) else self.size
            found.append((start, end, file))
        return found

    def _part(self, start: int) -> str:
        return f"{self.path}.{self.half}.{start}"

    def _turn_to(self, start: int) -> None:
        """Begin a part; give up what is not needed any more."""
        self.parts.append((start, open(self._part(start), "w+b", 0)))  # noqa: SIM115
        if start > 2 * self.half:
            self._cut_head()
        while len(self.parts) > 2:
            with contextlib.suppress(OSError):
                start, file = self.parts.pop(0)
                file.close()
                os.unlink(self._part(start))

    def _split(self, start: int) -> None:
        """Make what the head has from `start` on a part."""
        path = self._part(start)
        part = open(path + ".new", "w+b", 0)  # noqa: SIM115
        copy(self.head, start, self.head_end, part)
        os.rename(path + ".new", path)
        self.parts.insert(0, (start, part))

    def _cut_head(self) -> None:
        self.head_end = self.half
        self.head.truncate(self.half)


def write_all(file: Any, data: bytes) -> None:
    """Write all of the data to a file that has no buffer."""
    while data:
        data = data[file.write(data) :]


def copy(source: Any, at: int, end: int, target: Any) -> None:
    """Append a piece of one file to another."""
    while at < end:
        data = os.pread(source.fileno(), min(PIECE, end - at), at)
        if not data:
            return
        write_all(target, data)
        at += len(data)
