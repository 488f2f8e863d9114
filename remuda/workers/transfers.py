"""Files to and from a host: streamed, whole or not at all, checked by their hash, gone on with.

The bytes go as they are through a session's standard input and output. What came of a file before
the line broke is kept, on the host beside the file's place, here in the file it was written to, and
as an open descriptor of that; the next try goes on from there if that is the beginning of the same
file.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from remuda.errors import DataStagingError, OutputNotAvailable, VmUnreachable
from remuda.hosts import Host
from remuda.workers.asking import Question, asking

__all__ = ["Opened", "get", "put"]

PIECE = 1 << 18
WINDOW = 8 << 20  # bytes under way from a host, so that a long way does not slow them
SILENCE_S = 60.0  # for a piece to go or come
HASHED_S = 50 << 20  # bytes a host can surely hash in a second
KEPT, KEPT_S = 16, 3600.0  # beginnings of files, and for how long

Opened = Callable[[int], BinaryIO]  # gives what is to be sent, from an offset on


def put(
    host: Host,
    path: str,
    *,
    sha256: str,
    size: int,
    opened: Opened,
    inside: str = "",
    wait_s: float = 300.0,
    timeout_s: float = SILENCE_S,
    sent: Callable[[], object] = lambda: None,
    **cache: Any,
) -> dict[str, Any]:
    """Have a file there, whole or not at all, sent unless it is there already.

    `inside`: a folder that must exist, else the answer is {"gone"}. Without a `sha256` that of what
    `opened` gives is believed; `size` may be -1. While another sends it, `wait_s` is waited. `sent`
    is called before the end, and may raise. `cache`: see `remuda.workers.onvm.host.do_put`.
    """
    fields = {"sha256": sha256, "size": size, "inside": inside, "wait_s": wait_s, **cache}
    limit_s = timeout_s + wait_s
    with asking(host, "put", place=path, timeout_s=limit_s, lasting=True, **fields) as question:
        answer = question.answer()
        while answer.get("send"):
            _send(question, opened, int(answer["at"]), sha256)
            sent()
            answer = question.answer()
    return answer


def _send(question: Question, opened: Opened, at: int, sha256: str) -> None:
    """Send frames, an empty one, and the hash; see `remuda.workers.onvm.host.written`."""
    total, session = hashlib.sha256(), question.session
    skip = 0 if sha256 else at  # who does not know the hash must see all of it
    with opened(at if sha256 else 0) as stream:
        while piece := _read(stream):
            if not sha256:
                total.update(piece)
                piece, skip = piece[skip:], max(0, skip - len(piece))
            if piece and not session.write(len(piece).to_bytes(4, "big") + piece):
                return  # it says why
    session.write(bytes(4) + (sha256 or total.hexdigest()).encode())


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(PIECE)
    except Exception as error:  # each kind of storage has its own
        raise DataStagingError(f"cannot read the content: {error}") from error


@dataclass(slots=True)
class _Beginning:
    """The first `done` bytes of a file, in a descriptor of ours."""

    fd: int
    done: int
    sha256: Any
    since: float

    def drop(self) -> None:
        os.close(self.fd)


_beginnings: OrderedDict[tuple[Any, ...], _Beginning] = OrderedDict()
_lock = threading.Lock()


def get(host: Host, home: str, attempt_id: int, name: str, file: BinaryIO) -> int:
    """Copy a file of an exited attempt into `file`, which is at its start; returns the size.

    What `file` holds already is gone on with if that is how the file begins, else replaced. Raises
    OutputNotAvailable if there is no such file, VmUnreachable if the line breaks (if `file` is
    a real one, the next call goes on from what came), DataStagingError if it cannot be written or
    is not what the host sent.
    """
    key = (host, home, attempt_id, name)
    sha256, done = _take_up(key, file)
    begun = done > 0
    try:
        while True:
            with asking(
                host,
                "get",
                place=home,
                timeout_s=SILENCE_S + done / HASHED_S,
                lasting=True,
                window_bytes=WINDOW,
                a=attempt_id,
                name=name,
                at=done,
            ) as question:
                said = question.answer()
                if said.get("missing"):
                    raise OutputNotAvailable(f"attempt {attempt_id} has no file {name!r:.200}")
                if (said["at"], said["prefix"]) != (done, sha256.hexdigest()):
                    sha256, done, begun = _emptied(file), 0, False
                    continue  # another file than the one that broke off
                size = int(said["size"])
                for piece in question.session.pieces(size - done):
                    sha256.update(piece)
                    _write(file, piece, name)
                    done += len(piece)
                if question.answer()["sha256"] == sha256.hexdigest():
                    return size
            if not begun:
                raise DataStagingError(f"{name!r} of attempt {attempt_id} came damaged")
            sha256, done, begun = _emptied(file), 0, False  # once, all of it
    except VmUnreachable:
        _keep(key, file, done, sha256)
        raise


def _write(file: BinaryIO, piece: bytes, name: str) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise DataStagingError(f"cannot write {name!r}: {error}") from error


def _emptied(file: BinaryIO) -> Any:
    """Begin the file anew; return the hash of nothing."""
    file.seek(0)
    file.truncate()
    return hashlib.sha256()


def _held(file: BinaryIO) -> tuple[Any, int]:
    """Go to the end of what the file holds; return the hash of that, and its size."""
    sha256, done = hashlib.sha256(), 0
    while file.readable() and (piece := _read(file)):
        sha256.update(piece)
        done += len(piece)
    return sha256, done


def _take_up(key: tuple[Any, ...], file: BinaryIO) -> tuple[Any, int]:
    """Begin `file` with what came of it the last time; return its hash so far and its size."""
    held = _held(file)
    with _lock:
        found = _beginnings.pop(key, None)
        late = time.monotonic() - KEPT_S
        old = [k for k, beginning in _beginnings.items() if beginning.since < late]
        dropped = [_beginnings.pop(k) for k in old]
    for beginning in dropped:
        beginning.drop()
    if found is None:
        return held
    try:
        at = 0
        if held[1]:
            return held
        while at < found.done and (piece := os.pread(found.fd, PIECE, at)):
            _write(file, piece[: found.done - at], key[-1])
            at += len(piece)
        return found.sha256, found.done
    finally:
        found.drop()


def _keep(key: tuple[Any, ...], file: BinaryIO, done: int, sha256: Any) -> None:
    """Keep what came, if it is in a real file; that may be deleted meanwhile."""
    try:
        file.flush()
        fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, io.UnsupportedOperation, AttributeError):
        return
    dropped: Iterable[_Beginning] = ()
    with _lock:
        old = _beginnings.pop(key, None)
        _beginnings[key] = _Beginning(fd, done, sha256, time.monotonic())
        surplus = _beginnings.popitem(last=False)[1] if len(_beginnings) > KEPT else None
        dropped = [beginning for beginning in (old, surplus) if beginning]
    for beginning in dropped:
        with suppress(OSError):
            beginning.drop()
