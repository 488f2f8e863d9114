"""Words of SQL that statements, and the tables, share."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

# Of `jobs j`: may be placed, but for pauses between attempts.
READY = "j.state = 'NEW' AND j.unmet = 0 AND NOT j.held"

# Of `vms v`: it drains to restart and takes work again then; not what is to go anyway.
RETURNS = """(v.reboot IS NOT NULL AND v.interruption_at IS NULL
              AND NOT (v.bound_owner_id IS NOT NULL
                       AND EXISTS (SELECT FROM pools own WHERE own.id = v.pool_id
                                   AND own.isolation = 'single_use')))"""


def sql_list(states: Iterable[StrEnum]) -> str:
    """Return the states as the inside of an SQL IN list, for partial indexes and statements."""
    return ", ".join(f"'{state}'" for state in states)
