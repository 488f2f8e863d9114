"""Read-only questions about one pool: what is wrong with it, what it has used, which VM is meant."""

from __future__ import annotations

from sqlalchemy import Connection, text

from remuda.models.database import rows


def errors(connection: Connection, pool_id: int, *, limit: int = 100) -> list[str]:
    """Return what is wrong with a pool now, and with its VMs that are there, the latest first."""
    found = rows(
        connection,
        """SELECT said FROM (
             SELECT 0 AS of_vm, id, message AS said FROM pools WHERE id = :pool
             UNION ALL SELECT 1, id, frozen_reason FROM pools WHERE id = :pool
             UNION ALL SELECT 2, id, 'VM ' || name || ': ' || coalesce(error, check_error)
               FROM vms WHERE pool_id = :pool AND state <> 'HALTED') AS told
           WHERE said IS NOT NULL ORDER BY of_vm, id DESC LIMIT :limit""",
        pool=pool_id,
        limit=limit,
    )
    return [row["said"] for row in found]


def cpu_s(connection: Connection, pool_id: int) -> float:
    """Return the CPU seconds that attempts on a pool's VMs have used."""
    found = connection.scalar(
        text(
            """SELECT coalesce(sum(coalesce(a.user_s, 0) + coalesce(a.system_s, 0)), 0)
               FROM attempts a JOIN vms v ON v.id = a.vm_id WHERE v.pool_id = :pool"""
        ),
        {"pool": pool_id},
    )
    return float(found)


def vm_id_of(connection: Connection, pool_id: int, vm: int | str) -> int | None:
    """Return the id of a VM of a pool, given by id or name, the latest of it; None: none is."""
    if "\0" in str(vm) or (not isinstance(vm, str) and not 0 < vm < 2**63):
        return None
    column = "name" if isinstance(vm, str) else "id"
    found = rows(
        connection,
        f"SELECT id FROM vms WHERE pool_id = :pool AND {column} = :vm ORDER BY id DESC LIMIT 1",
        pool=pool_id,
        vm=vm,
    )
    return int(found[0]["id"]) if found else None
