"""A job's output as it comes: no byte left out, none told twice, over all its attempts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from remuda.client.cuts import marker, place_of
from remuda.errors import DatabaseUnavailable, UnknownJob
from remuda.models import outputs, requests
from remuda.models.database import DONE_CHANNEL, OUTPUT_CHANNEL, Listener

if TYPE_CHECKING:
    from remuda.client.context import Context

log = logging.getLogger(__name__)

_POLL_S = 2.0
_PIECE = 1 << 20
_LIVE = ("PLACED", "STARTED", "EXITED")


def follow(
    context: Context, job_id: int, *, over: threading.Event | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield (stream, bytes) of the job until it has ended, or soon after `over` is set.

    An outage of the database only delays it. Raises UnknownJob.
    """
    context.commit(lambda c: requests.follow_job(c, job_id))
    epoch, told = 0, _Told(context)
    with _Ear(context, job_id) as ear:
        while over is None or not over.is_set():
            attempts = context.read(lambda c, e=epoch: outputs.attempts_from(c, job_id, epoch=e))  # type: ignore[misc]
            if not attempts:
                raise UnknownJob(f"there is no job {job_id}")
            ended = attempts[0]["job_state"] == "TERMINATED"
            for attempt in attempts:
                if attempt["id"] is None:
                    continue
                if attempt["epoch"] > epoch:
                    epoch, told = attempt["epoch"], _Told(context)
                yield from told.chunks(attempt["id"])
                if attempt["state"] not in _LIVE:
                    yield from told.rest(attempt["id"])
            if ended:
                return
            ear.wait()


class _Told:
    """How far one attempt's streams have been told."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._offsets = {"stdout": 0, "stderr": 0}
        self._complete = False

    def chunks(self, attempt_id: int) -> Iterator[tuple[str, bytes]]:
        """Yield what has come since; a gap ends a stream until it is filled."""
        while True:
            found = self._context.read(
                lambda c: outputs.chunks_from(c, attempt_id, offsets=self._offsets)
            )
            fresh = [piece for chunk in found if (piece := self._after(chunk)) is not None]
            yield from fresh
            if not fresh:
                return

    def rest(self, attempt_id: int) -> Iterator[tuple[str, bytes]]:
        """Yield, once, what the ended attempt's record holds beyond what was told."""
        if self._complete:
            return
        for kept in self._context.read(lambda c: outputs.stored(c, attempt_id)):
            stream = kept["name"]
            if kept["kind"] != "stream" or stream not in self._offsets:
                continue
            for data in self._pieces(attempt_id, kept):
                yield stream, data
        self._complete = True

    def _after(self, chunk: Mapping[str, Any]) -> tuple[str, bytes] | None:
        stream, at, data = chunk["stream"], chunk["at_byte"], bytes(chunk["data"])
        told, cut_from = self._offsets[stream], chunk["cut_from"]
        if cut_from is not None and cut_from <= told < at:
            self._offsets[stream] = at + len(data)
            return stream, marker(at - told) + data
        if not at <= told < at + len(data):
            return None
        self._offsets[stream] = at + len(data)
        return stream, data[told - at :]

    def _pieces(self, attempt_id: int, kept: Mapping[str, Any]) -> Iterator[bytes]:
        stream = kept["name"]
        told = self._offsets[stream]
        if kept["url"] is None:
            data = self._context.read(
                lambda c: outputs.inline_data(c, attempt_id, kind="stream", name=stream)
            )
            if data[told:]:
                yield data[told:]
            return
        at, place, _ = place_of(kept, told)
        if at > told:
            yield marker(at - told)
        with self._context.storage.open(kept["url"]) as file:
            file.seek(place)
            while piece := file.read(_PIECE):
                yield piece


class _Ear:
    """Wakes up when there may be something new of one job."""

    def __init__(self, context: Context, job_id: int) -> None:
        self._context = context
        self._job_id = str(job_id)
        self._listener: Listener | None = None

    def __enter__(self) -> _Ear:
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()

    def wait(self) -> None:
        """Return when the job was notified, or after a while."""
        deadline = time.monotonic() + _POLL_S
        while (left := deadline - time.monotonic()) > 0:
            if self._listener is None:
                time.sleep(min(left, 0.2))
                self._connect()
                return
            try:
                notes = self._listener.wait(left)
            except DatabaseUnavailable as error:
                log.warning("following job %s is interrupted: %s", self._job_id, error)
                self._listener.close()
                self._listener = None
                continue
            if any(self._job_id in payload.split(",") for _, payload in notes):
                return
        self._context.revive()

    def _connect(self) -> None:
        try:
            self._listener = Listener(self._context.url, [DONE_CHANNEL, OUTPUT_CHANNEL])
        except DatabaseUnavailable:
            self._context.revive()
