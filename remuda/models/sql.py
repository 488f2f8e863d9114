"""Words of SQL that statements, and the tables, share."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

# Of `jobs j`: may be placed, but for pauses between attempts.
READY = "j.state = 'NEW' AND j.unmet = 0 AND NOT j.held"


def sql_list(states: Iterable[StrEnum]) -> str:
    """Return the states as the inside of an SQL IN list, for partial indexes and statements."""
    return ", ".join(f"'{state}'" for state in states)
