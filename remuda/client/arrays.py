"""A handle on one array: its jobs as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from remuda.checks import whole
from remuda.client import completion
from remuda.client.jobs import Job
from remuda.models import arrays, query
from remuda.models.cancel import cancel_matching
from remuda.models.selecting import states_of
from remuda.models.states import JobState

if TYPE_CHECKING:
    from remuda.client.context import Context
    from remuda.client.pools import Pool

MOST_RUNNING = 10_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an array is. `blocked`: waits for other jobs; `eta_s`: None while nothing runs."""

    size: int
    blocked: int
    queued: int
    running: int
    succeeded: int
    failed: int
    ended: int
    eta_s: float | None

    @property
    def done(self) -> bool:
        """Whether all of its jobs have ended."""
        return self.ended == self.size


class Array:
    """Jobs submitted as one; what it tells is asked for each time, by one query."""

    is_array = True  # tells its id from a job's, where either is waited for

    def __init__(self, context: Context, array_id: int) -> None:
        """Made by `Client.array`."""
        self.id = array_id
        self._context = context

    def info(self) -> dict[str, Any]:
        """Return its row, and its jobs counted; raises UnknownArray."""
        return self._context.read(lambda c: arrays.progress(c, self.id))

    @property
    def name(self) -> str:
        """Its name, perhaps empty."""
        return str(self.info()["name"])

    @property
    def size(self) -> int:
        """How many jobs it has."""
        return int(self.info()["size"])

    @property
    def max_running(self) -> int | None:
        """How many of its jobs may be on machines at once; None: any number."""
        return self.info()["max_running"]  # type: ignore[no-any-return]

    @property
    def created_at(self) -> datetime:
        """When it was submitted."""
        return self.info()["created_at"]  # type: ignore[no-any-return]

    @property
    def done(self) -> bool:
        """Whether all of its jobs have ended."""
        return self.progress().done

    def progress(self) -> Progress:
        """Return how many of its jobs wait, run and have ended, and how."""
        info = self.info()
        return Progress(**{name: info[name] for name in Progress.__slots__})

    def counts(self) -> dict[str, int]:
        """Return how many of its jobs are in each state."""
        return self._context.read(lambda c: query.counts(c, array_id=self.id))

    def reasons(self) -> dict[str, int]:
        """Return how many of its ended jobs there are by reason; OK is success."""
        return self._context.read(lambda c: query.reasons(c, array_id=self.id))

    def jobs(self, *, states: str | Sequence[str] | None = None) -> list[Job]:
        """Return its jobs, oldest first; only those in one of `states` if given."""
        found = self._context.read(
            lambda c: query.jobs(c, array_id=self.id, states=states, limit=None)
        )
        return [Job(self._context, row["id"], row=row) for row in found]

    def wait(self, timeout_s: float | None = None) -> Array:
        """Wait until all of its jobs have ended and return itself; raises WaitTimeout."""
        completion.wait(self._context, self.jobs(), timeout_s=timeout_s)
        return self

    def cancel(
        self, indices: Iterable[int] | None = None, *, states: str | Sequence[str] | None = None
    ) -> int:
        """Have its jobs ended, or those of `indices` (a range, too); return how many had not."""
        wanted = None if indices is None else [_index(index) for index in indices]
        some = states_of(JobState, states)
        return len(
            self._context.commit(
                lambda c: cancel_matching(c, array_id=self.id, indices=wanted, states=some)
            )
        )

    def resubmit(
        self, indices: Iterable[int] | None = None, *, pool: Pool | str | None = None
    ) -> Array:
        """Submit what failed once more, as a new array of the same specs and indices; return it.

        The new jobs wait for nothing. Raises Refused when none failed, or its pool has ended.
        """
        from remuda.client.pools import pool_row

        wanted = None if indices is None else [_index(index) for index in indices]
        to = None if pool is None else int(pool_row(self._context, pool)["id"])
        made = self._context.commit(
            lambda c: arrays.submit_failed_again(c, self.id, pool_id=to, indices=wanted)
        )
        return Array(self._context, made)

    def limit(self, max_running: int | None) -> None:
        """Let at most so many of its jobs be on machines at once; None: any number.

        Those that are there already stay.
        """
        most = limit_of(max_running)
        self._context.commit(lambda c: arrays.set_limit(c, self.id, most))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and (other.id, other._context) == (self.id, self._context)

    def __hash__(self) -> int:
        return hash(("array", self.id))

    def __repr__(self) -> str:
        return f"<Array {self.id}>"


def limit_of(max_running: int | None) -> int | None:
    """Return how many jobs of an array may be on machines at once, checked; raises BadInput."""
    if max_running is None:
        return None
    return whole("max_running", max_running, least=1, most=MOST_RUNNING)


def _index(index: Any) -> int:
    return whole("an index", index, least=-(2**31), most=2**31 - 1)
