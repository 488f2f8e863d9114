"""Create events and transitions, and the triggers that keep both true: see r0003_triggers.sql."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

_OPEN = (
    "SUBMITTED",
    "PARTIALLY_DISPATCHED",
    "FULLY_DISPATCHED",
    "PARTIALLY_EXECUTING",
    "FULLY_EXECUTING",
)

# Frozen as of this revision; a test compares the database's table with remuda.models.states.
TRANSITIONS = {
    ("job", "NEW"): "SUBMITTED TERMINATED",
    ("job", "SUBMITTED"): "RUNNING STOPPED UNKNOWN NEW TERMINATING TERMINATED",
    ("job", "RUNNING"): "STOPPED UNKNOWN NEW TERMINATING TERMINATED",
    ("job", "STOPPED"): "RUNNING UNKNOWN NEW TERMINATING TERMINATED",
    ("job", "UNKNOWN"): "SUBMITTED RUNNING STOPPED NEW TERMINATING TERMINATED",
    ("job", "TERMINATING"): "NEW TERMINATED",
    ("attempt", "PLACED"): "STARTED LOST CANCELLED FAILED",
    ("attempt", "STARTED"): "EXITED LOST CANCELLED FAILED",
    ("attempt", "EXITED"): "COLLECTED LOST FAILED",
    ("vm", "NEW"): "SUBMITTED STOPPING ERROR",
    ("vm", "SUBMITTED"): "WAIT_SSH_CONTEXT RUNNING STOPPING STALLED ERROR",
    ("vm", "WAIT_SSH_CONTEXT"): "CONTEXTUALIZING STOPPING STALLED ERROR",
    ("vm", "CONTEXTUALIZING"): "RUNNING STOPPING STALLED ERROR",
    ("vm", "RUNNING"): "STOPPING STALLED ERROR",
    ("vm", "STALLED"): "RUNNING STOPPING ERROR",
    ("vm", "STOPPING"): "HALTED STALLED ERROR",
    ("vm", "ERROR"): "STOPPING",
    ("image", "NEW"): "VALIDATED ERROR",
    ("image", "VALIDATED"): "ERROR",
    ("image", "ERROR"): "NEW",
    ("pool", "UNSUBMITTED"): "SUBMITTED CLOSED PENDING_DELETE",
    ("pool", "FAILURE"): "SUBMITTED CLOSING",
    ("pool", "CLOSING"): "CLOSED",
    ("pool", "CLOSED"): "PENDING_DELETE",
    **{
        ("pool", state): " ".join(
            [*(other for other in _OPEN if other != state), "CLOSING FAILURE"]
        )
        for state in _OPEN
    },
}


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("from_state", sa.Text()),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("detail", JSONB()),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_kind_subject_id", "events", ["kind", "subject_id", "id"])
    transitions = op.create_table(
        "transitions",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("old", sa.Text(), nullable=False),
        sa.Column("new", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "old", "new", name="pk_transitions"),
    )
    op.bulk_insert(
        transitions,
        [
            {"kind": kind, "old": old, "new": new}
            for (kind, old), targets in TRANSITIONS.items()
            for new in targets.split()
        ],
    )
    # The driver's own cursor: the file holds many statements and percent signs.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(Path(__file__).with_name("r0003_triggers.sql").read_text("utf-8"))
