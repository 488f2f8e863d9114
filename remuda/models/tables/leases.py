"""Leases on VMs' slots, and the requests of those who wait for one."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.tables.base import Base, BigId, BigInt, Created, Json, JsonList, Timestamp


class Lease(Base):
    """An owner's right to slots of a VM.

    `for_jobs`: held by the owner's live attempts on the VM, as long as there are any. Otherwise
    taken by a user without a job, and over at `expires_at` unless renewed with its `token`.
    """

    __tablename__ = "leases"
    __table_args__ = (
        CheckConstraint("slots > 0", name="slots"),
        CheckConstraint("for_jobs OR expires_at IS NOT NULL", name="expires"),
        CheckConstraint(
            "ended IS NULL OR released_at IS NOT NULL"
            " AND ended IN ('released', 'expired', 'revoked', 'gone')",
            name="ended",
        ),
        Index(
            "uq_leases_vm_owner_jobs",
            "vm_id",
            "owner_id",
            unique=True,
            postgresql_where=text("for_jobs AND released_at IS NULL"),
        ),
        Index("ix_leases_open", "vm_id", postgresql_where=text("released_at IS NULL")),
        Index(
            "ix_leases_held",
            "owner_id",
            postgresql_where=text("released_at IS NULL AND NOT for_jobs"),
        ),
    )

    id: Mapped[BigId]
    vm_id: Mapped[BigInt] = mapped_column(ForeignKey("vms.id"))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    sandbox: Mapped[str] = mapped_column(Text, server_default="")
    for_jobs: Mapped[bool]
    slots: Mapped[int]
    token: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())
    acquired_at: Mapped[Created]
    expires_at: Mapped[Timestamp | None]
    released_at: Mapped[Timestamp | None]
    task_id: Mapped[str | None] = mapped_column(Text)
    build_id: Mapped[str | None] = mapped_column(Text)
    labels: Mapped[Json] = mapped_column(server_default="{}")
    holder: Mapped[str] = mapped_column(Text, server_default="")  # host:pid
    ended: Mapped[str | None] = mapped_column(Text)  # how; None also of those for jobs


class LeaseRequest(Base):
    """Somebody waits for a lease, of `slots` or (None) of a whole VM, in the order of `pool_ids`.

    It is gone when its client takes the lease or gives up, or does not renew it until `expires_at`.
    """

    __tablename__ = "lease_requests"
    __table_args__ = (
        CheckConstraint("slots > 0", name="slots"),
        CheckConstraint("cardinality(pool_ids) > 0", name="pool_ids"),
        CheckConstraint(
            "ttl_s > 0 AND ttl_s <= 604800 AND priority BETWEEN -1000000 AND 1000000",
            name="ttl_s",
        ),
        CheckConstraint("NOT (refused AND lease_id IS NOT NULL)", name="refused"),
        Index("ix_lease_requests_vm_id", "vm_id", postgresql_where=text("vm_id IS NOT NULL")),
    )

    id: Mapped[BigId]
    pool_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    sandbox: Mapped[str] = mapped_column(Text, server_default="")
    slots: Mapped[int | None]
    ttl_s: Mapped[float]
    priority: Mapped[int] = mapped_column(server_default="0")
    tags: Mapped[JsonList] = mapped_column(server_default="[]")
    task_id: Mapped[str | None] = mapped_column(Text)
    build_id: Mapped[str | None] = mapped_column(Text)
    labels: Mapped[Json] = mapped_column(server_default="{}")
    holder: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[Created]
    deadline_at: Mapped[Timestamp | None]
    expires_at: Mapped[Timestamp]
    reason: Mapped[str | None] = mapped_column(Text)  # why it waits, or why it was refused
    grows: Mapped[bool] = mapped_column(server_default="true")  # a VM more would help
    refused: Mapped[bool] = mapped_column(server_default="false")
    lease_id: Mapped[BigInt | None] = mapped_column(ForeignKey("leases.id"))  # granted
    # Kept for it while it waits: nothing new goes there.
    vm_id: Mapped[BigInt | None] = mapped_column(ForeignKey("vms.id", ondelete="SET NULL"))
