"""What may be spent, and what is used up of it."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, BigInt, Created, Timestamp


class Budget(Base):
    """What a pool, an owner, or (both) an owner in a pool may spend in each period.

    Periods are of UTC; weeks begin on Monday.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("num_nulls(pool_id, owner_id) < 2", name="subject"),
        CheckConstraint("stopped IS NULL OR num_nulls(pool_id, owner_id) = 0", name="stopped"),
        Index(
            "uq_budgets_subject",
            text("coalesce(pool_id, 0::bigint)"),
            text("coalesce(owner_id, 0::bigint)"),
            unique=True,
        ),
        Index(
            "ix_budgets_stopped",
            "pool_id",
            "owner_id",
            postgresql_where=text("stopped IS NOT NULL"),
        ),
        CheckConstraint("period IN ('day', 'week', 'month', 'total')", name="period"),
        CheckConstraint("level IN ('ok', 'warn', 'stop')", name="level"),
        CheckConstraint(
            "num_nulls(warn, stop) < 2 AND warn >= 0 AND stop >= 0 AND warn <= 1e15"
            " AND stop <= 1e15 AND warn <= stop AND spent >= 0 AND check_s >= 0",
            name="amounts",
        ),
    )

    id: Mapped[BigId]
    pool_id: Mapped[BigInt | None] = mapped_column(ForeignKey("pools.id"))
    owner_id: Mapped[BigInt | None] = mapped_column(ForeignKey("owners.id"))
    period: Mapped[str] = mapped_column(Text)
    warn: Mapped[float | None]
    stop: Mapped[float | None]
    spent: Mapped[float] = mapped_column(server_default="0")
    level: Mapped[str] = mapped_column(Text, server_default="ok")
    period_start: Mapped[Timestamp | None]
    checked_at: Mapped[Timestamp | None]
    check_s: Mapped[float] = mapped_column(server_default="0")  # what that took
    # Why nothing of the owner is placed in the pool. Of the others pools and owners tell it themselves.
    stopped: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Created]
