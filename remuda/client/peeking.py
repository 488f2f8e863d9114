"""Looking into jobs: files and streams at any offset, while they run and after; what is new."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from remuda.client.calls import Line
from remuda.client.cuts import marker, place_of
from remuda.errors import OutputNotAvailable, Refused, UnknownJob
from remuda.models import calls, outputs

if TYPE_CHECKING:
    from remuda.client.context import Context

PIECE = 1 << 20  # bytes asked for at once
_PAUSE_S = 0.25  # between two looks at a growing file
_STREAMS = ("stdout", "stderr")
_ON_VM = ("STARTED", "EXITED")


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """A file of a job's sandbox; of one kept after the end only name and size are known."""

    name: str
    size: int
    mode: int | None = None
    modified_at: datetime | None = None  # by the VM's clock


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a file, where they begin, and how large the whole was then."""

    data: bytes
    at: int
    size: int

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.at + len(self.data)


class Glass:
    """Shows pieces of what one job's attempts write; on their VM, or where it is kept.

    A context manager, for one thread.
    """

    def __init__(self, context: Context, job_id: int) -> None:
        """Look at nothing yet."""
        self._context, self._job_id = context, job_id
        self.line = Line(context)

    def __enter__(self) -> Glass:
        return self

    def __exit__(self, *error: object) -> None:
        self.line.__exit__(*error)

    def attempts(self, epoch: int = 0) -> list[Mapping[str, Any]]:
        """Return (id, epoch, state, job_state) of the attempts from `epoch` on; an id may be None."""
        found = self._context.read(lambda c: outputs.attempts_from(c, self._job_id, epoch=epoch))
        if not found:
            raise UnknownJob(f"there is no job {self._job_id}")
        return list(found)

    def last(self) -> Mapping[str, Any]:
        """Return the last attempt, or a row without one."""
        return self.attempts()[-1]

    def piece(
        self,
        attempt: Mapping[str, Any],
        name: str,
        offset: int,
        size: int,
        *,
        written: bool = False,
    ) -> Piece:
        """Return a piece of an attempt's file; a negative offset counts from the end.

        With `written`, offsets of a stream count all that was written even if not all is kept: the
        piece begins later where something was cut out. Otherwise, once it has ended, what is kept.
        Raises OutputNotAvailable when there is no such file, or no more; VmUnreachable.
        """
        if attempt["state"] in (None, "PLACED"):
            raise self._nothing(attempt, name)
        if attempt["state"] != "STARTED":
            kept = self._kept(attempt, name, offset, size, written=written)
            if kept is not None:
                return kept
            if attempt["state"] != "EXITED":
                raise self._nothing(attempt, name)
        try:
            asked: dict[str, Any] = {"name": name, "offset": offset, "size": size}
            asked["written"] = written
            found = self.line.ask("peek", self._job_id, **asked)
        except (OutputNotAvailable, Refused):
            now = next(each for each in self.attempts() if each["id"] == attempt["id"])
            if now["state"] == attempt["state"] == "EXITED" and name in _STREAMS:
                return Piece(b"", 0, 0)  # what an ended one wrote is here already, or there
            if now["state"] == attempt["state"]:
                raise
            return self.piece(now, name, offset, size, written=written)
        if found["attempt_id"] != attempt["id"]:
            raise OutputNotAvailable(f"job {self._job_id} was started anew meanwhile")
        return Piece(base64.b64decode(found["data"]), int(found["at"]), int(found["size"]))

    def _kept(
        self, attempt: Mapping[str, Any], name: str, offset: int, size: int, *, written: bool
    ) -> Piece | None:
        """Return a piece of what is kept of an attempt; None if that is not."""
        kind = "stream" if name in _STREAMS else "file"
        plain = name.removeprefix("./")
        rows = self._context.read(lambda c: outputs.stored(c, attempt["id"]))
        row = next((r for r in rows if (r["kind"], r["name"]) == (kind, plain)), None)
        if row is None:
            ended = attempt["state"] not in ("PLACED", *_ON_VM)
            return Piece(b"", 0, 0) if kind == "stream" and ended else None
        at = max(0, row["size"] + offset) if offset < 0 else offset
        if written and row["cut_from"] is not None:
            at, place, there = place_of(row, offset)
            wanted = min(size, there)
            data = self._context.storage.read(row["url"], offset=place, size=wanted)
            return Piece(data, at, row["written_bytes"])
        if row["url"] is not None:
            data = self._context.storage.read(row["url"], offset=at, size=size)
            return Piece(data, at, row["size"])
        whole = self._context.read(
            lambda c: outputs.inline_data(c, attempt["id"], kind=kind, name=plain)
        )
        return Piece(whole[at : at + size], at, len(whole))

    def _nothing(self, attempt: Mapping[str, Any], name: str) -> OutputNotAvailable:
        if attempt["state"] in (None, "PLACED"):
            why = calls.refusal("peek", self._job_id, attempt["job_state"], attempt["state"])
            if isinstance(why, OutputNotAvailable):
                return why
        return OutputNotAvailable(
            f"attempt {attempt['epoch']} of job {self._job_id} has ended; no file {name!r:.200} of it "
            "was kept",
            hint="only files declared as outputs are kept",
        )


def peek(context: Context, job_id: int, name: str, *, offset: int, size: int | None) -> bytes:
    """Return up to `size` bytes (None: to what is the end now) of a file; see `Job.peek`."""
    found = bytearray()
    with Glass(context, job_id) as glass:
        attempt = glass.last()
        at, end = offset, None
        while size is None or len(found) < size:
            most = PIECE if size is None else min(PIECE, size - len(found))
            piece = glass.piece(attempt, name, at, most)
            found += piece.data
            at, end = piece.end, piece.size if end is None else end
            if not piece.data or at >= end:
                break
    return bytes(found)


def files(context: Context, job_id: int) -> list[SandboxFile]:
    """Return the files of the last attempt; see `Job.files`."""
    with Glass(context, job_id) as glass:
        attempt = glass.last()
        if attempt["state"] in _ON_VM:
            try:
                return [_file(row) for row in sorted(glass.line.ask("files", job_id)["files"])]
            except (OutputNotAvailable, Refused):
                attempt = glass.last()
                if attempt["state"] in _ON_VM:
                    raise
        if attempt["job_state"] != "TERMINATED":
            raise calls.refusal(
                "files", job_id, attempt["job_state"], attempt["state"]
            ) or OutputNotAvailable(f"job {job_id} is {attempt['job_state']}")
    if attempt["id"] is None:
        return []
    kept = context.read(lambda c: outputs.stored(c, attempt["id"]))
    return [SandboxFile(row["name"], row["size"]) for row in kept if row["kind"] == "file"]


def fresh(context: Context, job_id: int, stream: str) -> bytes:
    """Return what nobody has read as fresh yet; see `Job.fresh_stdout`."""
    got = bytearray()
    with Glass(context, job_id) as glass:
        while True:
            old = context.read(lambda c: outputs.read_offset(c, job_id, stream))
            data, new, more = _next(glass, stream, old)
            if new != old and not context.commit(
                lambda c: outputs.move_offset(c, job_id, stream, old=old, new=new)  # noqa: B023
            ):
                continue  # another reader was quicker: those bytes are theirs
            got += data
            if not more:
                return bytes(got)


def _next(glass: Glass, stream: str, old: tuple[int, int]) -> tuple[bytes, tuple[int, int], bool]:
    """Return the next piece after an offset, the offset behind it, and whether there is more."""
    attempts = [each for each in glass.attempts(old[0]) if each["id"] is not None]
    if not attempts or attempts[0]["state"] == "PLACED":
        return b"", old, False
    attempt = attempts[0]
    at = old[1] if attempt["epoch"] == old[0] else 0
    piece = glass.piece(attempt, stream, at, PIECE, written=True)
    if piece.data:
        gone = marker(piece.at - at) if piece.at > at else b""
        return gone + piece.data, (attempt["epoch"], piece.end), True
    if attempt["state"] not in _ON_VM and len(attempts) > 1:
        return b"", (attempts[1]["epoch"], 0), True
    return b"", old, False


def follow_file(context: Context, job_id: int, name: str, *, offset: int = 0) -> Iterator[bytes]:
    """Yield a file as it grows, from `offset` on, until the job has ended; see `Job.follow_file`."""
    epoch, at, told = 0, offset, False
    with Glass(context, job_id) as glass:
        while True:
            attempt = glass.last()
            over = attempt["job_state"] == "TERMINATED"
            if attempt["id"] is not None and attempt["epoch"] > epoch:
                epoch, at = attempt["epoch"], offset if epoch == 0 else 0
            try:
                while True:
                    piece = glass.piece(attempt, name, at, PIECE)
                    at, told = piece.end, True
                    if not piece.data:
                        break
                    yield piece.data
            except OutputNotAvailable:
                if over and not told:
                    raise  # there never was such a file, or it came and went unseen
            if over:
                return
            glass.line.wait(_PAUSE_S, {str(job_id)})


def _file(row: list[Any]) -> SandboxFile:
    name, size, mode, modified = row
    return SandboxFile(name, size, mode, datetime.fromtimestamp(modified, UTC))
