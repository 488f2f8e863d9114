"""Keep what was cut out of long outputs, and find the next job that is to be tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply the revision."""
    for name in ("cut_from", "cut_to", "written_bytes"):
        op.add_column("attempt_outputs", sa.Column(name, sa.BigInteger()))
    op.create_check_constraint(
        op.f("ck_attempt_outputs_cut"),
        "attempt_outputs",
        "num_nulls(cut_from, cut_to, written_bytes) = 3"
        " OR (0 <= cut_from AND cut_from <= cut_to AND cut_to <= written_bytes)",
    )
    op.add_column("output_chunks", sa.Column("cut_from", sa.BigInteger()))
    op.create_index(
        "ix_jobs_not_before",
        "jobs",
        ["not_before"],
        postgresql_where=sa.text("state = 'NEW' AND not_before IS NOT NULL"),
    )
