"""What was decided about the size of pools, and of what."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, BigInt, Created, Json


class SizingDecision(Base):
    """What was decided about a pool's size from `at` on, until its next decision."""

    __tablename__ = "sizing_decisions"
    __table_args__ = (
        CheckConstraint(
            "target >= 0 AND alive >= 0 AND grow_vms >= 0 AND close_vms >= 0 AND drain_vms >= 0",
            name="counts",
        ),
        Index("ix_sizing_decisions_pool_id_id", "pool_id", "id"),
    )

    id: Mapped[BigId]
    pool_id: Mapped[BigInt] = mapped_column(ForeignKey("pools.id", ondelete="CASCADE"))
    at: Mapped[Created]
    step: Mapped[str] = mapped_column(Text)
    policy: Mapped[str] = mapped_column(Text, server_default="")  # "": the pool's own size
    target: Mapped[int]  # slots
    alive: Mapped[int]  # slots, before it
    grow_vms: Mapped[int]
    close_vms: Mapped[int]  # those replaced among them
    drain_vms: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)
    inputs: Mapped[Json]
    outlook: Mapped[Json]
