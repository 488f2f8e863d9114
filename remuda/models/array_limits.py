"""Arrays with a limit of jobs at once: how many more of theirs may go to machines."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection

from remuda.models.database import rows

_LIMITED = """
    SELECT id, max_running FROM arrays WHERE id = ANY(:arrays) AND max_running IS NOT NULL
    ORDER BY id
"""

_ON_MACHINES = """
    SELECT j.array_id, count(*) AS count FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.state IN ('PLACED', 'STARTED') AND j.array_id = ANY(:arrays) GROUP BY 1
"""


def array_rooms(connection: Connection, limits: Mapping[int, int]) -> dict[int, int]:
    """Return how many more jobs of each array may be on machines, given its limit."""
    if not limits:
        return {}
    there = {
        row["array_id"]: row["count"] for row in rows(connection, _ON_MACHINES, arrays=list(limits))
    }
    return {array: limit - there.get(array, 0) for array, limit in limits.items()}


class ArrayLimits:
    """The arrays of one snapshot that have a limit, their rows locked: who holds one alone places of it.

    `room`: how many more of their jobs may be on machines; `skipped`: those that somebody else holds,
    whose jobs are left to it.
    """

    def __init__(self, connection: Connection, *, wait: bool) -> None:
        """Nothing is locked yet; unless told to `wait`, what others hold is skipped."""
        self._connection = connection
        self._wait = wait
        self._known: set[int] = set()
        self.room: dict[int, int] = {}
        self.skipped: set[int] = set()

    def lock(self, arrays: Collection[int]) -> None:
        """Lock those of the arrays that have a limit, and count what is there of them."""
        new = sorted(set(arrays) - self._known)
        self._known.update(new)
        limits = {row["id"]: row["max_running"] for row in self._rows(_LIMITED, new)} if new else {}
        if not limits:
            return
        # All who wait for several do so in the order of their ids.
        in_order = min(limits) > max(self.room, default=0)
        how = "" if self._wait and in_order else "SKIP LOCKED"
        held = self._rows(f"{_LIMITED} FOR NO KEY UPDATE {how}", list(limits))
        mine = {row["id"]: row["max_running"] for row in held}
        self.skipped |= limits.keys() - mine.keys()
        self.room.update(dict.fromkeys(limits.keys() - mine.keys(), 0))
        # A statement of its own: the count sees what the last holder of the locks placed.
        self.room.update(array_rooms(self._connection, mine))

    def _rows(self, statement: str, arrays: list[int]) -> list[Mapping[str, int]]:
        return list(rows(self._connection, statement, arrays=arrays))
