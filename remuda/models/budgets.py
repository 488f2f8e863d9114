"""Budgets of pools, of owners, and of owners in pools: what may be spent in a period, and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.costs import costs
from remuda.models.database import rows

PERIODS = ("day", "week", "month", "total")
_LOCK = 0x52454D42  # "REMB": one looks at a time
_MEMBERS = 1_000_000

# Why nothing of an owner (o) is placed or leased, its own budget or its group's being used up; else NULL.
STOP = """coalesce(o.budget_stop, CASE WHEN o.group_id IS NOT NULL THEN
    (SELECT g.budget_stop FROM owners g WHERE g.id = o.group_id) END)"""


# Whether anybody's budget in a pool is used up, and of which owners (a group's members are), in which
# of the pools (None: in any). An owner's own comes before its group's.
ANY_STOPPED = "EXISTS (SELECT FROM budgets WHERE stopped IS NOT NULL)"
_STOPPED = """
    SELECT s.owner_id, s.pool_id, s.stopped FROM (
      SELECT b.owner_id, b.pool_id, b.stopped, true AS own FROM budgets b WHERE b.stopped IS NOT NULL
      UNION ALL
      SELECT o.id, b.pool_id, b.stopped, false FROM budgets b JOIN owners o ON o.group_id = b.owner_id
      WHERE b.stopped IS NOT NULL) AS s
    WHERE CAST(:pools AS bigint[]) IS NULL OR s.pool_id = ANY(CAST(:pools AS bigint[]))
    ORDER BY s.own
"""

# Whether a budget in the pool (p) stops an owner (o), its own or its group's.
STOPPED_THERE = """EXISTS (SELECT FROM budgets b WHERE b.stopped IS NOT NULL AND b.pool_id = p.id
    AND b.owner_id IN (o.id, o.group_id))"""


def put(
    connection: Connection,
    *,
    pool_id: int | None,
    owner_id: int | None,
    period: str,
    warn: float | None,
    stop: float | None,
) -> None:
    """Give a pool, an owner or an owner in a pool a budget, in place of the one it has."""
    connection.execute(
        text(
            """INSERT INTO budgets (pool_id, owner_id, period, warn, stop)
                VALUES (:pool, :owner, :period, :warn, :stop)
                ON CONFLICT (coalesce(pool_id, 0), coalesce(owner_id, 0)) DO UPDATE
                SET period = EXCLUDED.period, warn = EXCLUDED.warn, stop = EXCLUDED.stop,
                  checked_at = NULL"""
        ),
        {"pool": pool_id, "owner": owner_id, "period": period, "warn": warn, "stop": stop},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'budget')"))  # looked at at once


def remove(connection: Connection, *, pool_id: int | None, owner_id: int | None) -> bool:
    """Take a budget away, and what it stopped goes on; False: there was none."""
    found = rows(
        connection,
        """DELETE FROM budgets WHERE pool_id IS NOT DISTINCT FROM CAST(:pool AS bigint)
             AND owner_id IS NOT DISTINCT FROM CAST(:owner AS bigint) RETURNING stopped""",
        pool=pool_id,
        owner=owner_id,
    )
    if found and found[0]["stopped"] is not None:
        _tell(connection, goes_on=True)
    # After the budget itself, as whoever compares it with what was spent locks them.
    _set_stop(connection, pool_id=pool_id, owner_id=owner_id, reason=None)
    return bool(found)


def stopped(
    connection: Connection, pool_ids: Sequence[int] | None = None
) -> dict[tuple[int, int], str]:
    """Return which owners get nothing in which pools (of `pool_ids`, if given), with why.

    Their budget there, or their group's, is used up.
    """
    wanted = None if pool_ids is None else list(pool_ids)
    found = rows(connection, _STOPPED, pools=wanted)
    return {(row["owner_id"], row["pool_id"]): row["stopped"] for row in found}


def listing(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return all budgets with the names of whose they are: of pools, of owners, of owners in pools."""
    return rows(
        connection,
        """SELECT b.*, p.name AS pool, o.name AS owner FROM budgets b
           LEFT JOIN pools p ON p.id = b.pool_id LEFT JOIN owners o ON o.id = b.owner_id
           ORDER BY b.owner_id IS NOT NULL, p.name NULLS FIRST, o.name""",
    )


def to_check(connection: Connection) -> tuple[datetime, Sequence[Mapping[str, Any]]]:
    """Return now and the budgets that are due, locked, each with the `begin` of its present period.

    None while another checks them. One whose check takes long is looked at less often, so that all
    this costs little.
    """
    now = connection.scalar(text("SELECT now()"))
    if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
        return now, []
    found = rows(
        connection,
        """SELECT b.*, p.name AS pool, o.name AS owner,
                  CASE b.period WHEN 'total' THEN least(b.created_at, p.created_at, o.created_at)
                    ELSE date_trunc(b.period, now(), 'UTC') END AS begin
           FROM budgets b LEFT JOIN pools p ON p.id = b.pool_id
           LEFT JOIN owners o ON o.id = b.owner_id
           WHERE (p.id IS NULL OR p.state NOT IN ('CLOSED', 'PENDING_DELETE'))
             AND coalesce(b.checked_at <= now() - make_interval(secs => greatest(5, 50 * b.check_s)),
                          true)
           ORDER BY b.id FOR NO KEY UPDATE OF b""",
    )
    return now, found


def spent(connection: Connection, budget: Mapping[str, Any], now: datetime) -> float:
    """Return what was spent of a budget since the begin of its present period.

    Of a group's by all who are its members now.
    """
    by = "pool" if budget["owner_id"] is None else "owner"
    found = costs(
        connection,
        by,
        since=budget["begin"],
        until=now,
        pool_id=budget["pool_id"],
        owner_id=budget["owner_id"],
        limit=_MEMBERS,
    )
    return float(sum(row["cost"] for row in found))


def note(
    connection: Connection,
    budget: Mapping[str, Any],
    *,
    spent: float,
    level: str,
    reason: str | None,
    check_s: float,
) -> None:
    """Store how much was spent, what follows, and what it took to find out.

    `reason`: why nothing of whose it is is placed or launched; None: it may be.
    """
    connection.execute(
        text(
            """UPDATE budgets SET spent = :spent, level = :level, period_start = :begin,
                 checked_at = now(), check_s = :check_s WHERE id = :id"""
        ),
        {
            "id": budget["id"],
            "spent": spent,
            "level": level,
            "begin": budget["begin"],
            "check_s": check_s,
        },
    )
    _set_stop(connection, pool_id=budget["pool_id"], owner_id=budget["owner_id"], reason=reason)


def _set_stop(
    connection: Connection, *, pool_id: int | None, owner_id: int | None, reason: str | None
) -> None:
    column, table, whose = "budget_stop", "pools", "id = :pool"
    if owner_id is not None:
        table, whose = "owners", "id = :owner"
        if pool_id is not None:
            column, table, whose = "stopped", "budgets", "pool_id = :pool AND owner_id = :owner"
    done = connection.execute(
        text(
            f"""UPDATE {table} SET {column} = :reason
                WHERE {whose} AND {column} IS DISTINCT FROM :reason"""
        ),
        {"pool": pool_id, "owner": owner_id, "reason": reason},
    )
    if done.rowcount:
        _tell(connection, goes_on=reason is None)


def _tell(connection: Connection, *, goes_on: bool) -> None:
    """Have those who wait told why, or served."""
    for kind in ("lease", "dispatch", "pool") if goes_on else ("lease",):
        connection.execute(text("SELECT pg_notify('remuda_wake', :kind)"), {"kind": kind})
