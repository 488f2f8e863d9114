"""A handle on one job."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remuda.client import completion, following, footprint
from remuda.client.live import LiveJob
from remuda.client.results import FinalRecord, Result
from remuda.errors import OutputNotAvailable
from remuda.models import query
from remuda.models.cancel import request_cancel
from remuda.models.outputs import final_records

if TYPE_CHECKING:
    from remuda.carbon import CarbonFacts
    from remuda.client.context import Context

_FRESH_S = 0.25  # a row is not read again sooner


class Job(LiveJob):
    """One job; what it tells is at most a quarter of a second old, and final once it has ended."""

    __slots__ = ("_context", "_read_at", "_record", "_result", "_row", "_transaction", "id")

    def __init__(
        self,
        context: Context,
        job_id: int,
        *,
        row: Mapping[str, Any] | None = None,
        transaction: str | None = None,
    ) -> None:
        """`transaction`: that of the session it was submitted in, perhaps still open."""
        self.id = job_id
        self._context = context
        self._row = row
        self._read_at = time.monotonic() if row is not None else 0.0
        self._record: FinalRecord | None = None
        self._result: Result | None = None
        self._transaction = transaction

    @property
    def name(self) -> str:
        """Its name, perhaps empty."""
        return str(self._current(any_age=True)["name"])

    @property
    def pool(self) -> str:
        """The name of its pool."""
        return str(self._current(any_age=True)["pool"])

    @property
    def index(self) -> int | None:
        """Its number in an array with numbered jobs."""
        return self._get("array_index")  # type: ignore[no-any-return]

    @property
    def state(self) -> str:
        """NEW, SUBMITTED, RUNNING, STOPPED, UNKNOWN, TERMINATING or TERMINATED."""
        return str(self._get("state"))

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state == "TERMINATED"

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; None while it runs, and when a signal ended it."""
        return self._get("exit_code")  # type: ignore[no-any-return]

    @property
    def signal(self) -> int | None:
        """The signal that ended the command."""
        return self._get("signal")  # type: ignore[no-any-return]

    @property
    def reason(self) -> str | None:
        """Why it ended: OK, NONZERO, SIGNALLED, WALLTIME, CANCELLED, LOST and so on."""
        return self._get("reason")  # type: ignore[no-any-return]

    @property
    def message(self) -> str | None:
        """What more there is to say about its end, or about its last attempt's."""
        return self._get("message")  # type: ignore[no-any-return]

    @property
    def attempts(self) -> int:
        """How often it was given to a VM."""
        return int(self._get("epoch"))

    @property
    def vm(self) -> str | None:
        """The name of the VM of its last attempt."""
        return self._get("vm")  # type: ignore[no-any-return]

    @property
    def submitted_at(self) -> datetime:
        """When it was submitted."""
        return self._current(any_age=True)["submitted_at"]  # type: ignore[no-any-return]

    @property
    def started_at(self) -> datetime | None:
        """When its last attempt started."""
        return self._get("started_at")  # type: ignore[no-any-return]

    @property
    def ended_at(self) -> datetime | None:
        """When it ended."""
        return self._get("ended_at")  # type: ignore[no-any-return]

    @property
    def stdout(self) -> bytes:
        """What it wrote to stdout; raises OutputNotAvailable before it has ended."""
        return self._final().stream("stdout")

    @property
    def stderr(self) -> bytes:
        """What it wrote to stderr; raises OutputNotAvailable before it has ended."""
        return self._final().stream("stderr")

    def info(self) -> dict[str, Any]:
        """Return all columns of its row, with its pool, owner, VM and usage."""
        return dict(self._current())

    def refresh(self) -> Job:
        """Read its row anew and return itself; raises UnknownJob."""
        if self._record is None:
            self._row = self._context.read(lambda c: query.job(c, self.id))
            self._read_at = time.monotonic()
            self._transaction = None
        return self

    def wait(self, timeout_s: float | None = None) -> Job:
        """Wait until it has ended and return itself; raises WaitTimeout."""
        if self._record is None:
            completion.wait(self._context, [self], timeout_s=timeout_s)
        return self

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait until it has ended; return its result, its outputs in its `output_dir`.

        Raises JobFailed unless it succeeded, WaitTimeout, DataStagingError when an output cannot be
        copied. Called again it returns the same.
        """
        if self._result is None:
            record = self.wait(timeout_s)._final()
            if record.row["reason"] != "OK":
                raise record.failure()
            self._result = Result(record, record.outputs())
        return self._result

    def results(self, to: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
        """Copy what it left, also if it failed, to the directory `to`; return where each file is.

        Raises OutputNotAvailable before it has ended, AlreadyExists when a file is there already.
        """
        return self._final().bring(Path(to), overwrite=overwrite)

    def carbon_facts(self, datacenter: str | None = None) -> CarbonFacts:
        """Estimate energy and CO2 of its attempts, compared with the same work in `datacenter`.

        That is the name of a data centre or grid (None: the average one); see docs/carbon.md.
        """
        return footprint.of_job(self._context, self.id, datacenter=datacenter)

    def follow(self, *, over: threading.Event | None = None) -> Iterator[tuple[str, bytes]]:
        """Yield its output as it comes, as ("stdout" or "stderr", bytes); ends when it has ended.

        Nothing is left out or told twice; a further attempt's output follows the earlier one's.
        Setting `over`, from another thread, ends it within a few seconds.
        """
        return following.follow(self._context, self.id, over=over)

    def cancel(self) -> bool:
        """Have it ended, its processes killed; False if it had ended before."""
        touched = self._context.commit(lambda c: request_cancel(c, [self.id]))
        self.forget()
        return bool(touched)

    def forget(self) -> None:
        """Have its row read anew when it is next asked for."""
        self._read_at = -1e9

    def settle(self, row: Mapping[str, Any]) -> None:
        """Take its final record; for the waiting functions."""
        if self._record is None:
            self._record = FinalRecord(self._context, row)
            self._row = None
            self._transaction = None

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """Its final row if it is known here already."""
        return self._record.row if self._record is not None else None

    @property
    def transaction(self) -> str | None:
        """The transaction it was submitted in, unless that is known to be committed."""
        return self._transaction

    def committed(self) -> None:
        """Note that its transaction is committed; for the waiting functions."""
        self._transaction = None

    def _current(self, *, any_age: bool = False) -> Mapping[str, Any]:
        if self._record is not None:
            return self._record.row
        row = self._row
        old = row is None or time.monotonic() - self._read_at > _FRESH_S
        if row is None or (old and not any_age and row["state"] != "TERMINATED"):
            self.refresh()
        return self._row or {}

    def _get(self, column: str) -> Any:
        return self._current()[column]

    def _final(self) -> FinalRecord:
        if self._record is None:
            found = self._context.read(lambda c: final_records(c, [self.id]))
            if not found:
                raise OutputNotAvailable(
                    f"job {self.id} is {self.refresh().state}", hint="wait for it, or follow it"
                )
            self.settle(found[0])
        if self._record is None:
            raise AssertionError("unreachable")
        return self._record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id and other._context is self._context

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        row = self._record.row if self._record is not None else self._row
        known = f" {row['name']!r} {row['state']}" if row is not None else ""
        return f"<Job {self.id}{known}>"
