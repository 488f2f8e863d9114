"""Give leases tags, limits and reasons to wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0006"
down_revision = "0005"


def _time(name: str, *, now: bool = False, null: bool = True) -> sa.Column[Any]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=null and not now
    )


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("owners", sa.Column("max_vms", sa.Integer()))
    op.create_check_constraint(op.f("ck_owners_max_vms"), "owners", "max_vms >= 0")
    _pools()
    _vms()
    _leases()
    _requests()
    # Their bodies name a column of a later revision: they are looked at when they are called.
    op.execute("SET LOCAL check_function_bodies = off")
    # The driver's own cursor: the file holds many statements and percent signs.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(Path(__file__).with_name("r0006_leases.sql").read_text("utf-8"))
    op.execute("SET LOCAL check_function_bodies = on")


def _pools() -> None:
    op.add_column("pools", sa.Column("max_vms_per_owner", sa.Integer()))
    op.add_column(
        "pools", sa.Column("tag_priorities", JSONB(), server_default="{}", nullable=False)
    )
    op.add_column("pools", sa.Column("reuse_opportunity_s", sa.Double()))
    op.add_column("pools", sa.Column("reuse_max_count", sa.Integer()))
    op.add_column("pools", sa.Column("reuse_max_s", sa.Double()))
    op.add_column("pools", sa.Column("info", JSONB(), server_default="{}", nullable=False))
    op.create_check_constraint(
        op.f("ck_pools_max_vms_per_owner"), "pools", "max_vms_per_owner >= 0"
    )
    op.create_check_constraint(
        op.f("ck_pools_reuse"),
        "pools",
        "(reuse_opportunity_s IS NULL OR reuse_opportunity_s BETWEEN 0 AND 31536000)"
        " AND (reuse_max_count IS NULL OR reuse_max_count >= 0)"
        " AND (reuse_max_s IS NULL OR reuse_max_s BETWEEN 0 AND 31536000)",
    )


def _vms() -> None:
    op.add_column(
        "vms", sa.Column("release_hook", sa.Boolean(), server_default="false", nullable=False)
    )
    op.add_column("vms", _time("release_due_at"))
    op.add_column("vms", sa.Column("lease_count", sa.Integer(), server_default="0", nullable=False))
    op.add_column("vms", _time("leased_at"))
    op.add_column("vms", sa.Column("leased_owner_id", sa.BigInteger()))
    op.add_column("vms", sa.Column("leased_sandbox", sa.Text()))
    op.create_foreign_key("fk_vms_leased_owner_id", "vms", "owners", ["leased_owner_id"], ["id"])
    op.create_check_constraint(
        op.f("ck_vms_leased"), "vms", "lease_count >= 0 AND (lease_count = 0) = (leased_at IS NULL)"
    )
    # Of the leases there were: how many each VM has had.
    op.execute(
        """UPDATE vms SET lease_count = l.count, leased_at = l.first FROM (
             SELECT vm_id, count(*)::int AS count, min(acquired_at) AS first FROM leases
             WHERE NOT for_jobs GROUP BY vm_id) AS l WHERE vms.id = l.vm_id"""
    )


def _leases() -> None:
    op.add_column("leases", sa.Column("task_id", sa.Text()))
    op.add_column("leases", sa.Column("build_id", sa.Text()))
    op.add_column("leases", sa.Column("labels", JSONB(), server_default="{}", nullable=False))
    op.add_column("leases", sa.Column("holder", sa.Text(), server_default="", nullable=False))
    op.add_column("leases", sa.Column("ended", sa.Text()))
    op.create_check_constraint(
        op.f("ck_leases_ended"),
        "leases",
        "ended IS NULL OR released_at IS NOT NULL"
        " AND ended IN ('released', 'expired', 'revoked', 'gone')",
    )
    op.create_index(
        "ix_leases_held",
        "leases",
        ["owner_id"],
        postgresql_where=sa.text("released_at IS NULL AND NOT for_jobs"),
    )


def _requests() -> None:
    # Rows of the old kind live for a minute at most, and their clients write others by then.
    op.drop_table("lease_requests")
    op.create_table(
        "lease_requests",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_ids", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("sandbox", sa.Text(), server_default="", nullable=False),
        sa.Column("slots", sa.Integer()),
        sa.Column("ttl_s", sa.Double(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tags", JSONB(), server_default="[]", nullable=False),
        sa.Column("task_id", sa.Text()),
        sa.Column("build_id", sa.Text()),
        sa.Column("labels", JSONB(), server_default="{}", nullable=False),
        sa.Column("holder", sa.Text(), server_default="", nullable=False),
        _time("created_at", now=True),
        _time("deadline_at"),
        _time("expires_at", null=False),
        sa.Column("reason", sa.Text()),
        sa.Column("grows", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("refused", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("lease_id", sa.BigInteger()),
        sa.CheckConstraint("slots > 0", name=op.f("ck_lease_requests_slots")),
        sa.CheckConstraint("cardinality(pool_ids) > 0", name=op.f("ck_lease_requests_pool_ids")),
        sa.CheckConstraint(
            "ttl_s > 0 AND ttl_s <= 604800 AND priority BETWEEN -1000000 AND 1000000",
            name=op.f("ck_lease_requests_ttl_s"),
        ),
        sa.CheckConstraint(
            "NOT (refused AND lease_id IS NOT NULL)", name=op.f("ck_lease_requests_refused")
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_lease_requests_lease_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_lease_requests_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_lease_requests"),
    )
