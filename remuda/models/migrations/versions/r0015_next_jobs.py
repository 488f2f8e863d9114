"""Have an index of waiting jobs by whose turn comes next, for whoever looks at the first of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Apply the revision."""
    op.create_index(
        "ix_jobs_next",
        "jobs",
        [sa.text("(- priority)"), sa.text("(NOT displaced)"), "id"],
        postgresql_include=["pool_id"],
        postgresql_where=sa.text("state = 'NEW' AND unmet = 0 AND NOT held"),
    )
