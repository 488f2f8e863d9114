"""Give VMs health checks, ages and a ledger of machines that nobody owns."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"


def _number(name: str, type_: Any, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, type_, server_default=default, nullable=default is None)


def _time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True))


def _seen(name: str) -> sa.Column[Any]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _add(table: str, *columns: sa.Column[Any]) -> None:
    for column in columns:
        op.add_column(table, column)


def _check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    """Apply the revision."""
    _vms()
    _pools()
    _unowned()
    _displaced()


def _vms() -> None:
    _add(
        "vms",
        _time("check_began_at"),
        _time("checked_at"),
        _number("check_failures", sa.Integer(), "0"),
        sa.Column("check_error", sa.Text()),
        _time("interruption_at"),
        sa.Column("reboot", sa.Text()),
        sa.Column("boot", sa.Text()),
    )
    _check("vms", "check_failures", "check_failures >= 0")
    _check("vms", "reboot", "reboot IN ('DRAIN', 'NOW', 'TOLD')")
    # A VM that is rebooted is met anew, like one just made. A new database has these edges already.
    op.execute("""
        INSERT INTO transitions (kind, old, new)
        VALUES ('vm', 'RUNNING', 'WAIT_SSH_CONTEXT'), ('vm', 'STALLED', 'WAIT_SSH_CONTEXT')
        ON CONFLICT DO NOTHING""")


def _pools() -> None:
    _add(
        "pools",
        sa.Column("architecture", sa.Text()),
        _number("check_interval_s", sa.Double(), "60"),
        _number("check_timeout_s", sa.Double(), "20"),
        _number("max_check_fails", sa.Integer(), "3"),
        _number("min_free_disk_bytes", sa.BigInteger(), "0"),
        sa.Column("health_command", JSONB()),
        _number("max_vm_age_s", sa.Double()),
        _number("max_jobs_per_vm", sa.Integer()),
        _number("dead_man_s", sa.Double()),
        sa.Column("dead_man_command", JSONB()),
        sa.Column("reboot_command", JSONB()),
        _number("rollout_max_unavailable", sa.Integer()),
        _time("rollout_at"),
        _time("frozen_at"),
        sa.Column("frozen_reason", sa.Text()),
        _time("loss_confirmed_at"),
        _time("reconcile_began_at"),
        _time("reconciled_at"),
        _time("deleted_at"),
    )
    op.alter_column("pools", "stalling_interval_s", server_default="120")
    _check(
        "pools",
        "checks",
        "check_interval_s >= 1 AND check_interval_s <= 31536000 AND check_timeout_s > 0"
        " AND check_timeout_s <= 600 AND max_check_fails BETWEEN 0 AND 1000"
        " AND min_free_disk_bytes >= 0",
    )
    _check("pools", "max_vm_age_s", "max_vm_age_s > 0 AND max_vm_age_s <= 315360000")
    _check("pools", "max_jobs_per_vm", "max_jobs_per_vm > 0")
    _check("pools", "dead_man_s", "dead_man_s >= 1 AND dead_man_s <= 31536000")
    _check("pools", "rollout_max_unavailable", "rollout_max_unavailable > 0")
    _check(
        "pools",
        "frozen",
        "(frozen_at IS NULL) = (frozen_reason IS NULL) AND (frozen_at IS NOT NULL"
        " OR loss_confirmed_at IS NULL)",
    )
    # Of those deleted before nothing is known to be left.
    op.execute("UPDATE pools SET deleted_at = ended_at WHERE state = 'PENDING_DELETE'")
    _check("pools", "deleted", "deleted_at IS NULL OR state = 'PENDING_DELETE'")


def _unowned() -> None:
    op.create_table(
        "unowned_machines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("pool_id", sa.BigInteger()),
        sa.Column("token", sa.Text(), server_default="", nullable=False),
        _seen("first_seen_at"),
        _seen("last_seen_at"),
        _number("terminate_calls", sa.Integer(), "0"),
        sa.Column("error", sa.Text()),
        _time("terminated_at"),
        _time("gone_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unowned_machines")),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pools.id"], name=op.f("fk_unowned_machines_pool_id")
        ),
    )
    _check("unowned_machines", "seen", "last_seen_at >= first_seen_at")
    _check("unowned_machines", "terminate_calls", "terminate_calls >= 0")
    op.create_index(
        "uq_unowned_machines_there",
        "unowned_machines",
        ["provider", "tag", "provider_id"],
        unique=True,
        postgresql_where=sa.text("gone_at IS NULL"),
    )


def _displaced() -> None:
    op.add_column(
        "jobs", sa.Column("displaced", sa.Boolean(), server_default="false", nullable=False)
    )
    op.drop_index("ix_jobs_waiting", "jobs")
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["pool_id", sa.text("priority DESC"), sa.text("displaced DESC"), "id"],
        postgresql_where=sa.text("state = 'NEW' AND unmet = 0 AND NOT held"),
    )
    op.drop_index("ix_jobs_waiting_for_several", "jobs")
    op.create_index(
        "ix_jobs_waiting_for_several",
        "jobs",
        [sa.text("priority DESC"), sa.text("displaced DESC"), "id"],
        postgresql_where=sa.text(
            "state = 'NEW' AND unmet = 0 AND NOT held AND pool_ids IS NOT NULL"
        ),
    )
