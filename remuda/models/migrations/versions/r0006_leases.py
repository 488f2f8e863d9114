"""Give leases tags, limits and reasons to wait."""

from __future__ import annotations

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply the revision."""
