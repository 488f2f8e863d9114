"""Secrets, encrypted."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    LargeBinary,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, BigInt, Created


class Secret(Base):
    """One secret; `stored` is what a key ring made of its value."""

    __tablename__ = "secrets"
    __table_args__ = (
        UniqueConstraint("owner_id", "name"),
        CheckConstraint("name ~ '^[A-Za-z_][A-Za-z0-9_]{0,199}$'", name="name"),
    )

    id: Mapped[BigId]
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    name: Mapped[str] = mapped_column(Text)
    stored: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
