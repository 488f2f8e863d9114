"""Dependencies between jobs: written at submit, settled by the transaction in which a parent ends.

That transaction's trigger sees only edges that are committed. So whoever commits new edges locks
their parents last of all: a parent that is ending is waited for, and one that has ended is judged at
once. In a producer's own transaction, which may stay open for long, nothing is locked; `reconcile`
then finds what ended unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.dependencies import Edge
from remuda.errors import BadInput, Refused, UnknownArray, UnknownJob
from remuda.models.database import rows

# A job that its key found again has edges already, or never had any: it gets no new ones.
_INSERT = text("""
    INSERT INTO dependencies (job_id, parent_id, parent_array_id, condition, quantifier)
    SELECT r.job_id, r.parent_id, r.array_id, r.condition, r.quantifier
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:parents AS bigint[]), CAST(:arrays AS bigint[]),
                CAST(:conditions AS text[]), CAST(:quantifiers AS text[]))
      AS r(job_id, parent_id, array_id, condition, quantifier)
    JOIN jobs j ON j.id = r.job_id
    WHERE j.unmet > 0 AND NOT EXISTS (SELECT FROM dependencies d WHERE d.job_id = r.job_id)
""")

_BLOCKED = text("""
    SELECT id FROM jobs WHERE state = 'NEW' AND unmet > 0 AND (
      CAST(:all AS boolean) OR submitted_at > now() - interval '1 minute'
      OR id % 6 = (extract(epoch FROM now())::bigint / 5) % 6)
    ORDER BY id
""")


def resolve(
    connection: Connection, edges: Sequence[Edge], *, owner: int, indices: Sequence[int | None]
) -> list[Edge]:
    """Return the edges with the jobs of arrays found that are waited for index by index.

    `indices`: those of the call's jobs. Raises UnknownJob, UnknownArray, Refused for what belongs to
    another owner, BadInput when an array hasn't the same indices.
    """
    jobs = sorted({edge.parent_id for edge in edges if edge.parent_id is not None})
    arrays = sorted({edge.array_id for edge in edges if edge.array_id is not None})
    _check(connection, "jobs", "job", jobs, owner)
    _check(connection, "arrays", "array", arrays, owner)
    each = {edge.array_id for edge in edges if edge.array_id is not None and edge.index is not None}
    by_index = {array: _by_index(connection, array, indices) for array in sorted(each)}
    return [
        Edge(edge.child, edge.condition, parent_id=by_index[edge.array_id][edge.index])
        if edge.array_id is not None and edge.index is not None
        else edge
        for edge in edges
    ]


def _check(
    connection: Connection, table: str, noun: str, wanted: Sequence[int], owner: int
) -> None:
    if not wanted:
        return
    found = {
        row["id"]: row["owner_id"]
        for row in rows(
            connection, f"SELECT id, owner_id FROM {table} WHERE id = ANY(:ids)", ids=list(wanted)
        )
    }
    for number in wanted:
        if number not in found:
            unknown = UnknownArray if noun == "array" else UnknownJob
            raise unknown(f"there is no {noun} {number} to wait for")
        if found[number] != owner:
            raise Refused(
                f"{noun} {number} belongs to another owner", hint="jobs wait for their owner's own"
            )


def _by_index(
    connection: Connection, array: int, indices: Sequence[int | None]
) -> Mapping[int | None, int]:
    found = rows(
        connection,
        "SELECT array_index, id FROM jobs WHERE array_id = :id AND array_index IS NOT NULL",
        id=array,
    )
    parents = {row["array_index"]: int(row["id"]) for row in found}
    if set(parents) != set(indices):
        raise BadInput(
            f"each: array {array} has {len(parents)} numbered jobs and this one {len(indices)}, "
            "not of the same indices"
        )
    return parents


def insert_dependencies(
    connection: Connection, edges: Sequence[Edge], ids: Sequence[int], *, lock: bool
) -> None:
    """Write the resolved edges of the jobs `ids`, the call's, and judge those decided already.

    `lock`: the transaction ends now, so that locks on the parents hold nobody up.
    """
    first: dict[int, int] = {}  # a key may have given two places the same job
    for place, job_id in enumerate(ids):
        first.setdefault(job_id, place)
    wanted = [edge for edge in edges if first[ids[edge.child]] == edge.child]
    parents = [ids[e.place] if e.place is not None else e.parent_id for e in wanted]
    if any(ids[e.child] == parent for e, parent in zip(wanted, parents, strict=True)):
        raise BadInput(
            "a job waits for itself", hint="two specs of one idempotency key are one job"
        )
    arrays = [edge.array_id for edge in wanted]
    connection.execute(
        _INSERT,
        {
            "jobs": [ids[edge.child] for edge in wanted],
            "parents": parents,
            "arrays": arrays,
            "conditions": [edge.condition for edge in wanted],
            "quantifiers": [edge.quantifier for edge in wanted],
        },
    )
    fresh = set(ids)
    _settle(
        connection,
        sorted({ids[edge.child] for edge in wanted}),
        parents=sorted({p for p in parents if p is not None and p not in fresh} if lock else ()),
        arrays=sorted({a for a in arrays if a is not None} if lock else ()),
    )


def _settle(
    connection: Connection, jobs: Sequence[int], *, parents: Sequence[int], arrays: Sequence[int]
) -> None:
    for table, wanted in (("jobs", parents), ("arrays", arrays)):
        if wanted:
            connection.execute(
                text(f"SELECT id FROM {table} WHERE id = ANY(:ids) ORDER BY id FOR SHARE"),
                {"ids": list(wanted)},
            )
    catch_up(connection, jobs)


def catch_up(connection: Connection, job_ids: Sequence[int]) -> int:
    """Judge what these jobs wait for and has ended; return how many edges that decided."""
    done = connection.scalar(text("SELECT remuda_catch_up(:ids)"), {"ids": list(job_ids)})
    return int(done)


def reconcile(connection: Connection, *, all: bool = False) -> int:
    """Judge what ended unnoticed while its dependants were not committed; return how many edges.

    Of the waiting jobs it looks at the youngest and at a sixth of the others, unless `all`.
    """
    blocked = list(connection.scalars(_BLOCKED, {"all": all}))
    return catch_up(connection, blocked) if blocked else 0


def of_job(connection: Connection, job_id: int) -> list[dict[str, Any]]:
    """Return what a job waits or waited for: the edges with their parents' names and states."""
    found = rows(
        connection,
        """SELECT d.parent_id, d.parent_array_id, d.condition, d.quantifier, d.met,
                  coalesce(p.name, a.name) AS name, p.state, p.reason, a.size, a.ended, a.succeeded
           FROM dependencies d LEFT JOIN jobs p ON p.id = d.parent_id
           LEFT JOIN arrays a ON a.id = d.parent_array_id WHERE d.job_id = :id ORDER BY d.id""",
        id=job_id,
    )
    return [dict(row) for row in found]
