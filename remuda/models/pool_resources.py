"""The files every VM of a pool has: which, since which version, and which version a VM has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import BadInput, Refused, UnknownPool
from remuda.models.database import rows
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL, PoolState

MAX_RESOURCES = 10_000
_OPEN = f"('UNSUBMITTED', 'FAILURE', {sql_list(OPEN_POOL)})"


# What is the same file still keeps its version: VMs that have it are sent nothing.
_ADD = text("""
    INSERT INTO pool_resources AS r (pool_id, name, url, sha256, size, mode, version)
    SELECT :pool, n.name, n.url, n.sha256, n.size, n.mode, :version
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
      AS n(name text, url text, sha256 text, size bigint, mode int)
    ON CONFLICT (pool_id, name) DO UPDATE SET url = excluded.url, sha256 = excluded.sha256,
      size = excluded.size, mode = excluded.mode, version = excluded.version
    WHERE (r.url, r.sha256, r.mode) IS DISTINCT FROM (excluded.url, excluded.sha256, excluded.mode)
       OR excluded.sha256 = ''
    RETURNING name
""")


def replace(connection: Connection, pool_id: int, files: Sequence[Mapping[str, Any]]) -> None:
    """Make these the resources of a pool that has no VMs yet; its row is locked."""
    connection.execute(text("DELETE FROM pool_resources WHERE pool_id = :id"), {"id": pool_id})
    _add(connection, pool_id, files, version=1)


def add(connection: Connection, pool_id: int, files: Sequence[Mapping[str, Any]]) -> int:
    """Add resources to a pool, in place of those of the same names; return how many are new.

    What is at URLs is looked at again by every VM, that of earlier ones too. Nothing is taken
    away. Raises UnknownPool, Refused when it has ended, BadInput for too many.
    """
    found = rows(
        connection,
        "SELECT name, state, resources_version FROM pools WHERE id = :id FOR NO KEY UPDATE",
        id=pool_id,
    )
    if not found:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    state = found[0]["state"]
    if state in (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE):
        raise Refused(f"pool {found[0]['name']} is {state}: it gets no more resources")
    version = found[0]["resources_version"] + 1
    count = _add(connection, pool_id, files, version=version)
    again = connection.execute(
        text(
            """UPDATE pool_resources SET version = :version
               WHERE pool_id = :id AND sha256 = '' AND version < :version"""
        ),
        {"id": pool_id, "version": version},
    )
    if count or again.rowcount:
        connection.execute(
            text(
                """UPDATE pools SET resources_version = :version, updated_at = clock_timestamp()
                   WHERE id = :id"""
            ),
            {"id": pool_id, "version": version},
        )
        connection.execute(text("SELECT pg_notify('remuda_wake', 'resources')"))
    return count


def listing(connection: Connection, pool_id: int, *, newer_than: int = 0) -> list[dict[str, Any]]:
    """Return the resources of a pool by name: (name, url, sha256, size, mode, version)."""
    found = rows(
        connection,
        """SELECT name, url, sha256, size, mode, version FROM pool_resources
           WHERE pool_id = :id AND version > :version ORDER BY name""",
        id=pool_id,
        version=newer_than,
    )
    return [dict(row) for row in found]


def outdated(connection: Connection, *, limit: int = 1000) -> list[int]:
    """Return the running VMs that lack resources of their pools."""
    found = rows(
        connection,
        f"""SELECT v.id FROM pools p JOIN vms v ON v.pool_id = p.id
            WHERE p.resources_version > 0 AND p.state IN {_OPEN} AND v.state = 'RUNNING'
              AND v.resources_version < p.resources_version ORDER BY v.id LIMIT :limit""",
        limit=limit,
    )
    return [row["id"] for row in found]


def wanted_by(connection: Connection, vm_id: int) -> tuple[int, list[dict[str, Any]]]:
    """Return the version of a VM's pool, and the resources the VM lacks of it."""
    found = rows(
        connection,
        """SELECT p.id, p.resources_version, v.resources_version AS has
           FROM vms v JOIN pools p ON p.id = v.pool_id WHERE v.id = :vm""",
        vm=vm_id,
    )
    if not found or found[0]["has"] >= found[0]["resources_version"]:
        return 0, []
    lacking = listing(connection, found[0]["id"], newer_than=found[0]["has"])
    return found[0]["resources_version"], lacking


def note_synchronized(connection: Connection, vm_id: int, version: int) -> None:
    """Record that a VM has all resources up to a version."""
    connection.execute(
        text(
            """UPDATE vms SET resources_version = greatest(resources_version, :version)
               WHERE id = :vm"""
        ),
        {"vm": vm_id, "version": version},
    )


def _add(
    connection: Connection, pool_id: int, files: Sequence[Mapping[str, Any]], *, version: int
) -> int:
    if not files:
        return 0
    given = {"pool": pool_id, "version": version, "rows": json.dumps([dict(f) for f in files])}
    count = len(connection.execute(_ADD, given).all())
    total = connection.scalar(
        text("SELECT count(*) FROM pool_resources WHERE pool_id = :id"), {"id": pool_id}
    )
    if int(total) > MAX_RESOURCES:
        raise BadInput(f"resources: {total} files, at most {MAX_RESOURCES} are possible")
    return count
