"""Alembic's entry: migrates the connection that `remuda.models.migrate` puts in the config."""

from __future__ import annotations

from alembic import context

from remuda.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
with context.begin_transaction():
    context.run_migrations()
