"""The files every VM of a pool gets."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigInt


class PoolResource(Base):
    """One file; what was given by URL has no sha256 and no size."""

    __tablename__ = "pool_resources"
    __table_args__ = (
        CheckConstraint("size >= 0", name="size"),
        CheckConstraint("version > 0", name="version"),
    )

    pool_id: Mapped[BigInt] = mapped_column(
        ForeignKey("pools.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text, server_default="")
    size: Mapped[BigInt] = mapped_column(server_default="0")
    mode: Mapped[int] = mapped_column(server_default="420")
    version: Mapped[BigInt]  # of the pool's resources, with which this came to be what it is
