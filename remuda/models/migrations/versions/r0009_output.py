"""Keep the output of attempts whose runner was killed."""

from __future__ import annotations

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply the revision."""
