"""Task ids of attempts: UUIDs that hold the attempt's id, so that either is made from the other."""

from __future__ import annotations

import re

# Version 8 of RFC 9562 leaves its bits to us. The first six bytes spell "remuda", the last digits
# are the attempt's id in decimal: attempt 1234 is 72656d75-6461-8000-8000-000000001234.
_SHAPE = re.compile(r"72656d75-6461-8000-8([0-9]{3})-([0-9]{12})")
MOST = 10**15 - 1


def task_id(attempt_id: int) -> str:
    """Return the task id of an attempt; raises ValueError beyond 0 … `MOST`."""
    if not 0 <= attempt_id <= MOST:
        raise ValueError(f"attempt id {attempt_id} has no task id")
    digits = f"{attempt_id:015d}"
    return f"72656d75-6461-8000-8{digits[:3]}-{digits[3:]}"


def attempt_id(task: str) -> int | None:
    """Return the attempt a task id names; None if it is not one of ours."""
    found = _SHAPE.fullmatch(task)
    return int(found[1] + found[2]) if found else None
