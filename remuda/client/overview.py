"""All there is to see of a system at a glance, looked at again and again: what `remuda top` shows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from remuda.client.vms import VmInfo, vm_info
from remuda.errors import DatabaseUnavailable
from remuda.models import overview, query
from remuda.models.database import DONE_CHANNEL, Listener

if TYPE_CHECKING:
    from remuda.client.context import Context

SPAN_S = 60  # of the ends that are counted


@dataclass(frozen=True, slots=True)
class Overview:
    """Pools, live VMs and the jobs to look at first, read in one transaction at `at`.

    Of one pool or VM if that was asked for. `pools` and `jobs` are rows by column;
    `ends`: how many jobs ended in each of the last 60 seconds, the oldest first.
    """

    at: datetime
    pools: Sequence[Mapping[str, Any]]
    vms: Sequence[VmInfo]
    jobs: Sequence[Mapping[str, Any]]
    ends: Sequence[int]

    @property
    def ended_per_s(self) -> float:
        """Jobs that ended per second, over the last five whole seconds."""
        recent = self.ends[-6:-1]
        return sum(recent) / len(recent) if recent else 0.0


class Lookout:
    """Looks at the system as often as it is asked to, and counts what ends meanwhile.

    For one thread. The counting is by notification and costs the database nothing.
    """

    def __init__(self, context: Context) -> None:
        """Look through this context; nothing is counted before the first `wait`."""
        self._context = context
        self._listener: Listener | None = None
        self._ends: dict[int, int] = {}  # how many by second

    def wait(self, timeout_s: float) -> None:
        """Count ends for `timeout_s` seconds."""
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            try:
                if self._listener is None:
                    self._listener = Listener(self._context.url, [DONE_CHANNEL])
                for _, payload in self._listener.wait(left):
                    self._count(payload.count(",") + 1)
            except DatabaseUnavailable:
                self.close()
                time.sleep(min(left, 0.5))

    def look(
        self,
        *,
        pool_id: int | None = None,
        vm_id: int | None = None,
        part: str = "",
        limit: int = 100,
    ) -> Overview:
        """Return what there is, with up to `limit` jobs that run, wait, and have ended.

        `part`: of the jobs' names, whatever the case. Raises DatabaseUnavailable.
        """

        def read(connection: Connection) -> tuple[Any, Any, Any]:
            return (
                query.pools(connection),
                query.vms(connection, pool_id=pool_id),
                overview.jobs_at_a_glance(
                    connection, pool_id=pool_id, vm_id=vm_id, part=part, limit=limit
                ),
            )

        pools, vms, jobs = self._context.read(read)
        return Overview(
            at=datetime.now(UTC),
            pools=pools,
            vms=[vm_info(row) for row in vms],
            jobs=jobs,
            ends=self._by_second(),
        )

    def close(self) -> None:
        """Stop counting."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _count(self, ends: int) -> None:
        second = int(time.monotonic())
        self._ends[second] = self._ends.get(second, 0) + ends

    def _by_second(self) -> list[int]:
        now = int(time.monotonic())
        span = range(now - SPAN_S + 1, now + 1)
        self._ends = {second: ends for second, ends in self._ends.items() if second in span}
        return [self._ends.get(second, 0) for second in span]

    def __enter__(self) -> Lookout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
