"""Give VMs health checks, ages and a ledger of machines that nobody owns."""

from __future__ import annotations

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply the revision."""
