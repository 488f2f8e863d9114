"""Profiles: named templates that pools are made from; a pool keeps what it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import AlreadyExists, UnknownProfile
from remuda.models.database import rows


def put(
    connection: Connection,
    name: str,
    *,
    description: str,
    provider: str,
    backend: str | None,
    image: str,
    fields: Mapping[str, Any],
    replace: bool = False,
) -> None:
    """Store a profile; raises AlreadyExists for a taken name, unless it is to be replaced."""
    conflict = """UPDATE SET description = excluded.description, provider = excluded.provider,
      backend = excluded.backend, image = excluded.image, fields = excluded.fields,
      updated_at = now()"""
    done = connection.execute(
        text(
            f"""INSERT INTO pool_profiles (name, description, provider, backend, image, fields)
                VALUES (:name, :description, :provider, :backend, :image, CAST(:fields AS jsonb))
                ON CONFLICT (name) DO {conflict if replace else "NOTHING"}"""
        ),
        {
            "name": name,
            "description": description,
            "provider": provider,
            "backend": backend,
            "image": image,
            "fields": json.dumps(dict(fields)),
        },
    )
    if not done.rowcount:
        raise AlreadyExists(f"there is already a profile {name!r}", hint="or replace it")


def find(connection: Connection, name: str) -> dict[str, Any]:
    """Return a profile; raises UnknownProfile, with the names there are."""
    found = rows(connection, "SELECT * FROM pool_profiles WHERE name = :name", name=name)
    if not found:
        names = ", ".join(row["name"] for row in listing(connection)[:20]) or "none yet"
        raise UnknownProfile(f"there is no profile {name[:100]!r}", hint=f"profiles: {names}")
    return dict(found[0])


def listing(connection: Connection) -> list[dict[str, Any]]:
    """Return the profiles by name, each with the number of open `pools` that were made from it."""
    found = rows(
        connection,
        """SELECT f.*, (SELECT count(*) FROM pools p WHERE p.profile = f.name
             AND p.state NOT IN ('CLOSED', 'PENDING_DELETE'))::int AS pools
           FROM pool_profiles f ORDER BY f.name""",
    )
    return [dict(row) for row in found]


def delete(connection: Connection, name: str) -> None:
    """Remove a profile; pools made from it stay as they are. Raises UnknownProfile."""
    done = connection.execute(text("DELETE FROM pool_profiles WHERE name = :name"), {"name": name})
    if not done.rowcount:
        find(connection, name)
