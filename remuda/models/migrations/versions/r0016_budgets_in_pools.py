"""Let an owner have a budget in a pool, which says itself why nothing of the owner is placed there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Apply the revision."""
    op.drop_constraint("ck_budgets_subject", "budgets")
    op.drop_constraint("uq_budgets_pool_id", "budgets")
    op.drop_constraint("uq_budgets_owner_id", "budgets")
    op.add_column("budgets", sa.Column("stopped", sa.Text()))
    op.create_check_constraint(
        op.f("ck_budgets_subject"), "budgets", "num_nulls(pool_id, owner_id) < 2"
    )
    op.create_check_constraint(
        op.f("ck_budgets_stopped"), "budgets", "stopped IS NULL OR num_nulls(pool_id, owner_id) = 0"
    )
    op.create_index(
        "uq_budgets_subject",
        "budgets",
        [sa.text("coalesce(pool_id, 0::bigint)"), sa.text("coalesce(owner_id, 0::bigint)")],
        unique=True,
    )
    op.create_index(
        "ix_budgets_stopped",
        "budgets",
        ["pool_id", "owner_id"],
        postgresql_where=sa.text("stopped IS NOT NULL"),
    )
