"""Settings of pools under a name."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, Created, Json


class PoolProfile(Base):
    """One template: how its pools are made, and fields of theirs as their columns have them."""

    __tablename__ = "pool_profiles"
    __table_args__ = (
        CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name="name"),
        CheckConstraint("jsonb_typeof(fields) = 'object'", name="fields"),
    )

    id: Mapped[BigId]
    name: Mapped[str] = mapped_column(Text, unique=True)
    description: Mapped[str] = mapped_column(Text, server_default="")
    provider: Mapped[str] = mapped_column(Text)
    backend: Mapped[str | None] = mapped_column(Text)  # None: the provider's way
    image: Mapped[str] = mapped_column(Text)
    fields: Mapped[Json]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
