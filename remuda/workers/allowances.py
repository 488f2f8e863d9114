"""What limits leave while a decision gives it out: of arrays, and of owners and their groups; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remuda.pending import PendingJob

QuotaKey = tuple[int, int | None]  # (owner or group, pool; None: all of them)


class Allowances:
    """How many jobs of arrays, and slots of owners, may still be given out."""

    def __init__(
        self,
        array_room: Mapping[int, int],
        quota_room: Mapping[QuotaKey, int],
        group_of: Mapping[int, int],
        stopped: Collection[tuple[int, int]] = (),
    ) -> None:
        """What is in none of them has no limit. `stopped`: (owner, pool) that get nothing."""
        self._arrays = dict(array_room)
        self._slots = dict(quota_room)
        self._group_of = group_of
        self._stopped = stopped

    def pools(self, job: PendingJob) -> Sequence[int]:
        """Return the pools in which its limits let the job have slots, in its order."""
        wanted: Sequence[int] = job.pool_ids or (job.pool_id,)
        if self._arrays and self._arrays.get(job.array_id or 0, 1) <= 0:
            return ()
        if self._stopped:
            wanted = [pool for pool in wanted if (job.owner_id, pool) not in self._stopped]
        if not self._slots:
            return wanted
        return [pool for pool in wanted if self._allows(job, pool)]

    def take(self, job: PendingJob, pool_id: int) -> None:
        """Count a job that goes to a VM of the pool."""
        if job.array_id in self._arrays:
            self._arrays[job.array_id] -= 1
        if self._slots:
            for key in self._keys(job.owner_id, pool_id):
                if key in self._slots:
                    self._slots[key] -= job.cores

    def _allows(self, job: PendingJob, pool_id: int) -> bool:
        return all(
            job.cores <= self._slots[key]
            for key in self._keys(job.owner_id, pool_id)
            if key in self._slots
        )

    def _keys(self, owner_id: int, pool_id: int) -> list[QuotaKey]:
        parties = {owner_id, self._group_of.get(owner_id, owner_id)}
        return [(party, pool) for party in parties for pool in (None, pool_id)]
