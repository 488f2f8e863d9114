"""One captured output of a job: in memory while small, then in a file, its middle cut if huge."""

from __future__ import annotations

import os
from typing import Any

SPILL = 64 << 10  # bytes kept in memory


class Stream:
    """The reading end of a pipe. `total` counts all bytes that came, kept or not."""

    def __init__(self, path: str, limit: int) -> None:
        """Open the pipe; past `limit` bytes only the first and the last half of it are kept."""
        self.fd, self.inner = os.pipe()  # inner: for the job; close it once the job has it
        os.set_blocking(self.fd, False)
        self.path, self.half, self.data = path, max(limit // 2, 2 * SPILL), bytearray()
        self.file: Any = None
        self.total, self.gap, self.error = 0, 0, ""  # gap: bytes missing after the first half

    def pull(self, spill: int = SPILL) -> bool:
        """Take in what has come, at most 1 MiB; False at the end."""
        for _ in range(16):
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.total += len(data)
            if not self.error:
                self.data += data
                if self.file or len(self.data) > spill:
                    self._spill()
        return True

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes from an offset on, and the offset they really begin at."""
        if not self.file:
            return offset, bytes(self.data[offset : offset + size])
        if offset >= self.half:
            offset = max(offset, self.half + self.gap)
            return offset, os.pread(self.file.fileno(), size, offset - self.gap)
        return offset, os.pread(self.file.fileno(), min(size, self.half - offset), offset)

    def finish(self, spill: int) -> None:
        """Take in what is left and close; all of it is then in `data`, or in the file at `path`."""
        before = -1 if self.fd >= 0 else self.total
        while self.total != before:
            before = self.total
            self.pull(spill)
        self.close()
        if len(self.data) > spill and not self.error:
            self._spill()
        if self.file and not self.error and self.total > 2 * self.half:
            try:
                self._cut(b"\n[remuda: the middle of %d bytes was cut out here]\n" % self.total)
            except OSError as error:
                self.error = f"output lost: {error.strerror}"

    def handed_over(self) -> None:
        """Close the job's end here, now that the job has it."""
        os.close(self.inner)
        self.inner = -1

    def close(self) -> None:
        """Close the pipe; harmless when repeated."""
        for fd in (self.fd, self.inner):
            if fd >= 0:
                os.close(fd)
        self.fd = self.inner = -1

    def _spill(self) -> None:
        try:
            if not self.file:
                # closed when its last reader forgets it
                self.file = open(self.path, "w+b", 0)  # noqa: SIM115
            while self.data:
                del self.data[: self.file.write(self.data)]
            if self.file.tell() > 3 * self.half:
                self._cut(b"")
        except OSError as error:
            self.error = f"output lost: {error.strerror}"
            if self.file:
                self.data.clear()

    def _cut(self, note: bytes) -> None:
        """Leave the file's first half, the note, and as much of its end as the limit allows."""
        fd, end = self.file.fileno(), self.file.tell()
        at, start = self.half + len(note), end - self.half + len(note)
        self.gap += start - at
        os.pwrite(fd, note, self.half)
        while start < end:
            moved = os.pwrite(fd, os.pread(fd, 1 << 20, start), at)
            start, at = start + moved, at + moved
        self.file.truncate(at)
        self.file.seek(at)
