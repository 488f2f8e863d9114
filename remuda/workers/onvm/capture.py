"""One captured output of a job: in memory while small, then in a file, its middle cut if huge."""

from __future__ import annotations

import os

from remuda.workers.onvm.longfile import Cut, LongFile

SPILL = 64 << 10  # bytes kept in memory


class Stream:
    """The reading end of a pipe. `total` counts all bytes that came, kept or not."""

    def __init__(self, path: str, limit: int) -> None:
        """Open the pipe; past `limit` bytes only the first and the last half of it are kept."""
        self.fd, self.inner = os.pipe()  # inner: for the job; close it once the job has it
        os.set_blocking(self.fd, False)
        self.path, self.half, self.data = path, max(limit // 2, 2 * SPILL), bytearray()
        self.file: LongFile | None = None
        self.total, self.error = 0, ""
        self.taped = 0  # bytes of `data` that are recorded elsewhere, too
        self.over = False
        self.cut: Cut | None = None  # what is missing in the end

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

    @property
    def only_in_memory(self) -> bool:
        """Whether what came is nowhere else: in no file, nor in the report of the job's end."""
        return not (self.over or self.file or self.error)

    @property
    def litter(self) -> list[str]:
        """The paths of files that are not needed once its end is recorded."""
        return self.file.litter if self.file else []

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes from an offset on, and the offset they really begin at."""
        if not self.file:
            return offset, bytes(self.data[offset : offset + size])
        return self.file.read(offset, size)

    def finish(self, spill: int) -> None:
        """Take in what is left and close; all of it is then in `data`, or in the file at `path`."""
        before = -1 if self.fd >= 0 else self.total
        while self.total != before:
            before = self.total
            self.pull(spill)
        self.close()
        self.over = True
        if len(self.data) > spill and not self.error:
            self._spill()
        if self.file and not self.error:
            try:
                self.cut = self.file.finish()
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
                self.file = LongFile(self.path, self.half)
            while self.data:
                del self.data[: self.file.write(self.data)]
        except OSError as error:
            self.error = f"output lost: {error.strerror}"
            if self.file:
                self.data.clear()
