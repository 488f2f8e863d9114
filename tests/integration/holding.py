"""Leases taken and given back in a transaction of the test's own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from remuda.models import leases


def lease(connection: Connection, *pools: int, **more: Any) -> dict[str, Any] | None:
    wanted = {"owner": "bob", "sandbox": "", "slots": 1, "ttl_s": 60.0, **more}
    return leases.acquire(connection, pool_ids=pools, **wanted)


def hold(connection: Connection, *pools: int, **more: Any) -> dict[str, Any]:
    found = lease(connection, *pools, **more)
    assert found is not None
    return found


def free(connection: Connection, lease: dict[str, Any]) -> leases.Released:
    return leases.release(connection, lease["id"], lease["token"])
