"""Give pools labels, short names, constraints, an end that deletes them; owners a number of pools."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), server_default="false", nullable=False)


def _mapping(name: str) -> sa.Column[Any]:
    return sa.Column(name, JSONB(), server_default="{}", nullable=False)


def _check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("owners", sa.Column("max_pools", sa.Integer()))
    _check("owners", "max_pools", "max_pools >= 0")
    _pools()
    _vm_outputs()
    _resources()
    _secrets()
    _profiles()


def _profiles() -> None:
    op.add_column("pools", sa.Column("profile", sa.Text()))
    op.create_table(
        "pool_profiles",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text()),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("fields", JSONB(), nullable=False),
        _now("created_at"),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_profiles")),
        sa.UniqueConstraint("name", name=op.f("uq_pool_profiles_name")),
    )
    _check("pool_profiles", "name", "name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'")
    _check("pool_profiles", "fields", "jsonb_typeof(fields) = 'object'")


def _secrets() -> None:
    op.add_column("pools", _mapping("secrets"))
    op.create_table(
        "secrets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stored", sa.LargeBinary(), nullable=False),
        _now("created_at"),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_secrets_owner_id")),
        sa.UniqueConstraint("owner_id", "name", name=op.f("uq_secrets_owner_id_name")),
    )
    _check("secrets", "name", "name ~ '^[A-Za-z_][A-Za-z0-9_]{0,199}$'")


def _now(name: str) -> sa.Column[Any]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _version() -> sa.Column[Any]:
    return sa.Column("resources_version", sa.BigInteger(), server_default="0", nullable=False)


def _resources() -> None:
    op.create_table(
        "pool_resources",
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), server_default="", nullable=False),
        sa.Column("size", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("mode", sa.Integer(), server_default="420", nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool_id", "name", name=op.f("pk_pool_resources")),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pools.id"], name=op.f("fk_pool_resources_pool_id"), ondelete="CASCADE"
        ),
    )
    _check("pool_resources", "size", "size >= 0")
    _check("pool_resources", "version", "version > 0")
    op.add_column("pools", _version())
    op.add_column("pools", _flag("wait_for_resources"))
    op.add_column("vms", _version())
    op.add_column("job_specs", sa.Column("wait_for_resources", sa.Boolean()))


def _vm_outputs() -> None:
    op.create_table(
        "vm_outputs",
        sa.Column("vm_id", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("written_bytes", sa.BigInteger(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "stream", name=op.f("pk_vm_outputs")),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_vm_outputs_vm_id"), ondelete="CASCADE"
        ),
    )
    _check("vm_outputs", "stream", "stream IN ('stdout', 'stderr')")
    _check(
        "vm_outputs",
        "bytes",
        "length(data) <= written_bytes AND read_bytes BETWEEN 0 AND written_bytes",
    )


def _pools() -> None:
    for column in (
        _mapping("labels"),
        sa.Column("shortname", sa.Text()),
        _mapping("constraints"),
        sa.Column("completion_ttl_s", sa.Double()),
        _flag("auto_delete"),
        _flag("purge_results"),
        _flag("purge_resources"),
        sa.Column("purged_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("pools", column)
    _check("pools", "shortname", "shortname ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'")
    _check("pools", "completion_ttl_s", "completion_ttl_s > 0 AND completion_ttl_s <= 315360000")
    _check(
        "pools",
        "purged",
        "purged_at IS NULL OR deleted_at IS NOT NULL AND (purge_results OR purge_resources)",
    )
    op.create_index(
        "uq_pools_shortname_open",
        "pools",
        ["shortname"],
        unique=True,
        postgresql_where=sa.text("state NOT IN ('CLOSED', 'PENDING_DELETE')"),
    )
