"""Give pools several offers, launches a budget, and the command provider its book."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"


def _add(table: str, *columns: sa.Column[Any]) -> None:
    for column in columns:
        op.add_column(table, column)


def _time(name: str, *, now: bool = False, null: bool = True) -> sa.Column[Any]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=null and not now
    )


def _check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    """Apply the revision."""
    _pools()
    _vms()
    _refusals()
    _command_vms()


def _pools() -> None:
    _add(
        "pools",
        sa.Column("offers", JSONB(), server_default="[]", nullable=False),
        sa.Column("launch_timeout_s", sa.Double(), server_default="600", nullable=False),
        sa.Column("launch_retries", sa.Integer(), server_default="3", nullable=False),
        sa.Column("max_starting", sa.Integer()),
        sa.Column("spawn_interval_s", sa.Double(), server_default="0", nullable=False),
        _time("last_spawn_at"),
    )
    _check(
        "pools",
        "launch",
        "launch_timeout_s > 0 AND launch_timeout_s <= 86400 AND launch_retries BETWEEN 0 AND 100"
        " AND max_starting > 0 AND spawn_interval_s >= 0 AND spawn_interval_s <= 86400",
    )


def _vms() -> None:
    _add(
        "vms",
        sa.Column("provider", sa.Text()),
        sa.Column("offer", sa.Text(), server_default="", nullable=False),
        sa.Column("offer_settings", JSONB(), server_default="{}", nullable=False),
        sa.Column("price", sa.Double()),
        sa.Column("launch_failures", sa.Integer(), server_default="0", nullable=False),
        _time("asked_at"),
        _time("next_try_at"),
    )
    _check("vms", "price", "price >= 0 AND price <= 1e9")


def _refusals() -> None:
    op.create_table(
        "offer_refusals",
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), server_default="1", nullable=False),
        _time("refused_at", now=True),
        _time("expires_at", null=False),
        sa.CheckConstraint("times > 0", name=op.f("ck_offer_refusals_times")),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pools.id"], name="fk_offer_refusals_pool_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("pool_id", "offer", name="pk_offer_refusals"),
    )


def _command_vms() -> None:
    op.create_table(
        "command_vms",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="making", nullable=False),
        sa.Column("output", sa.Text(), server_default="", nullable=False),
        _time("created_at", now=True),
        sa.Column("held_by", sa.Text()),
        _time("held_until"),
        sa.CheckConstraint("number >= 0", name=op.f("ck_command_vms_number")),
        sa.CheckConstraint(
            "state IN ('making', 'made', 'deleting')", name=op.f("ck_command_vms_state")
        ),
        sa.CheckConstraint(
            "(held_by IS NULL) = (held_until IS NULL)", name=op.f("ck_command_vms_held")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_command_vms"),
        sa.UniqueConstraint("provider_id", name="uq_command_vms_provider_id"),
        sa.UniqueConstraint("token", name="uq_command_vms_token"),
        sa.UniqueConstraint("pool", "number", name="uq_command_vms_pool_number"),
    )
    op.create_table(
        "command_counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("command_vm_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("value >= 0", name=op.f("ck_command_counters_value")),
        sa.ForeignKeyConstraint(
            ["command_vm_id"],
            ["command_vms.id"],
            name="fk_command_counters_command_vm_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("name", "value", name="pk_command_counters"),
    )
    op.create_index("ix_command_counters_command_vm_id", "command_counters", ["command_vm_id"])
