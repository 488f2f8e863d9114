"""How the waiting jobs are found: the first of each shape, then the next of those that fit somewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text

from remuda.models.budgets import STOP
from remuda.models.deadlines import MAYBE_OVERDUE
from remuda.models.sql import READY
from remuda.pending import SEVERAL, PendingJob


class Head(NamedTuple):
    """The first job of a shape: what it asks for, and how long it could have been placed.

    The fields before `shape` are a PendingJob's. `late`: it may be over its deadline.
    """

    id: int
    pool_id: int
    owner_id: int
    priority: int
    submitted_at: datetime
    cores: int
    memory_bytes: int
    expected_wall_s: float | None
    gpus: int
    architecture: str | None
    constraints: dict[str, Any] | None
    sandbox: str
    array_id: int | None
    pool_ids: list[int] | None
    displaced: bool
    shape: int
    queue_id: int | None
    waited_s: float
    late: bool

    @property
    def is_sure(self) -> bool:
        """Whether it is among the next jobs as far as its row tells: no pause, no array's limit."""
        return self.array_id is None and self.waited_s >= 0 and not self.late

    @property
    def source(self) -> int:
        """The pool whose jobs it is among: SEVERAL if it may go to more than one."""
        return SEVERAL if self.pool_ids else self.pool_id

    def job(self) -> PendingJob:
        """Return it as placement sees it."""
        fields: tuple[Any, ...] = self[: len(_OF_JOB)]
        return PendingJob(*fields)


_OF_JOB = PendingJob._fields[:-1]  # all but `reserves`

# The first job of each shape that waits: of jobs for one pool, by pool, then of those for several. Each
# step of the recursion is one look into the index.
_TOLD = {
    "memory_bytes": "coalesce(j.memory_bytes, 0) AS memory_bytes",
    "waited_s": "extract(epoch FROM now() - greatest(j.submitted_at, j.not_before))::float8 AS waited_s",
    "late": f"{MAYBE_OVERDUE} AS late",
}
_HEAD = ", ".join(
    _TOLD.get(name, f"j.{name}") for name in Head._fields if name != "expected_wall_s"
)
_FIRST = "ORDER BY j.owner_id, j.shape, j.priority DESC, j.displaced DESC, j.id LIMIT 1"
_STEPS = """
    SELECT n.* FROM (
      WITH RECURSIVE heads AS (
        (SELECT {head} FROM jobs j WHERE {ready} AND {which} {first})
        UNION ALL
        SELECT n.* FROM heads h CROSS JOIN LATERAL (
          SELECT {head} FROM jobs j
          WHERE {ready} AND {which} AND (j.owner_id, j.shape) > (h.owner_id, h.shape) {first}) AS n
      ) SELECT * FROM heads) AS n
"""
_OF_ONE = _STEPS.format(head=_HEAD, ready=READY, first=_FIRST, which="j.pool_id = p.id")
_OF_SEVERAL = _STEPS.format(head=_HEAD, ready=READY, first=_FIRST, which="j.pool_ids IS NOT NULL")
_MEAN_WALL_S = """CASE WHEN n.array_id IS NULL THEN o.mean_wall_s
    ELSE (SELECT a.mean_wall_s FROM arrays a WHERE a.id = n.array_id) END AS expected_wall_s"""
_ROW = ", ".join({"expected_wall_s": _MEAN_WALL_S}.get(name, f"n.{name}") for name in Head._fields)
SHAPES = f"""
    SELECT {_ROW} FROM (
      SELECT n.* FROM unnest(CAST(:pools AS bigint[])) AS p(id) CROSS JOIN LATERAL ({_OF_ONE}) AS n
      WHERE n.pool_ids IS NULL
      UNION ALL {_OF_SEVERAL} WHERE n.pool_ids && CAST(:pools AS bigint[])) AS n
    JOIN owners o ON o.id = n.owner_id AND {STOP} IS NULL
"""

# The next jobs of each owner in a pool, of its shapes that fit somewhere (`free`: into free slots, else
# only ahead; `most`: so many of each at the most).
_JOB = ", ".join(
    {
        "memory_bytes": _TOLD["memory_bytes"],
        "expected_wall_s": "CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END"
        " AS expected_wall_s",
    }.get(name, f"j.{name}")
    for name in _OF_JOB
)
_JOBS = f"""
    SELECT c.* FROM jsonb_to_recordset(CAST(:turns AS jsonb))
        AS t(pool_id bigint, owner_id bigint, most int, shapes jsonb)
    JOIN owners o ON o.id = t.owner_id CROSS JOIN LATERAL (
      SELECT c.* FROM jsonb_to_recordset(t.shapes) AS f(shape bigint, most int, free boolean)
      CROSS JOIN LATERAL (
        SELECT {_JOB}, {_TOLD["late"]}
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
