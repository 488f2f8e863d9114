"""Give heartbeats what VMs moved, and images their validation."""

from __future__ import annotations

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply the revision."""
