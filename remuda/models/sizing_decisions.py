"""The sizing decisions of pools, one row whenever one differs from the last, with all its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

_TOLD = ("step", "policy", "target", "alive")
_LISTS = ("close_vm_ids", "drain_vm_ids", "replace_vm_ids")


def keep(connection: Connection, pool: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
    """Record a decision about a pool (its row as it was before) unless it is like the last one."""
    if _differs(pool["decision"], decision):
        _record(connection, pool["id"], decision)


def _differs(last: Mapping[str, Any] | None, decision: Mapping[str, Any]) -> bool:
    if decision["step"] == "early":
        return False
    if last is None or decision["grow_vms"] or any(decision[name] for name in _LISTS):
        return True
    return any(last.get(name) != decision[name] for name in _TOLD)


def _record(connection: Connection, pool_id: int, decision: Mapping[str, Any]) -> None:
    connection.execute(
        text(
            """INSERT INTO sizing_decisions (pool_id, step, policy, target, alive, grow_vms,
                 close_vms, drain_vms, reason, inputs, outlook)
               VALUES (:pool, :step, :policy, :target, :alive, :grow, :close, :drain, :reason,
                 CAST(:inputs AS jsonb), CAST(:outlook AS jsonb))"""
        ),
        {
            "pool": pool_id,
            **{name: decision[name] for name in (*_TOLD, "reason")},
            "grow": decision["grow_vms"],
            "close": len(decision["close_vm_ids"]) + len(decision["replace_vm_ids"]),
            "drain": len(decision["drain_vm_ids"]),
            "inputs": json.dumps(decision["inputs"], default=str),
            "outlook": json.dumps(decision["outlook"], default=str),
        },
    )


def listing(connection: Connection, pool_id: int, *, limit: int) -> list[dict[str, Any]]:
    """Return the newest decisions of a pool, oldest first."""
    found = rows(
        connection,
        """SELECT * FROM (SELECT * FROM sizing_decisions WHERE pool_id = :pool
             ORDER BY id DESC LIMIT :limit) AS d ORDER BY id""",
        pool=pool_id,
        limit=limit,
    )
    return [dict(row) for row in found]


def expire(connection: Connection, *, retention_s: float) -> None:
    """Remove what is past its retention, a bounded number of the oldest."""
    connection.execute(
        text(
            """DELETE FROM sizing_decisions WHERE id IN (
                 SELECT id FROM (SELECT id, at FROM sizing_decisions ORDER BY id LIMIT 20000) AS oldest
                 WHERE at < now() - make_interval(secs => :age))"""
        ),
        {"age": retention_s},
    )
