"""A waiting job as placement sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

SEVERAL = 0  # in place of a pool: of the jobs that may go to more than one


class PendingJob(NamedTuple):
    """A waiting job. `memory_bytes` 0: none asked; `expected_wall_s` None: not known yet.

    `pool_ids`: all pools it may go to, in order of preference; none: just `pool_id`.
    """

    id: int
    pool_id: int
    owner_id: int
    priority: int
    submitted_at: datetime
    cores: int
    memory_bytes: int
    expected_wall_s: float | None
    gpus: int = 0
    architecture: str | None = None
    constraints: Mapping[str, Any] | None = None
    sandbox: str = ""
    array_id: int | None = None
    pool_ids: Sequence[int] | None = None
    displaced: bool = False  # its VM was taken away: first of its priority
    reserves: bool = False  # it fits no room there is, and waited for long: a VM is kept for it

    @property
    def source(self) -> tuple[int, int]:
        """Whose jobs of which pool it is among: SEVERAL if it may go to more than one."""
        return SEVERAL if self.pool_ids else self.pool_id, self.owner_id
