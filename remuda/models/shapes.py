"""How the waiting jobs are found: the first of each shape, then the next of those that fit somewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from remuda.models.budgets import STOP
from remuda.models.deadlines import MAYBE_OVERDUE
from remuda.models.jobs import READY

SEVERAL = 0  # in place of a pool: of the jobs that may go to more than one


@dataclass(frozen=True, slots=True)
class Head:
    """The first job of a shape: what it asks for, and how long it could have been placed."""

    id: int
    pool_id: int
    pool_ids: list[int] | None
    owner_id: int
    shape: int
    cores: int
    memory_bytes: int
    gpus: int
    architecture: str | None
    constraints: dict[str, Any] | None
    sandbox: str
    submitted_at: datetime
    array_id: int | None
    queue_id: int | None
    priority: int
    displaced: bool
    waited_s: float
    expected_wall_s: float | None

    @property
    def is_sure(self) -> bool:
        """Whether it is among the next jobs as far as its row tells: no pause, no array's limit."""
        return self.array_id is None and self.waited_s >= 0

    @property
    def source(self) -> int:
        """The pool whose jobs it is among: SEVERAL if it may go to more than one."""
        return SEVERAL if self.pool_ids else self.pool_id


# The first job of each shape that waits: of jobs for one pool, by pool, then of those for several. Each
# step of the recursion is one look into the index.
_COLUMNS = Head.__slots__[:-1]
_HEAD = ", ".join(
    {
        "memory_bytes": "coalesce(j.memory_bytes, 0) AS memory_bytes",
        "waited_s": "extract(epoch FROM now() - greatest(j.submitted_at, j.not_before))::float8"
        " AS waited_s",
    }.get(name, f"j.{name}")
    for name in _COLUMNS
)
_STEPS = """
    SELECT n.* FROM (
      WITH RECURSIVE heads AS (
        (SELECT {head} FROM jobs j WHERE {ready} AND {which}
         ORDER BY j.owner_id, j.shape LIMIT 1)
        UNION ALL
        SELECT n.* FROM heads h CROSS JOIN LATERAL (
          SELECT {head} FROM jobs j
          WHERE {ready} AND {which} AND (j.owner_id, j.shape) > (h.owner_id, h.shape)
          ORDER BY j.owner_id, j.shape LIMIT 1) AS n
      ) SELECT * FROM heads) AS n
"""
SHAPES = (
    f"SELECT {', '.join(f'n.{name}' for name in _COLUMNS)}, CASE WHEN n.array_id IS NULL THEN o.mean_wall_s"
    " ELSE (SELECT a.mean_wall_s FROM arrays a WHERE a.id = n.array_id) END AS expected_wall_s"
    " FROM (SELECT n.* FROM unnest(CAST(:pools AS bigint[])) AS p(id) CROSS JOIN LATERAL ("
    + _STEPS.format(head=_HEAD, ready=READY, which="j.pool_id = p.id")
    + ") AS n WHERE n.pool_ids IS NULL UNION ALL"
    + _STEPS.format(head=_HEAD, ready=READY, which="j.pool_ids IS NOT NULL")
    + "WHERE n.pool_ids && CAST(:pools AS bigint[])) AS n"
    f" JOIN owners o ON o.id = n.owner_id AND {STOP} IS NULL"
)

# The next jobs of each owner in a pool, of its shapes that fit somewhere (`free`: into free slots, else
# only ahead; `most`: so many of each at the most).
_JOBS = f"""
    SELECT c.* FROM jsonb_to_recordset(CAST(:turns AS jsonb))
        AS t(pool_id bigint, owner_id bigint, most int, shapes jsonb)
    JOIN owners o ON o.id = t.owner_id CROSS JOIN LATERAL (
      SELECT c.* FROM jsonb_to_recordset(t.shapes) AS f(shape bigint, most int, free boolean)
      CROSS JOIN LATERAL (
        SELECT j.id, j.pool_id, j.pool_ids, j.owner_id, j.array_id, j.priority, j.displaced,
               j.submitted_at, j.cores, coalesce(j.memory_bytes, 0) AS memory_bytes, j.gpus,
               j.architecture, j.constraints, j.sandbox,
               CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END
                 AS expected_wall_s, {MAYBE_OVERDUE} AS late
        FROM jobs j LEFT JOIN arrays a ON a.id = j.array_id
        WHERE {READY} AND {{which}} AND j.owner_id = t.owner_id AND j.shape = f.shape
          AND (j.not_before IS NULL OR j.not_before <= now())
          AND (j.array_id IS NULL OR j.array_id <> ALL(:full_arrays))
          AND (f.free OR CASE WHEN j.array_id IS NULL THEN o.mean_wall_s
                              ELSE a.mean_wall_s END <= :horizon)
        ORDER BY j.priority DESC, j.displaced DESC, j.id LIMIT f.most) AS c
      ORDER BY c.priority DESC, c.displaced DESC, c.id LIMIT t.most) AS c
"""
JOBS_OF_ONE = text(_JOBS.format(which="j.pool_id = t.pool_id"))
JOBS_OF_SEVERAL = text(_JOBS.format(which="j.pool_ids IS NOT NULL"))
