"""Secrets: values kept encrypted, by owner and name; which of them the jobs of a pool are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    text,
)

from remuda.errors import BadInput, Refused, UnknownSecret
from remuda.models.database import rows


def put(connection: Connection, owner_id: int, name: str, encrypt: Callable[[], bytes]) -> None:
    """Store a secret, in place of an older one of its name."""
    # Nothing is encrypted with keys that a rotation is about to drop: it waits for us, or we for it.
    connection.execute(text("LOCK TABLE secrets IN ROW EXCLUSIVE MODE"))
    connection.execute(
        text(
            """INSERT INTO secrets (owner_id, name, stored) VALUES (:owner, :name, :stored)
               ON CONFLICT (owner_id, name)
               DO UPDATE SET stored = excluded.stored, updated_at = now()"""
        ),
        {"owner": owner_id, "name": name, "stored": encrypt()},
    )


def listing(connection: Connection, owner: str) -> list[dict[str, Any]]:
    """Return an owner's secrets by name, without their values; `pools`: open ones that name it."""
    found = rows(
        connection,
        """SELECT s.name, s.created_at, s.updated_at, (
             SELECT coalesce(jsonb_agg(p.name ORDER BY p.name), '[]') FROM pools p
             WHERE p.owner_id = s.owner_id AND p.state NOT IN ('CLOSED', 'PENDING_DELETE')
               AND (p.secrets -> 'names' ? s.name OR EXISTS (
                 SELECT FROM jsonb_array_elements_text(p.secrets -> 'prefixes') AS prefix
                 WHERE starts_with(s.name, prefix)))) AS pools
           FROM secrets s JOIN owners o ON o.id = s.owner_id WHERE o.name = :owner ORDER BY s.name""",
        owner=owner,
    )
    return [dict(row) for row in found]


def delete(connection: Connection, owner: str, name: str) -> None:
    """Remove a secret; raises UnknownSecret, Refused while an open pool names it."""
    found = rows(
        connection,
        """SELECT s.id, s.owner_id FROM secrets s JOIN owners o ON o.id = s.owner_id
           WHERE o.name = :owner AND s.name = :name FOR UPDATE OF s""",
        owner=owner,
        name=name,
    )
    if not found:
        raise UnknownSecret(f"owner {owner} has no secret {name[:200]!r}")
    using = rows(
        connection,
        """SELECT name FROM pools WHERE owner_id = :owner AND secrets -> 'names' ? :name
             AND state NOT IN ('CLOSED', 'PENDING_DELETE') ORDER BY name LIMIT 5""",
        owner=found[0]["owner_id"],
        name=name,
    )
    if using:
        named = ", ".join(row["name"] for row in using)
        raise Refused(
            f"secret {name} is given to the jobs of {named}", hint="`remuda pool set` first"
        )
    connection.execute(text("DELETE FROM secrets WHERE id = :id"), {"id": found[0]["id"]})


def check_names(connection: Connection, owner_id: int, names: Sequence[str]) -> None:
    """Refuse names of which the owner has no secret; raises BadInput."""
    if not names:
        return
    found = rows(
        connection,
        # They stay until the transaction is over: who deletes one waits, and sees the pool.
        "SELECT name FROM secrets WHERE owner_id = :owner AND name = ANY(:names) FOR SHARE",
        owner=owner_id,
        names=list(names),
    )
    missing = sorted(set(names) - {row["name"] for row in found})
    if missing:
        raise BadInput(
            f"secrets: there is no secret {', '.join(missing[:5])}",
            hint="`remuda secret put NAME` stores one; its owner is that of the pool",
        )


def of_pool(connection: Connection, pool_id: int) -> list[Mapping[str, Any]]:
    """Return (owner, name, stored) of the secrets that the jobs of a pool are given."""
    return list(
        rows(
            connection,
            """SELECT o.name AS owner, s.name, s.stored
               FROM pools p JOIN owners o ON o.id = p.owner_id JOIN secrets s ON s.owner_id = o.id
               WHERE p.id = :pool AND (p.secrets -> 'names' ? s.name OR EXISTS (
                 SELECT FROM jsonb_array_elements_text(p.secrets -> 'prefixes') AS prefix
                 WHERE starts_with(s.name, prefix)))
               ORDER BY s.name""",
            pool=pool_id,
        )
    )


def reencrypt(
    connection: Connection, change: Callable[[str, str, bytes], bytes], prepare: Callable[[], None]
) -> int:
    """Store all secrets anew, nobody storing any meanwhile; return how many there are.

    `prepare` is called when nobody stores any more, `change` with (owner, name, stored) of each.
    """
    connection.execute(text("LOCK TABLE secrets IN SHARE ROW EXCLUSIVE MODE"))
    prepare()
    found = rows(
        connection,
        """SELECT s.id, o.name AS owner, s.name, s.stored FROM secrets s
           JOIN owners o ON o.id = s.owner_id ORDER BY s.id""",
    )
    anew = [
        {"id": row["id"], "stored": change(row["owner"], row["name"], bytes(row["stored"]))}
        for row in found
    ]
    if anew:
        connection.execute(text("UPDATE secrets SET stored = :stored WHERE id = :id"), anew)
    return len(anew)
