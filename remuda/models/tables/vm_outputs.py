"""The last of what the preparation and the runner of a VM said."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigInt


class VmOutput(Base):
    """One stream of one VM; `data` is the end of the `written_bytes` that came."""

    __tablename__ = "vm_outputs"
    __table_args__ = (
        CheckConstraint("stream IN ('stdout', 'stderr')", name="stream"),
        CheckConstraint(
            "length(data) <= written_bytes AND read_bytes BETWEEN 0 AND written_bytes", name="bytes"
        ),
    )

    vm_id: Mapped[BigInt] = mapped_column(
        ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True
    )
    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    written_bytes: Mapped[BigInt]
    read_bytes: Mapped[BigInt] = mapped_column(server_default="0")  # by whoever reads what is fresh
