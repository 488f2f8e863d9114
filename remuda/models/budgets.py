"""Budgets of pools and owners: what may be spent in a period, and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Connection, ForeignKey, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.base import Base, BigId, BigInt, Created, Timestamp
from remuda.models.costs import costs
from remuda.models.database import rows

PERIODS = ("day", "week", "month", "total")
_LOCK = 0x52454D42  # "REMB": one looks at a time
_MEMBERS = 1_000_000

# Why nothing of an owner (o) is placed or leased, its own budget or its group's being used up; else NULL.
STOP = """coalesce(o.budget_stop, CASE WHEN o.group_id IS NOT NULL THEN
    (SELECT g.budget_stop FROM owners g WHERE g.id = o.group_id) END)"""


class Budget(Base):
    """What a pool or an owner may spend in each period (UTC; weeks begin on Monday)."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("num_nulls(pool_id, owner_id) = 1", name="subject"),
        CheckConstraint("period IN ('day', 'week', 'month', 'total')", name="period"),
        CheckConstraint("level IN ('ok', 'warn', 'stop')", name="level"),
        CheckConstraint(
            "num_nulls(warn, stop) < 2 AND warn >= 0 AND stop >= 0 AND warn <= 1e15"
            " AND stop <= 1e15 AND warn <= stop AND spent >= 0 AND check_s >= 0",
            name="amounts",
        ),
    )

    id: Mapped[BigId]
    pool_id: Mapped[BigInt | None] = mapped_column(ForeignKey("pools.id"), unique=True)
    owner_id: Mapped[BigInt | None] = mapped_column(ForeignKey("owners.id"), unique=True)
    period: Mapped[str] = mapped_column(Text)
    warn: Mapped[float | None]
    stop: Mapped[float | None]
    spent: Mapped[float] = mapped_column(server_default="0")
    level: Mapped[str] = mapped_column(Text, server_default="ok")
    period_start: Mapped[Timestamp | None]
    checked_at: Mapped[Timestamp | None]
    check_s: Mapped[float] = mapped_column(server_default="0")  # what that took
    created_at: Mapped[Created]


def put(
    connection: Connection,
    *,
    pool_id: int | None,
    owner_id: int | None,
    period: str,
    warn: float | None,
    stop: float | None,
) -> None:
    """Give a pool or an owner a budget, in place of the one it has."""
    subject = "pool_id" if pool_id is not None else "owner_id"
    connection.execute(
        text(
            f"""INSERT INTO budgets (pool_id, owner_id, period, warn, stop)
                VALUES (:pool, :owner, :period, :warn, :stop)
                ON CONFLICT ({subject}) DO UPDATE SET period = EXCLUDED.period,
                  warn = EXCLUDED.warn, stop = EXCLUDED.stop, checked_at = NULL"""
        ),
        {"pool": pool_id, "owner": owner_id, "period": period, "warn": warn, "stop": stop},
    )


def remove(connection: Connection, *, pool_id: int | None, owner_id: int | None) -> bool:
    """Take a pool's or an owner's budget away, and what it stopped goes on; False: it had none."""
    done = connection.execute(
        text("DELETE FROM budgets WHERE pool_id = :pool OR owner_id = :owner"),
        {"pool": pool_id, "owner": owner_id},
    )
    _set_stop(connection, pool_id=pool_id, owner_id=owner_id, reason=None)
    return done.rowcount > 0


def listing(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return all budgets with the names of whose they are, pools first."""
    return rows(
        connection,
        """SELECT b.*, p.name AS pool, o.name AS owner FROM budgets b
           LEFT JOIN pools p ON p.id = b.pool_id LEFT JOIN owners o ON o.id = b.owner_id
           ORDER BY b.owner_id IS NOT NULL, p.name, o.name""",
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
    by = "pool" if budget["pool_id"] is not None else "owner"
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

    `reason`: why nothing of the pool or owner is placed or launched; None: it may be.
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
    table, subject = ("pools", pool_id) if pool_id is not None else ("owners", owner_id)
    done = connection.execute(
        text(
            f"""UPDATE {table} SET budget_stop = :reason
                WHERE id = :id AND budget_stop IS DISTINCT FROM :reason"""
        ),
        {"id": subject, "reason": reason},
    )
    if done.rowcount:  # who waits is told why, or served
        connection.execute(text("SELECT pg_notify('remuda_wake', 'lease')"))
