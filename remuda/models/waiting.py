"""The waiting jobs that fit somewhere now, locked: the next ones of each owner, past all others.

Waiting jobs of one owner that ask for the same have one shape. The index leads from shape to shape,
so that a hundred thousand jobs that fit nowhere cost one look, and no owner's jobs hide another's.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from remuda.fairness import FairShares, allotments
from remuda.models import usage
from remuda.models.database import rows
from remuda.models.deadlines import MAYBE_OVERDUE, end_overdue
from remuda.models.jobs import READY
from remuda.models.quotas import QuotaRoom
from remuda.models.rooms import Room, VmRoom, fits, rooms_of


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job to place, its row locked. `pool_ids` None: only `pool_id` may take it."""

    id: int
    pool_id: int
    pool_ids: list[int] | None
    owner_id: int
    array_id: int | None
    priority: int
    displaced: bool
    submitted_at: datetime
    cores: int
    memory_bytes: int
    gpus: int
    architecture: str | None
    constraints: dict[str, Any] | None
    sandbox: str
    expected_wall_s: float | None
    reserves: bool = False  # not locked: it fits no room there is, and has waited for long


# The first job of each shape that waits: of jobs for one pool, by pool, then of those for several. Each
# step of the recursion is one look into the index.
_HEAD = """j.id, j.pool_id, j.pool_ids, j.owner_id, j.shape, j.cores, j.gpus, j.architecture,
    coalesce(j.memory_bytes, 0) AS memory_bytes, j.constraints, j.sandbox, j.submitted_at,
    j.array_id, j.queue_id, j.priority, j.displaced,
    extract(epoch FROM now() - greatest(j.submitted_at, j.not_before))::float8 AS waited_s"""
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
_SHAPES = (
    "SELECT n.*, CASE WHEN n.array_id IS NULL THEN o.mean_wall_s"
    " ELSE (SELECT a.mean_wall_s FROM arrays a WHERE a.id = n.array_id) END AS expected_wall_s"
    " FROM (SELECT n.* FROM unnest(CAST(:pools AS bigint[])) AS p(id) CROSS JOIN LATERAL ("
    + _STEPS.format(head=_HEAD, ready=READY, which="j.pool_id = p.id")
    + ") AS n WHERE n.pool_ids IS NULL UNION ALL"
    + _STEPS.format(head=_HEAD, ready=READY, which="j.pool_ids IS NOT NULL")
    + "WHERE n.pool_ids && CAST(:pools AS bigint[])) AS n"
    " JOIN owners o ON o.id = n.owner_id AND o.budget_stop IS NULL"
)

# The next jobs of each owner in a pool, of its shapes that fit somewhere (`free`: into free slots, else
# only ahead). What is locked is what comes out, and looked at again: it may have ended meanwhile.
_JOBS = f"""
    SELECT j.id, j.pool_id, j.pool_ids, j.owner_id, j.array_id, j.priority, j.displaced,
           j.submitted_at, j.cores, coalesce(j.memory_bytes, 0) AS memory_bytes, j.gpus,
           j.architecture, j.constraints, j.sandbox, c.expected_wall_s, {MAYBE_OVERDUE} AS late
    FROM jsonb_to_recordset(CAST(:turns AS jsonb))
        AS t(pool_id bigint, owner_id bigint, most int, shapes jsonb)
    JOIN owners o ON o.id = t.owner_id CROSS JOIN LATERAL (
      SELECT c.* FROM jsonb_to_recordset(t.shapes) AS f(shape bigint, free boolean)
      CROSS JOIN LATERAL (
        SELECT j.id, j.priority, j.displaced,
               CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END
                 AS expected_wall_s
        FROM jobs j LEFT JOIN arrays a ON a.id = j.array_id
        WHERE {READY} AND {{which}} AND j.owner_id = t.owner_id AND j.shape = f.shape
          AND (j.not_before IS NULL OR j.not_before <= now())
          AND (j.array_id IS NULL OR j.array_id <> ALL(:full_arrays))
          AND (f.free OR CASE WHEN j.array_id IS NULL THEN o.mean_wall_s
                              ELSE a.mean_wall_s END <= :horizon)
        ORDER BY j.priority DESC, j.displaced DESC, j.id LIMIT t.most) AS c
      ORDER BY c.priority DESC, c.displaced DESC, c.id LIMIT t.most) AS c
    -- CASE: the planner must not take the condition for one that an index answers.
    JOIN jobs j ON j.id = c.id AND CASE WHEN {READY} THEN true ELSE false END
    FOR NO KEY UPDATE OF j SKIP LOCKED
"""
_JOBS_OF_ONE = text(_JOBS.format(which="j.pool_id = t.pool_id"))
_JOBS_OF_SEVERAL = text(_JOBS.format(which="j.pool_ids IS NOT NULL"))


@dataclass(frozen=True, slots=True)
class Waiting:
    """The jobs to place. `cut`: the (pool, owner) of which there may be more, which come later.

    In place of a pool stands SEVERAL for jobs that may go to more than one.
    """

    jobs: tuple[WaitingJob, ...] = ()
    shares: FairShares = field(default_factory=FairShares)
    cut: frozenset[tuple[int, int]] = frozenset()


SEVERAL = 0


@dataclass(frozen=True, slots=True)
class _Turn:
    """An owner's jobs in a pool (or SEVERAL): so many, of these (shapes, whether free slots do)."""

    source: int
    owner_id: int
    most: int
    shapes: Sequence[tuple[int, bool]]


class WaitingJobs:
    """What waits for the rooms of some VMs, their rows and the quotas locked."""

    def __init__(
        self,
        connection: Connection,
        vms: Sequence[VmRoom],
        *,
        array_room: Mapping[int, int],
        quota: QuotaRoom,
        half_life_s: float,
        max_ahead: int,
        horizon_s: float,
        reserve_after_s: float,
        most: int,
    ) -> None:
        """See `remuda.models.dispatch.take_snapshot`."""
        self._connection = connection
        self._vms = vms
        self._array_room = array_room
        self._quota = quota
        self._half_life_s = half_life_s
        self._max_ahead = max_ahead
        self._horizon_s = horizon_s
        self._reserve_after_s = reserve_after_s
        self._most = most
        self._rooms: dict[int, list[Room]] = defaultdict(list)
        for room in rooms_of(vms, max_ahead):
            self._rooms[room.pool_id].append(room)

    def lock(self) -> Waiting:
        """Lock and return the jobs that come next of each owner, and those that wait for room.

        What is over an array's limit hides no others; what is over its own deadline ends here.
        """
        if not any(not room.whole for rooms in self._rooms.values() for room in rooms):
            return Waiting()
        heads = rows(self._connection, _SHAPES, pools=sorted(self._rooms))
        fitting = [(head, free) for head in heads if (free := self._fits(head)) is not None]
        owners = {head["owner_id"] for head, _ in fitting}
        shares = FairShares()
        if len(owners) > 1:
            shares = usage.shares(self._connection, half_life_s=self._half_life_s)
        found, cut = self._next_ones(self._turns(fitting, shares))
        wide = self._without_room(heads, found) if self._reserve_after_s < math.inf else []
        ordered = sorted([*found.values(), *wide], key=_order)
        return Waiting(tuple(ordered), shares, cut)

    def _room(self, source: int, heads: Iterable[Mapping[str, Any]]) -> int:
        """Return how many such jobs the VMs of a pool, or of all, take at the very most.

        Of a queue ahead only that counts which jobs as short as the shortest of these fill.
        """
        short_s = min(map(self._least_wall_s, heads), default=math.inf)
        room = 0
        for vm in self._vms:
            if source not in (SEVERAL, vm.pool_id):
                continue
            room += max(0, vm.slots - vm.used_slots)
            if math.isfinite(short_s) and short_s <= self._horizon_s and vm.ahead_slots:
                filled = self._horizon_s * vm.ahead_slots / max(short_s, 1e-4) + vm.ahead_slots
                room += max(0, min(self._max_ahead - vm.backlog_count, math.ceil(min(filled, 1e9))))
        return min(room, self._most)

    def _least_wall_s(self, head: Mapping[str, Any]) -> float:
        """Return what the shortest jobs like this may take: behind small arrays there may be others."""
        wall_s = math.inf if head["expected_wall_s"] is None else float(head["expected_wall_s"])
        mixed = head["array_id"] is not None and head["queue_id"] is None
        return min(wall_s, self._horizon_s) if mixed else wall_s

    def _fits(self, head: Mapping[str, Any]) -> bool | None:
        """Return whether jobs like this fit into free slots; None: neither there nor ahead."""
        if not self._may_have(head):
            return None
        kinds = {
            room.ahead
            for pool in head["pool_ids"] or [head["pool_id"]]
            for room in self._rooms.get(pool, ())
            if not room.whole and fits(head, room)
        }
        return None if not kinds else False in kinds

    def _may_have(self, head: Mapping[str, Any]) -> bool:
        pool = None if head["pool_ids"] else head["pool_id"]
        left = self._quota.of(head["owner_id"], pool)
        return left is None or head["cores"] <= left

    def _turns(
        self,
        fitting: Sequence[tuple[Mapping[str, Any], bool]],
        shares: FairShares,
    ) -> list[_Turn]:
        """Return how many jobs of each owner to look at in each pool: its part, and some more."""
        shapes: dict[int, dict[int, list[tuple[int, bool]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        heads: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for head, free in fitting:
            shapes[_source(head)][head["owner_id"]].append((head["shape"], free))
            heads[_source(head)].append(head)
        turns = []
        for source, of_owner in shapes.items():
            most = self._room(source, heads[source])
            if not most:
                continue
            parts = allotments(most, shares, dict.fromkeys(of_owner)) if len(of_owner) > 1 else {}
            for owner, some in of_owner.items():
                limit = most if not parts else min(most, parts[owner] + parts[owner] // 4 + 2)
                left = self._quota.of(owner, source or None)
                turns.append(
                    _Turn(source, owner, limit if left is None else min(limit, left), some)
                )
        return turns

    def _next_ones(
        self, turns: Sequence[_Turn]
    ) -> tuple[dict[int, WaitingJob], frozenset[tuple[int, int]]]:
        full = {array for array, left in self._array_room.items() if left <= 0}
        found: dict[int, WaitingJob] = {}
        while True:
            seen: list[WaitingJob] = []
            late: list[int] = []
            for several in (False, True):
                for row in self._rows([t for t in turns if (t.source == SEVERAL) is several], full):
                    seen.append(WaitingJob(*row[:-1]))
                    if row[-1]:
                        late.append(row[0])
            if late and end_overdue(self._connection, late):
                continue
            over: Counter[int] = Counter()
            for job in seen:
                if job.array_id is not None and job.array_id in self._array_room:
                    over[job.array_id] += 1
                    if over[job.array_id] > self._array_room[job.array_id]:
                        continue
                found[job.id] = job
            ends = _ends(seen, turns)
            more = {a for a, count in over.items() if count > self._array_room[a]}
            if not ends or not more:
                return found, frozenset(ends)
            full |= more  # those that may go are found; now for who stands behind the others

    def _rows(self, turns: Sequence[_Turn], full: Collection[int]) -> Sequence[Any]:
        if not turns:
            return ()
        told = [
            {
                "pool_id": turn.source,
                "owner_id": turn.owner_id,
                "most": turn.most,
                "shapes": [{"shape": shape, "free": free} for shape, free in turn.shapes],
            }
            for turn in turns
        ]
        return self._connection.execute(
            _JOBS_OF_SEVERAL if turns[0].source == SEVERAL else _JOBS_OF_ONE,
            {
                "turns": json.dumps(told),
                "full_arrays": sorted(full),
                "horizon": self._horizon_s,
            },
        ).all()

    def _without_room(
        self, heads: Iterable[Mapping[str, Any]], found: Mapping[int, WaitingJob]
    ) -> list[WaitingJob]:
        """Return the first of each shape that has waited for long, and fits a VM that has nothing else."""
        wide = []
        for head in heads:
            if head["id"] in found or head["waited_s"] < self._reserve_after_s:
                continue
            if self._array_room.get(head["array_id"], 1) <= 0 or not self._may_have(head):
                continue
            rooms = [
                room
                for pool in head["pool_ids"] or [head["pool_id"]]
                for room in self._rooms.get(pool, ())
                if fits(head, room)
            ]
            if any(room.whole for room in rooms) and all(
                room.whole or room.ahead for room in rooms
            ):
                fields: dict[str, Any] = {name: head.get(name) for name in _FIELDS}
                wide.append(WaitingJob(**fields, reserves=True))
        return wide


_FIELDS = tuple(name for name in WaitingJob.__slots__ if name != "reserves")


def _source(head: Mapping[str, Any]) -> int:
    return SEVERAL if head["pool_ids"] else int(head["pool_id"])


def _order(job: WaitingJob) -> tuple[int, bool, int]:
    return -job.priority, not job.displaced, job.id


def _ends(seen: Iterable[WaitingJob], turns: Iterable[_Turn]) -> set[tuple[int, int]]:
    """Return the (pool, owner) of which as many jobs were seen as were to be: there may be more."""
    counts = Counter((SEVERAL if job.pool_ids else job.pool_id, job.owner_id) for job in seen)
    return {
        (turn.source, turn.owner_id)
        for turn in turns
        if counts[turn.source, turn.owner_id] >= turn.most
    }
