"""What the hooks of the `command` provider have, and the numbers they are given."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, BigInt, Created, Timestamp


class CommandVm(Base):
    """A VM that `cmd_new` was asked for, until `cmd_delete` has confirmed its end.

    `held_by` runs a hook on it until `held_until` at the latest.
    """

    __tablename__ = "command_vms"
    __table_args__ = (
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("state IN ('making', 'made', 'deleting')", name="state"),
        CheckConstraint("(held_by IS NULL) = (held_until IS NULL)", name="held"),
        UniqueConstraint("pool", "number"),
    )

    id: Mapped[BigId]
    provider_id: Mapped[str] = mapped_column(Text, unique=True)
    token: Mapped[str] = mapped_column(Text, unique=True)
    pool: Mapped[str] = mapped_column(Text)
    number: Mapped[int]  # the smallest that was free in the pool
    state: Mapped[str] = mapped_column(Text, server_default="making")
    output: Mapped[str] = mapped_column(Text, server_default="")  # of cmd_new
    created_at: Mapped[Created]
    held_by: Mapped[str | None] = mapped_column(Text)
    held_until: Mapped[Timestamp | None]


class CommandCounter(Base):
    """A value of a named counter, held by a VM; the smallest that was free, over all pools."""

    __tablename__ = "command_counters"
    __table_args__ = (CheckConstraint("value >= 0", name="value"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    command_vm_id: Mapped[BigInt] = mapped_column(
        ForeignKey("command_vms.id", ondelete="CASCADE"), index=True
    )
