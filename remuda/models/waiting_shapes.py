"""What waits for pools, counted by what it asks for: one query for all pools that are looked at.

Jobs of one owner that ask for the same have one shape (`jobs.shape`): they are counted in the index of
waiting jobs, and one of them tells what all ask for. Where arrays have limits their jobs are told
apart by array, too, and so all are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from remuda.models.database import rows
from remuda.models.sql import READY

MOST_SHAPES = 200  # of a pool; of more, the rest counts by its slots alone


@dataclass(frozen=True, slots=True)
class Look:
    """A pool, what a VM of it has at most, and whether it matters there whose a job is."""

    pool_id: int
    slots: int
    memory_bytes: int | None
    gpus: int
    by_owner: bool
    by_sandbox: bool


_COLUMNS = (
    "cores, memory_bytes, gpus, architecture, constraints, owner_id, sandbox, pool_ids, array_id"
)
_OF_READY = ", ".join(f"r.{name}" for name in _COLUMNS.split(", "))
_ASKED = """j.cores, coalesce(j.memory_bytes, 0) AS memory_bytes, j.gpus, j.architecture,
             j.constraints"""
_WHOSE = """CASE WHEN p.by_owner OR {of}.owner_id = ANY(:with_quota) THEN {of}.owner_id END AS owner_id"""
_SANDBOX = "CASE WHEN p.by_sandbox THEN {of}.sandbox ELSE '' END AS sandbox"
_LOOKS = """
    looks AS (
      SELECT * FROM jsonb_to_recordset(CAST(:looks AS jsonb)) AS p(
        pool_id bigint, slots int, memory_bytes bigint, gpus int, by_owner bool, by_sandbox bool)
    )"""

# Of those that pause before their next attempt the index knows nothing: they are few, and taken off.
_COUNTED = f"""
    groups AS MATERIALIZED (
      SELECT j.pool_id, j.owner_id, j.shape, count(*) AS count FROM jobs j
      WHERE {READY} AND j.pool_id = ANY(:pools) GROUP BY 1, 2, 3
    ), paused AS MATERIALIZED (
      SELECT j.pool_id, j.owner_id, j.shape, count(*) AS count FROM jobs j
      WHERE {READY} AND j.not_before IS NOT NULL AND j.not_before > now()
        AND j.pool_id = ANY(:pools) GROUP BY 1, 2, 3
    ), single AS (
      SELECT p.pool_id, h.cores, h.memory_bytes, h.gpus, h.architecture, h.constraints,
             {_WHOSE.format(of="g")}, {_SANDBOX.format(of="h")}, h.pool_ids,
             CAST(NULL AS bigint) AS array_id, g.count - coalesce(b.count, 0) AS count
      FROM groups g JOIN looks p ON p.pool_id = g.pool_id CROSS JOIN LATERAL (
        SELECT {_ASKED}, j.sandbox, j.pool_ids FROM jobs j
        WHERE {READY} AND j.pool_id = g.pool_id AND j.owner_id = g.owner_id AND j.shape = g.shape
        LIMIT 1) AS h
      LEFT JOIN paused b ON (b.pool_id, b.owner_id, b.shape) = (g.pool_id, g.owner_id, g.shape)
      WHERE h.pool_ids IS NULL AND g.owner_id <> ALL(:stopped)
    )"""

_DIRECTLY = f"""
      SELECT p.pool_id, {_ASKED}, {_WHOSE.format(of="j")}, {_SANDBOX.format(of="j")}, j.pool_ids,
             CASE WHEN j.array_id = ANY(:limited) THEN j.array_id END AS array_id, 1 AS count
      FROM looks p JOIN jobs j ON {{which}}
      WHERE {READY} AND (j.not_before IS NULL OR j.not_before <= now())
        AND j.owner_id <> ALL(:stopped)"""

_ONE_BY_ONE = f"""
    single AS ({_DIRECTLY.format(which="j.pool_id = p.pool_id AND j.pool_ids IS NULL")})"""

# Grouped by what sizing can tell apart: whose a job is only where the pool isolates or a quota limits
# its owner, its array only where that has a limit.
_SHAPES = f"""
    WITH {_LOOKS}, {{single}}, several AS (
      {_DIRECTLY.format(which="j.pool_ids IS NOT NULL AND j.pool_ids @> ARRAY[p.pool_id]")}
    ), ready AS (SELECT * FROM single UNION ALL SELECT * FROM several), shapes AS (
      SELECT r.pool_id, sum(r.count)::bigint AS count, {_OF_READY}
      FROM ready r JOIN looks p USING (pool_id)
      WHERE r.cores <= p.slots AND r.gpus <= p.gpus
        AND r.memory_bytes <= coalesce(p.memory_bytes, 9223372036854775807)
      GROUP BY r.pool_id, {_OF_READY}
    ), ranked AS (
      SELECT *, (sum(count * cores) OVER (PARTITION BY pool_id))::bigint AS all_slots,
             row_number() OVER (PARTITION BY pool_id ORDER BY count DESC, {_COLUMNS}) AS place
      FROM shapes WHERE count > 0
    )
    SELECT * FROM ranked WHERE place <= {MOST_SHAPES} ORDER BY pool_id, place
"""

# The pools for which anything waits: what is asked of the others can be spared, planning it above all.
_ANY = f"""
    SELECT p.id FROM unnest(CAST(:pools AS bigint[])) AS p(id)
    WHERE EXISTS (SELECT FROM jobs j WHERE {READY} AND j.pool_id = p.id)
       OR EXISTS (SELECT FROM jobs j WHERE {READY} AND j.pool_ids IS NOT NULL)
"""


def waiting_shapes(
    connection: Connection,
    looks: Iterable[Look],
    *,
    with_quota: Sequence[int],
    limited: Collection[int],
    stopped: Sequence[int],
) -> dict[int, list[Mapping[str, Any]]]:
    """Return by pool what waits and would fit a new VM, the most frequent first.

    `count` jobs in each row, and in all of the pool `all_slots`. Of the owners `with_quota` and the
    `limited` arrays it is told whose they are; the `stopped` owners' are left out.
    """
    wanted = {look.pool_id: asdict(look) for look in looks}
    found: dict[int, list[Mapping[str, Any]]] = {pool_id: [] for pool_id in wanted}
    waited = [row["id"] for row in rows(connection, _ANY, pools=list(wanted))] if wanted else []
    if not waited:
        return found
    values: dict[str, Any] = {
        "looks": json.dumps([wanted[pool_id] for pool_id in waited]),
        "with_quota": list(with_quota),
        "limited": sorted(limited),
        "stopped": list(stopped),
    }
    if not limited:
        values["pools"] = waited
    statement = _SHAPES.format(single=_ONE_BY_ONE if limited else _COUNTED)
    for row in rows(connection, statement, **values):
        found[row["pool_id"]].append(row)
    return found
