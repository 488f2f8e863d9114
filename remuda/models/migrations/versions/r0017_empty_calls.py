"""Count the calls for a VM that certainly left no machine, so that one that never was ends at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("vms", sa.Column("empty_calls", sa.Integer(), server_default="0", nullable=False))
