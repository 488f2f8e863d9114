"""Hosts that several pools list: one that is reserved to a group is so for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import BadInput
from remuda.models.database import rows
from remuda.shelves import place_of, shelf_of

_LOCK = 0x52454D48  # "REMH": of two pools made at once the second sees the first's hosts


def check_groups(
    connection: Connection, pool: Mapping[str, Any], *, pool_id: int | None = None
) -> None:
    """Refuse a pool {provider, settings, offers} with a host that another reserves otherwise.

    `pool_id`: its own. Raises BadInput naming host and pool.
    """
    hosts = shelf_of(pool["provider"], pool["settings"], pool["offers"])
    if not hosts:
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    groups = {place_of(host): host.group for host in hosts}
    for other in others(connection, pool_id):
        try:
            theirs = shelf_of(other["provider"], other["settings"], other["offers"])
        except BadInput:  # of settings that nobody checked: it has no hosts then
            continue
        for host in theirs:
            mine = groups.get(place_of(host), host.group)
            if mine != host.group:
                here, there = (f"group {g}" if g else "no group" for g in (mine, host.group))
                raise BadInput(
                    f"hosts: {host.address} has {here} here, and {there} in pool {other['name']}",
                    hint="a host that is reserved to a group is so in all pools",
                )


def others(connection: Connection, pool_id: int | None) -> list[Mapping[str, Any]]:
    """Return the pools that have not ended, but for this one, and may list hosts."""
    return list(
        rows(
            connection,
            """SELECT id, name, provider, settings, offers FROM pools
               WHERE state NOT IN ('CLOSED', 'PENDING_DELETE') AND id IS DISTINCT FROM :pool
                 AND (provider = 'static' OR offers @> '[{"provider": "static"}]')""",
            pool=pool_id,
        )
    )
