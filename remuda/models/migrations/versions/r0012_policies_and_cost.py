"""Give pools policies of their size, groups with a ceiling, a record of decisions; and budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0009"


def upgrade() -> None:
    """Apply the revision."""
    _policies()
    _decisions()
    _budgets()


def _policies() -> None:
    for column in (
        sa.Column("policies", JSONB(), server_default="[]", nullable=False),
        sa.Column("policy_name", sa.Text()),
        sa.Column("policy_minimum_slots", sa.Integer()),
        sa.Column("policy_maximum_slots", sa.Integer()),
        sa.Column("policy_resize_period_s", sa.Double()),
        sa.Column("policy_changes_at", sa.DateTime(timezone=True)),
        sa.Column("sizing_group", sa.Text()),
        sa.Column("datacenter", sa.Text()),
        sa.Column("offer_order", sa.Text(), server_default="listed", nullable=False),
    ):
        op.add_column("pools", column)
    op.create_check_constraint(
        op.f("ck_pools_policies"),
        "pools",
        "jsonb_typeof(policies) = 'array'"
        " AND num_nulls(policy_name, policy_minimum_slots, policy_maximum_slots) IN (0, 3)"
        " AND policy_minimum_slots >= 0 AND policy_minimum_slots <= policy_maximum_slots"
        " AND policy_resize_period_s >= 1"
        " AND (policy_name IS NOT NULL OR policy_resize_period_s IS NULL)",
    )
    op.create_check_constraint(
        op.f("ck_pools_sizing_group"), "pools", "length(sizing_group) BETWEEN 1 AND 63"
    )
    op.create_check_constraint(
        op.f("ck_pools_datacenter"), "pools", "length(datacenter) BETWEEN 1 AND 63"
    )
    op.create_check_constraint(
        op.f("ck_pools_offer_order"), "pools", "offer_order IN ('listed', 'cheapest', 'deadline')"
    )
    # More could never be kept idle; such a pool was not sized at all.
    op.execute(
        "UPDATE pools SET elastic_minimum_idle_slots = elastic_maximum_slots"
        " WHERE elastic_minimum_idle_slots > elastic_maximum_slots"
    )
    op.drop_constraint(op.f("ck_pools_elastic"), "pools")
    op.create_check_constraint(
        op.f("ck_pools_elastic"),
        "pools",
        "elastic_minimum_slots >= 0 AND elastic_minimum_slots <= elastic_maximum_slots"
        " AND elastic_maximum_slots <= 10000000 AND elastic_minimum_idle_slots >= 0"
        " AND elastic_minimum_idle_slots <= elastic_maximum_slots"
        " AND elastic_minimum_idle_time_s >= 0 AND elastic_minimum_idle_time_s <= 31536000"
        " AND elastic_resize_factor > 0 AND elastic_resize_factor <= 1"
        " AND elastic_resize_period_s >= 1 AND elastic_resize_period_s <= 31536000",
    )


def _decisions() -> None:
    op.create_table(
        "sizing_decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), server_default="", nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("alive", sa.Integer(), nullable=False),
        sa.Column("grow_vms", sa.Integer(), nullable=False),
        sa.Column("close_vms", sa.Integer(), nullable=False),
        sa.Column("drain_vms", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("inputs", JSONB(), nullable=False),
        sa.Column("outlook", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sizing_decisions")),
        sa.ForeignKeyConstraint(
            ["pool_id"],
            ["pools.id"],
            name=op.f("fk_sizing_decisions_pool_id"),
            ondelete="CASCADE",
        ),
    )
    op.create_check_constraint(
        op.f("ck_sizing_decisions_counts"),
        "sizing_decisions",
        "target >= 0 AND alive >= 0 AND grow_vms >= 0 AND close_vms >= 0 AND drain_vms >= 0",
    )
    op.create_index("ix_sizing_decisions_pool_id_id", "sizing_decisions", ["pool_id", "id"])


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_id", sa.BigInteger()),
        sa.Column("owner_id", sa.BigInteger()),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("warn", sa.Double()),
        sa.Column("stop", sa.Double()),
        sa.Column("spent", sa.Double(), server_default="0", nullable=False),
        sa.Column("level", sa.Text(), server_default="ok", nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True)),
        sa.Column("checked_at", sa.DateTime(timezone=True)),
        sa.Column("check_s", sa.Double(), server_default="0", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_budgets_pool_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_budgets_owner_id")),
        sa.UniqueConstraint("pool_id", name=op.f("uq_budgets_pool_id")),
        sa.UniqueConstraint("owner_id", name=op.f("uq_budgets_owner_id")),
    )
    for name, condition in {
        "subject": "num_nulls(pool_id, owner_id) = 1",
        "period": "period IN ('day', 'week', 'month', 'total')",
        "level": "level IN ('ok', 'warn', 'stop')",
        "amounts": "num_nulls(warn, stop) < 2 AND warn >= 0 AND stop >= 0 AND warn <= 1e15"
        " AND stop <= 1e15 AND warn <= stop AND spent >= 0 AND check_s >= 0",
    }.items():
        op.create_check_constraint(op.f(f"ck_budgets_{name}"), "budgets", condition)
    # Why nothing of theirs is placed or launched; kept with them, where dispatch reads anyway.
    for table in ("pools", "owners"):
        op.add_column(table, sa.Column("budget_stop", sa.Text()))
