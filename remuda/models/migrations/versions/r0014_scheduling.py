"""Give pools a scheduling type, what they wait for from preemptible ones, and since when they pause."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_REASONS = (
    "reason IN ('OK', 'NONZERO', 'SIGNALLED', 'WALLTIME', 'OUT_OF_MEMORY', 'CANCELLED', 'LOST',"
    " 'STAGING', 'SUBMISSION', 'DEPENDENCY', 'QUEUE_TIMEOUT', 'PREEMPTED')"
)


def _check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    """Apply the revision."""
    for column in (
        sa.Column("scheduling_type", sa.Text(), server_default="on_demand", nullable=False),
        sa.Column("reserved_group", sa.Text()),
        sa.Column("short_slots", sa.Integer(), server_default="0", nullable=False),
        sa.Column("short_since", sa.DateTime(timezone=True)),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("pools", column)
    _check(
        "pools",
        "scheduling",
        "scheduling_type IN ('flex', 'on_demand', 'reserved')"
        " AND (scheduling_type = 'reserved') = (reserved_group IS NOT NULL)"
        " AND length(reserved_group) BETWEEN 1 AND 63",
    )
    _check(
        "pools",
        "short",
        "short_slots >= 0 AND (short_slots > 0) = (short_since IS NOT NULL)"
        " AND (short_slots = 0 OR scheduling_type <> 'flex')",
    )
    # Of a pause under way nobody knows any more when it began.
    op.execute("UPDATE pools SET paused_at = now() WHERE paused_until IS NOT NULL")
    op.add_column("vms", sa.Column("preempted_for", sa.Text()))
    _check(
        "vms", "preempted", "preempted_for IS NULL OR (draining AND interruption_at IS NOT NULL)"
    )
    for table in ("jobs", "attempts"):
        op.drop_constraint(f"ck_{table}_reason", table)
        _check(table, "reason", _REASONS)
