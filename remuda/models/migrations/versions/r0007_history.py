"""Give heartbeats what VMs moved, images their validation, and looks into the past their indexes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_APPEND_ONLY = """
CREATE FUNCTION remuda_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME
    USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'append_only';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE ON heartbeats
  FOR EACH STATEMENT EXECUTE FUNCTION remuda_append_only();
"""


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def _brin(table: str, column: str) -> None:
    # Written in the order of time, so a page's range is narrow, and costs next to nothing to keep.
    op.create_index(
        f"ix_{table}_{column}",
        table,
        [column],
        postgresql_using="brin",
        postgresql_with={"autosummarize": True, "pages_per_range": 32},
    )


def upgrade() -> None:
    """Apply the revision."""
    for table in ("vms", "heartbeats"):
        op.add_column(table, sa.Column("cores", sa.Integer()))
        op.add_column(table, _count("transferred_files"))
        op.add_column(table, _count("transferred_bytes"))
    op.add_column("vms", sa.Column("uptime_s", sa.Double()))
    op.add_column(
        "heartbeats", sa.Column("queued_jobs", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("heartbeats", sa.Column("state", sa.Text()))
    op.create_check_constraint(
        op.f("ck_heartbeats_transferred"),
        "heartbeats",
        "transferred_files >= 0 AND transferred_bytes >= 0",
    )
    op.add_column("images", sa.Column("validated_at", sa.DateTime(timezone=True)))
    op.add_column(
        "images",
        sa.Column(
            "state_changed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
    )
    op.drop_index("ix_heartbeats_at", "heartbeats")
    _brin("heartbeats", "at")
    for table in ("jobs", "attempts"):
        _brin(table, "ended_at")
    op.execute(sa.text(_APPEND_ONLY))
