"""Ask the VM of a running job something, by way of the workers, and wait for the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from remuda import errors
from remuda.errors import DatabaseUnavailable, RemudaError, UnknownJob, VmUnreachable
from remuda.models import calls
from remuda.models.database import DONE_CHANNEL, Listener

if TYPE_CHECKING:
    from remuda.client.context import Context

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0
_AGAIN_S = 1.0  # the workers are woken anew when there is no answer

Outcome = dict[str, Any] | RemudaError


class Line:
    """A line to the workers: questions are put on it, answers come back; for one thread.

    A context manager. Where LISTEN is impossible answers are found a second late.
    """

    def __init__(self, context: Context) -> None:
        """Connect with the first question."""
        self._context = context
        self._listener: Listener | None = None

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    def ask(
        self, verb: str, job_id: int, *, timeout_s: float = TIMEOUT_S, **arguments: Any
    ) -> dict[str, Any]:
        """Ask and return the answer.

        Raises UnknownJob; OutputNotAvailable or Refused when the job is in no state for it;
        VmUnreachable when no answer comes in time; whatever the VM's runner answers.
        """
        outcome = self.ask_all(verb, [job_id], timeout_s=timeout_s, **arguments)[job_id]
        if isinstance(outcome, RemudaError):
            raise outcome
        return outcome

    def ask_all(
        self, verb: str, job_ids: Sequence[int], *, timeout_s: float = TIMEOUT_S, **arguments: Any
    ) -> dict[int, Outcome]:
        """Ask the same of many jobs; return each one's answer, or why there is none."""
        self._connect()

        def put(connection: Connection) -> tuple[dict[int, Outcome], dict[int, int]]:
            refused = refusals(verb, job_ids, calls.standing(connection, job_ids))
            fit = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in refused]
            asked = calls.ask(connection, verb, fit, arguments, ttl_s=timeout_s) if fit else {}
            return refused, asked

        outcomes, waiting = self._context.commit(put)
        return outcomes | self.answers(waiting, timeout_s=timeout_s)

    def answers(self, waiting: Mapping[int, int], *, timeout_s: float) -> dict[int, Outcome]:
        """Wait for the answers of calls (id: job) and return them by job."""
        open_, outcomes = dict(waiting), dict[int, Outcome]()
        deadline = time.monotonic() + timeout_s
        try:
            while open_ and (left := deadline - time.monotonic()) > 0:
                heard = self.wait(min(left, _AGAIN_S), {str(call_id) for call_id in open_})
                found = self._context.read(lambda c: calls.answers(c, list(open_)))
                for row in found:
                    outcomes[open_.pop(row["id"])] = _outcome(row)
                if not heard and open_:
                    self._context.read(calls.wake_workers)
        finally:
            if waiting:
                taken = self._context.read(lambda c: calls.forget(c, list(waiting)))
        for call_id, job_id in open_.items():
            outcomes[job_id] = _late(job_id, timeout_s, taken=call_id in taken)
        return outcomes

    def wait(self, timeout_s: float, wanted: set[str] | None = None) -> bool:
        """Wait until something of `wanted` (ids of calls, jobs) was told; False if it was not."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._connect()
                notes = self._listener.wait(left) if self._listener is not None else []
            except DatabaseUnavailable as error:
                log.warning("waiting for an answer is interrupted: %s", error)
                self._hang_up()
                if not self._context.revive():
                    raise
                continue
            if wanted and any(not wanted.isdisjoint(text.split(",")) for _, text in notes):
                return True
        return False

    def _connect(self) -> None:
        if self._listener is not None:
            return
        channels = [calls.ANSWER_CHANNEL, DONE_CHANNEL]
        try:
            self._listener = Listener(self._context.url, channels)
        except DatabaseUnavailable:
            if not self._context.revive():
                raise
            self._listener = Listener(self._context.url, channels)

    def _hang_up(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


def refusals(
    verb: str, job_ids: Iterable[int], standing: Iterable[Mapping[str, Any]]
) -> dict[int, Outcome]:
    """Return the jobs that cannot be asked now, each with the reason."""
    rows = {row["id"]: row for row in standing}
    found: dict[int, Outcome] = {}
    for job_id in job_ids:
        if job_id not in rows:
            found[job_id] = UnknownJob(f"there is no job {job_id}")
            continue
        row = rows[job_id]
        why = calls.refusal(verb, job_id, row["state"], row["attempt_state"])
        if why is not None:
            found[job_id] = why
    return found


def _outcome(row: Mapping[str, Any]) -> Outcome:
    if row["error"] is None:
        return dict(row["answer"] or {})
    kind = getattr(errors, row["error"]["kind"], RemudaError)
    if not (isinstance(kind, type) and issubclass(kind, RemudaError)):
        kind = RemudaError
    return kind(row["error"]["message"], hint=row["error"]["hint"])


def _late(job_id: int, timeout_s: float, *, taken: bool) -> VmUnreachable:
    if taken:
        return VmUnreachable(
            f"the VM of job {job_id} gave no answer within {timeout_s:g} s; it is unknown whether "
            "it did what was asked"
        )
    return VmUnreachable(
        f"no worker took up what was asked of job {job_id} within {timeout_s:g} s",
        hint="`remuda status` tells whether a worker runs",
    )
