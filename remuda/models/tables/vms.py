"""VMs and their heartbeats."""

from __future__ import annotations

import uuid

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.states import VmState
from remuda.models.tables.base import (
    Base,
    BigId,
    BigInt,
    Created,
    Json,
    Timestamp,
    in_order_of_time,
    one_of,
)


class Vm(Base):
    """One machine, from the intent to make it until the provider confirmed that it is gone."""

    __tablename__ = "vms"
    __table_args__ = (
        one_of("state", VmState),
        CheckConstraint("slots BETWEEN 1 AND 100000", name="slots"),
        CheckConstraint("memory_bytes > 0", name="memory_bytes"),
        CheckConstraint("price >= 0 AND price <= 1e9", name="price"),
        CheckConstraint("(state = 'HALTED') = (halted_at IS NOT NULL)", name="halted"),
        CheckConstraint(
            "provider_id IS NOT NULL OR state IN ('NEW', 'STOPPING', 'ERROR', 'HALTED')",
            name="provider_id",
        ),
        CheckConstraint("(watcher IS NULL) = (watch_expires_at IS NULL)", name="watch"),
        CheckConstraint("check_failures >= 0", name="check_failures"),
        CheckConstraint(
            "preempted_for IS NULL OR (draining AND interruption_at IS NOT NULL)", name="preempted"
        ),
        CheckConstraint("reboot IN ('DRAIN', 'NOW', 'TOLD')", name="reboot"),
        CheckConstraint(
            "lease_count >= 0 AND (lease_count = 0) = (leased_at IS NULL)", name="leased"
        ),
        Index("ix_vms_live", "pool_id", postgresql_where=text("state <> 'HALTED'")),
        Index("ix_vms_pool_id_id", "pool_id", "id"),
    )

    id: Mapped[BigId]
    pool_id: Mapped[BigInt] = mapped_column(ForeignKey("pools.id"))
    image_id: Mapped[BigInt] = mapped_column(ForeignKey("images.id"))
    name: Mapped[str] = mapped_column(Text, unique=True)
    # The idempotency token: committed before the provider is asked, and tagged on the machine.
    token: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid(), unique=True)
    spawn_calls: Mapped[int] = mapped_column(server_default="0")  # of its provider
    empty_calls: Mapped[int] = mapped_column(server_default="0")  # the first that left no machine
    provider: Mapped[str | None] = mapped_column(Text)  # of its offer; None: the pool's
    offer: Mapped[str] = mapped_column(Text, server_default="")
    offer_settings: Mapped[Json] = mapped_column(server_default="{}")  # over the pool's
    price: Mapped[float | None]  # for an hour, as its offer said
    launch_failures: Mapped[int] = mapped_column(server_default="0")  # of the present step
    asked_at: Mapped[Timestamp | None]  # its provider, for the first time
    next_try_at: Mapped[Timestamp | None]  # of its launch, not before
    provider_id: Mapped[str | None] = mapped_column(Text)
    address: Mapped[Json] = mapped_column(server_default="{}")
    private_ip: Mapped[str | None] = mapped_column(Text)
    public_ip: Mapped[str | None] = mapped_column(Text)

    slots: Mapped[int]
    memory_bytes: Mapped[BigInt | None]
    architecture: Mapped[str | None] = mapped_column(Text)
    gpus: Mapped[int] = mapped_column(server_default="0")
    facts: Mapped[Json] = mapped_column(server_default="{}")  # as measured: what its runner told
    preparation: Mapped[
        Json | None
    ]  # how the pool's command went: {exit_code, signal, output, ...}
    # Where the pool isolates: whom the VM serves, from its first job or lease on.
    bound_owner_id: Mapped[BigInt | None] = mapped_column(ForeignKey("owners.id"))
    bound_sandbox: Mapped[str | None] = mapped_column(Text)

    state: Mapped[str] = mapped_column(Text, server_default="NEW")
    draining: Mapped[bool] = mapped_column(server_default="false")
    replaced: Mapped[bool] = mapped_column(server_default="false")
    error: Mapped[str | None] = mapped_column(Text)

    # Health checks: when the last one ended, how many failed since one that did not, and how.
    check_began_at: Mapped[Timestamp | None]  # a worker took it on
    checked_at: Mapped[Timestamp | None]
    check_failures: Mapped[int] = mapped_column(server_default="0")
    check_error: Mapped[str | None] = mapped_column(Text)
    # When the machine will be taken away, as its provider, its runner or an operator has said; or
    # as others need its place, then for whom.
    interruption_at: Mapped[Timestamp | None]
    preempted_for: Mapped[str | None] = mapped_column(Text)
    # A reboot wished for: once it is idle, or at once; TOLD: the machine goes down or comes up.
    reboot: Mapped[str | None] = mapped_column(Text)
    boot: Mapped[str | None] = mapped_column(Text)  # of its runner: another one after a reboot

    heartbeat_at: Mapped[Timestamp | None]
    load: Mapped[float | None]
    cores: Mapped[int | None]  # of the machine, as its runner counts them
    uptime_s: Mapped[float | None]
    transferred_files: Mapped[BigInt] = mapped_column(server_default="0")  # by its present runner
    transferred_bytes: Mapped[BigInt] = mapped_column(server_default="0")
    # The last entry of the runner's journal that these tables hold.
    journal_n: Mapped[BigInt] = mapped_column(server_default="0")
    watcher: Mapped[str | None] = mapped_column(Text)
    watch_expires_at: Mapped[Timestamp | None]
    # Silence is what a living watcher heard: it ends when the watch was last renewed, and begins no
    # earlier than `listening_since`, set when the watch of a VM that was well goes to another.
    watch_renewed_at: Mapped[Timestamp | None]
    listening_since: Mapped[Timestamp | None]

    resources_version: Mapped[BigInt] = mapped_column(server_default="0")  # of its pool
    created_at: Mapped[Created]
    submitted_at: Mapped[Timestamp | None]
    running_at: Mapped[Timestamp | None]
    busy_at: Mapped[Timestamp | None]  # when its last attempt or lease ended
    state_changed_at: Mapped[Created]
    halted_at: Mapped[Timestamp | None]

    # Whether its provider makes it ready for its next user, and since when that is to be done.
    release_hook: Mapped[bool] = mapped_column(server_default="false")
    release_due_at: Mapped[Timestamp | None]
    # How many leases it has had, since when, and whose the last one was.
    lease_count: Mapped[int] = mapped_column(server_default="0")
    leased_at: Mapped[Timestamp | None]
    leased_owner_id: Mapped[BigInt | None] = mapped_column(ForeignKey("owners.id"))
    leased_sandbox: Mapped[str | None] = mapped_column(Text)


class UnownedMachine(Base):
    """A machine a provider has and no live VM owns.

    `pool_id` None: of a pool of some other installation, only listed. One of ours that still has no
    VM after a grace (its row may be on its way) is terminated until the provider confirms it.
    """

    __tablename__ = "unowned_machines"
    __table_args__ = (
        CheckConstraint("last_seen_at >= first_seen_at", name="seen"),
        CheckConstraint("terminate_calls >= 0", name="terminate_calls"),
        Index(
            "uq_unowned_machines_there",
            "provider",
            "tag",
            "provider_id",
            unique=True,
            postgresql_where=text("gone_at IS NULL"),
        ),
    )

    id: Mapped[BigId]
    provider: Mapped[str] = mapped_column(Text)
    provider_id: Mapped[str] = mapped_column(Text)
    tag: Mapped[str] = mapped_column(Text)  # the UUID of its pool, as the machine says
    pool_id: Mapped[BigInt | None] = mapped_column(ForeignKey("pools.id"))
    token: Mapped[str] = mapped_column(Text, server_default="")
    first_seen_at: Mapped[Created]
    last_seen_at: Mapped[Created]
    terminate_calls: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None] = mapped_column(Text)  # of the last try to terminate it
    terminated_at: Mapped[Timestamp | None]  # when the provider was last asked to, without an error
    gone_at: Mapped[Timestamp | None]  # when the provider had it no longer, or a VM owned it


class Heartbeat(Base):
    """History of what the VMs reported; append-only, kept for a set time."""

    __tablename__ = "heartbeats"
    __table_args__ = (
        CheckConstraint("transferred_files >= 0 AND transferred_bytes >= 0", name="transferred"),
        Index("ix_heartbeats_vm_id_at", "vm_id", "at"),
        in_order_of_time("heartbeats", "at"),
    )

    id: Mapped[BigId]
    vm_id: Mapped[BigInt] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"))
    at: Mapped[Created]
    load: Mapped[float]
    running_jobs: Mapped[int]
    memory_free_bytes: Mapped[BigInt]
    disk_free_bytes: Mapped[BigInt]
    uptime_s: Mapped[float]
    cores: Mapped[int | None]
    queued_jobs: Mapped[int] = mapped_column(server_default="0")
    # Counted since its runner began: inputs put into sandboxes, outputs found, output streamed.
    transferred_files: Mapped[BigInt] = mapped_column(server_default="0")
    transferred_bytes: Mapped[BigInt] = mapped_column(server_default="0")
    state: Mapped[str | None] = mapped_column(Text)  # of the VM, when it was heard
