"""Create owners, images, pools, VMs with their heartbeats and leases, and the sweeps' memory."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def _id() -> sa.Column[Any]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def _time(name: str, *, now: bool = False, null: bool = True) -> sa.Column[Any]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=null and not now
    )


def upgrade() -> None:
    """Apply the revision."""
    _owners_and_images()
    _pools()
    _vms()
    _heartbeats_and_leases()
    op.create_table(
        "sweeps",
        sa.Column("name", sa.Text(), nullable=False),
        _time("last_run_at", null=False),
        _time("since", null=False),
        sa.PrimaryKeyConstraint("name", name="pk_sweeps"),
    )


def _owners_and_images() -> None:
    op.create_table(
        "owners",
        _id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("mean_wall_s", sa.Double()),
        _time("created_at", now=True),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name=op.f("ck_owners_name")),
        sa.CheckConstraint("weight > 0 AND weight <= 1000000", name=op.f("ck_owners_weight")),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
        sa.UniqueConstraint("name", name="uq_owners_name"),
    )
    op.create_table(
        "images",
        _id(),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="NEW", nullable=False),
        sa.Column("message", sa.Text()),
        _time("created_at", now=True),
        sa.CheckConstraint("state IN ('NEW', 'VALIDATED', 'ERROR')", name=op.f("ck_images_state")),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )
    op.create_index("uq_images_provider_name", "images", ["provider", "name"], unique=True)


def _pools() -> None:
    op.create_table(
        "pools",
        _id(),
        sa.Column("uuid", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("settings", JSONB(), server_default="{}", nullable=False),
        sa.Column("tags", JSONB(), server_default="[]", nullable=False),
        sa.Column("isolation", sa.Text(), server_default="shared", nullable=False),
        sa.Column("slots_per_vm", sa.Integer(), nullable=False),
        sa.Column("memory_bytes_per_vm", sa.BigInteger()),
        sa.Column("instance_count", sa.Integer(), server_default="1", nullable=False),
        sa.Column("is_elastic", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("elastic_minimum_slots", sa.Integer(), server_default="0", nullable=False),
        sa.Column("elastic_maximum_slots", sa.Integer(), server_default="1", nullable=False),
        sa.Column("elastic_minimum_idle_slots", sa.Integer(), server_default="0", nullable=False),
        sa.Column("elastic_minimum_idle_time_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("elastic_resize_factor", sa.Double(), server_default="1", nullable=False),
        sa.Column("elastic_resize_period_s", sa.Double(), server_default="90", nullable=False),
        sa.Column("heartbeat_s", sa.Double(), server_default="10", nullable=False),
        sa.Column("stalling_interval_s", sa.Double(), server_default="60", nullable=False),
        sa.Column("state", sa.Text(), server_default="UNSUBMITTED", nullable=False),
        sa.Column("close_now", sa.Boolean(), server_default="false", nullable=False),
        _time("last_resize_at"),
        sa.Column("decision", JSONB()),
        sa.Column("launch_failures", sa.Integer(), server_default="0", nullable=False),
        _time("paused_until"),
        sa.Column("message", sa.Text()),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        _time("state_changed_at", now=True),
        _time("previous_state_changed_at"),
        _time("ended_at"),
        sa.CheckConstraint(
            "state IN ('UNSUBMITTED', 'SUBMITTED', 'PARTIALLY_DISPATCHED', 'FULLY_DISPATCHED',"
            " 'PARTIALLY_EXECUTING', 'FULLY_EXECUTING', 'CLOSING', 'CLOSED', 'FAILURE',"
            " 'PENDING_DELETE')",
            name=op.f("ck_pools_state"),
        ),
        sa.CheckConstraint(
            "(state IN ('CLOSED', 'PENDING_DELETE')) = (ended_at IS NOT NULL)",
            name=op.f("ck_pools_ended"),
        ),
        sa.CheckConstraint(
            "isolation IN ('shared', 'owner', 'sandbox', 'single_use')",
            name=op.f("ck_pools_isolation"),
        ),
        sa.CheckConstraint(
            "name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name=op.f("ck_pools_name")
        ),
        sa.CheckConstraint("slots_per_vm BETWEEN 1 AND 100000", name=op.f("ck_pools_slots_per_vm")),
        sa.CheckConstraint("memory_bytes_per_vm > 0", name=op.f("ck_pools_memory_bytes_per_vm")),
        sa.CheckConstraint(
            "instance_count BETWEEN 0 AND 100000", name=op.f("ck_pools_instance_count")
        ),
        sa.CheckConstraint(
            "elastic_minimum_slots >= 0 AND elastic_minimum_slots <= elastic_maximum_slots"
            " AND elastic_maximum_slots <= 10000000 AND elastic_minimum_idle_slots >= 0"
            " AND elastic_minimum_idle_time_s >= 0 AND elastic_minimum_idle_time_s <= 31536000"
            " AND elastic_resize_factor > 0 AND elastic_resize_factor <= 1"
            " AND elastic_resize_period_s >= 1 AND elastic_resize_period_s <= 31536000",
            name=op.f("ck_pools_elastic"),
        ),
        sa.CheckConstraint(
            "heartbeat_s > 0 AND stalling_interval_s > heartbeat_s"
            " AND stalling_interval_s <= 31536000",
            name=op.f("ck_pools_heartbeat"),
        ),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_pools_image_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_pools_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_pools"),
        sa.UniqueConstraint("uuid", name="uq_pools_uuid"),
    )
    op.create_index(
        "uq_pools_name_open",
        "pools",
        ["name"],
        unique=True,
        postgresql_where=sa.text("state NOT IN ('CLOSED', 'PENDING_DELETE')"),
    )


def _vms() -> None:
    op.execute("CREATE SEQUENCE vm_names")
    op.create_table(
        "vms",
        _id(),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("provider_id", sa.Text()),
        sa.Column("address", JSONB(), server_default="{}", nullable=False),
        sa.Column("private_ip", sa.Text()),
        sa.Column("public_ip", sa.Text()),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("architecture", sa.Text()),
        sa.Column("state", sa.Text(), server_default="NEW", nullable=False),
        sa.Column("draining", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("replaced", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("error", sa.Text()),
        _time("heartbeat_at"),
        sa.Column("load", sa.Double()),
        sa.Column("journal_n", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("watcher", sa.Text()),
        _time("watch_expires_at"),
        _time("watch_renewed_at"),
        _time("listening_since"),
        _time("created_at", now=True),
        _time("submitted_at"),
        _time("running_at"),
        _time("busy_at"),
        _time("state_changed_at", now=True),
        _time("halted_at"),
        sa.CheckConstraint(
            "state IN ('NEW', 'SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING', 'RUNNING',"
            " 'STALLED', 'STOPPING', 'ERROR', 'HALTED')",
            name=op.f("ck_vms_state"),
        ),
        sa.CheckConstraint("slots BETWEEN 1 AND 100000", name=op.f("ck_vms_slots")),
        sa.CheckConstraint("memory_bytes > 0", name=op.f("ck_vms_memory_bytes")),
        sa.CheckConstraint(
            "(state = 'HALTED') = (halted_at IS NOT NULL)", name=op.f("ck_vms_halted")
        ),
        sa.CheckConstraint(
            "provider_id IS NOT NULL OR state IN ('NEW', 'STOPPING', 'ERROR', 'HALTED')",
            name=op.f("ck_vms_provider_id"),
        ),
        sa.CheckConstraint(
            "(watcher IS NULL) = (watch_expires_at IS NULL)", name=op.f("ck_vms_watch")
        ),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_vms_image_id"),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_vms_pool_id"),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
        sa.UniqueConstraint("name", name="uq_vms_name"),
        sa.UniqueConstraint("token", name="uq_vms_token"),
    )
    op.create_index(
        "ix_vms_live", "vms", ["pool_id"], postgresql_where=sa.text("state <> 'HALTED'")
    )
    op.create_index("ix_vms_pool_id_id", "vms", ["pool_id", "id"])


def _heartbeats_and_leases() -> None:
    op.create_table(
        "heartbeats",
        _id(),
        sa.Column("vm_id", sa.BigInteger(), nullable=False),
        _time("at", now=True),
        sa.Column("load", sa.Double(), nullable=False),
        sa.Column("running_jobs", sa.Integer(), nullable=False),
        sa.Column("memory_free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("uptime_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name="fk_heartbeats_vm_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_heartbeats"),
    )
    op.create_index("ix_heartbeats_at", "heartbeats", ["at"])
    op.create_index("ix_heartbeats_vm_id_at", "heartbeats", ["vm_id", "at"])
    op.create_table(
        "leases",
        _id(),
        sa.Column("vm_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("sandbox", sa.Text(), server_default="", nullable=False),
        sa.Column("for_jobs", sa.Boolean(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("token", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        _time("acquired_at", now=True),
        _time("expires_at"),
        _time("released_at"),
        sa.CheckConstraint("for_jobs OR expires_at IS NOT NULL", name=op.f("ck_leases_expires")),
        sa.CheckConstraint("slots > 0", name=op.f("ck_leases_slots")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_leases_owner_id"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_leases_vm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
    )
    op.create_index(
        "ix_leases_open", "leases", ["vm_id"], postgresql_where=sa.text("released_at IS NULL")
    )
    op.create_index(
        "uq_leases_vm_owner_jobs",
        "leases",
        ["vm_id", "owner_id"],
        unique=True,
        postgresql_where=sa.text("for_jobs AND released_at IS NULL"),
    )
    op.create_table(
        "lease_requests",
        _id(),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        _time("expires_at", null=False),
        sa.CheckConstraint("slots > 0", name=op.f("ck_lease_requests_slots")),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pools.id"], name="fk_lease_requests_pool_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_lease_requests"),
    )
    op.create_index("ix_lease_requests_pool_id", "lease_requests", ["pool_id"])
