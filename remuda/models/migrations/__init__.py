"""Alembic's environment and the revisions of Remuda's schema."""
