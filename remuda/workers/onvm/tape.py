"""What running jobs wrote and is nowhere else yet, for the next runner should this one be killed.

Short outputs are in the runner's memory until their job ends. Once in every turn of its loop, what
came of them is appended to HOME/tape, one file for all jobs: of a job that wrote nothing, or ended
in the turn its output came in, there is nothing on it. What was written survives the runner, not
the machine: it is not synced.
"""

from __future__ import annotations

import base64
import contextlib
import os
import struct
from typing import Any, Tuple

from remuda.workers.onvm.capture import Stream
from remuda.workers.onvm.longfile import LongFile
from remuda.workers.onvm.processes import slurp

RECORD = struct.Struct("<qBII")  # attempt, 0 or 1 for stdout or stderr, offset, length; the bytes
ENOUGH = 1 << 20  # bytes of a tape, beside what is needed of it

Key = Tuple[int, int]


class Tape:
    """The tape of one home."""

    def __init__(self, path: str) -> None:
        """Read what the last runner left; nothing is changed before `begin`."""
        self.path, self.fd, self.size, self.enough = path, -1, 0, ENOUGH
        self.left: dict[Key, bytes] = _parsed(slurp(path))
        self.fresh: dict[Stream, Key] = {}  # those of which something came that is not on it
        self.live: dict[Stream, Key] = {}  # those of which something is on it

    def begin(self) -> None:
        """Forget what was left, and record from now on."""
        had, self.left = bool(self.left), {}
        if not had:
            return  # it is made when there is something to record
        with contextlib.suppress(OSError):  # on a full disk there is none, until there is room
            self._rewrite()

    def commit(self) -> None:
        """Record what came of outputs that are still in memory; what fails is tried again."""
        if not self.fresh:
            return
        added = [(stream, key) for stream, key in self.fresh.items() if stream.only_in_memory]
        data = b"".join(_record(key, stream.data, stream.taped) for stream, key in added)
        try:
            if self.fd < 0 or self.size + len(data) > self.enough:
                self.live.update(added)
                self._rewrite()
            elif data:
                self._append(data)
        except OSError:
            return
        self.live.update(added)
        for stream, _ in added:
            stream.taped = len(stream.data)
        self.fresh = {}

    def forget(self, stream: Stream) -> None:
        """Hear that an output is reported, or about to be."""
        self.fresh.pop(stream, None)
        self.live.pop(stream, None)

    def _append(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)

    def _rewrite(self) -> None:
        """Replace it by one that has what is needed alone."""
        self.live = {stream: key for stream, key in self.live.items() if stream.only_in_memory}
        text = b"".join(_record(key, stream.data) for stream, key in self.live.items())
        new = self.path + ".new"
        with open(new, "wb") as file:
            file.write(text)
        fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.rename(new, self.path)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.size, self.enough = fd, len(text), 2 * len(text) + ENOUGH


def left_of(box: str, attempt: int, tape: Tape) -> dict[str, Any]:
    """Return, as fields of an exit entry, what a killed runner left of an attempt's output."""
    found: dict[str, Any] = {}
    keys = ("stdout", ".out", "o", "os", "osp"), ("stderr", ".err", "er", "es", "esp")
    for which, (name, end, inline, size, spilled) in enumerate(keys):
        recorded = tape.left.get((attempt, which), b"")
        try:
            long = LongFile.found(box + end)
            if long.size >= len(recorded):  # else it was killed while it filled the file
                cut = long.finish()
                found[size], found[spilled], found["box"] = long.size, True, True
                if cut:
                    found.setdefault("cut", {})[name] = cut
                continue
        except OSError:
            pass  # no file, or none that can be read
        if recorded:
            found[size], found[inline] = len(recorded), base64.b64encode(recorded).decode()
    return found


def _record(key: Key, data: bytearray, at: int = 0) -> bytes:
    return RECORD.pack(*key, at, len(data) - at) + data[at:] if len(data) > at else b""


def _parsed(text: bytes) -> dict[Key, bytes]:
    """Return what a tape holds; of a last record that was cut short, as much as is there."""
    found: dict[Key, bytes] = {}
    position = 0
    while position + RECORD.size <= len(text):
        attempt, which, at, size = RECORD.unpack_from(text, position)
        position += RECORD.size
        before = found.get((attempt, which), b"")
        if not attempt or at != len(before):
            break  # no record: the machine was cut off while it wrote
        found[attempt, which] = before + text[position : position + size]
        position += size
    return found
