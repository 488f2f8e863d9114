"""The waiting jobs that fit somewhere now: the next ones of each owner, past all others.

Waiting jobs of one owner that ask for the same have one shape. The index leads from shape to shape,
so that a hundred thousand jobs that fit nowhere cost one look, and no owner's jobs hide another's.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from remuda.fairness import FairShares, allotments
from remuda.models import quotas, usage
from remuda.models.array_limits import ArrayLimits
from remuda.models.deadlines import end_overdue
from remuda.models.quotas import QuotaRoom
from remuda.models.rooms import Room, VmRoom, fits, rooms_of
from remuda.models.shapes import JOBS_OF_ONE, JOBS_OF_SEVERAL, SHAPES, Head
from remuda.owned_vms import OwnedVms
from remuda.pending import SEVERAL, PendingJob


@dataclass(frozen=True, slots=True)
class Waiting:
    """The jobs to place. `cut`: the (pool, owner) of which there may be more, which come later.

    In place of a pool stands SEVERAL for jobs that may go to more than one. `skipped_free` and
    `skipped_ahead`: see `remuda.models.dispatch.Snapshot`.
    """

    jobs: tuple[PendingJob, ...] = ()
    shares: FairShares = field(default_factory=FairShares)
    cut: frozenset[tuple[int, int]] = frozenset()
    array_room: Mapping[int, int] = field(default_factory=dict)
    quota: QuotaRoom = field(default_factory=QuotaRoom)
    skipped_free: bool = False
    skipped_ahead: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    """An owner's jobs in a pool (or SEVERAL): so many, of these shapes (the first job of each)."""

    source: int
    owner_id: int
    most: int
    all_it_may: bool  # no quota lets it have more
    shapes: Sequence[tuple[Head, bool]]  # whether free slots do, or just a queue

    def first(self) -> PendingJob | None:
        """Return the job, if it is to be one only and is known for certain already."""
        head, free = min(self.shapes, key=lambda each: _order(each[0]))
        return head.job() if self.most == 1 and free and head.is_sure else None


class WaitingJobs:
    """What waits for the rooms of some VMs, whose rows are locked."""

    def __init__(
        self,
        connection: Connection,
        vms: Sequence[VmRoom],
        *,
        limited: bool,
        owned: OwnedVms,
        stopped: frozenset[tuple[int, int]],
        wait: bool,
        half_life_s: float,
        max_ahead: int,
        horizon_s: float,
        reserve_after_s: float,
        most: int,
    ) -> None:
        """See `remuda.models.dispatch.take_snapshot`; `limited`: there are quotas of slots.

        `owned`: what limits of VMs leave, the owners locked; `stopped`: (owner, pool) that get nothing.
        """
        self._connection = connection
        self._vms = vms
        self._limited = limited
        self._owned = owned
        self._stopped = stopped
        self._wait = wait
        self._arrays = ArrayLimits(connection, wait=wait)
        self._quota = QuotaRoom()
        self._skipped: set[bool] = set()  # by whether free slots would have done
        self._half_life_s = half_life_s
        self._max_ahead = max_ahead
        self._horizon_s = horizon_s
        self._reserve_after_s = reserve_after_s
        self._most = most
        self._rooms: dict[int, list[Room]] = defaultdict(list)
        self._own_rooms: dict[tuple[int, int], list[Room]] = {}
        for room in rooms_of(vms, max_ahead, horizon_s):
            self._rooms[room.pool_id].append(room)
        # In pools whose rooms are all the same to everybody, who asks for the same fits the same.
        self._bound = {vm.pool_id for vm in vms if vm.bound_owner_id is not None}
        self._known: dict[tuple[Any, ...] | None, set[bool]] = {}

    def find(self) -> Waiting:
        """Return the jobs that come next of each owner, and those that wait for room.

        The quotas and arrays that limit them are locked. What is over an array's limit hides no others;
        what is over its own deadline ends here.
        """
        if not any(not room.whole for rooms in self._rooms.values() for room in rooms):
            return Waiting()
        found_heads = self._connection.execute(text(SHAPES), {"pools": sorted(self._rooms)})
        heads = [Head._make(row) for row in found_heads.all()]
        fits = [(head, free) for head in heads if (free := self._fits(head)) is not None]
        old = [head for head in heads if head.waited_s >= self._reserve_after_s]
        fitting = self._within_quotas(fits, old)
        owners = {head.owner_id for head, _ in fitting}
        shares = FairShares()
        if len(owners) > 1:
            shares = usage.shares(self._connection, half_life_s=self._half_life_s)
        found, cut = self._next_ones(self._turns(fitting, shares))
        wide = self._without_room(old, found)
        ordered = sorted([*found.values(), *wide], key=_order)
        return Waiting(
            tuple(ordered),
            shares,
            cut,
            self._arrays.room,
            self._quota,
            skipped_free=True in self._skipped,
            skipped_ahead=False in self._skipped,
        )

    def _room(self, source: int, heads: Iterable[Head]) -> int:
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

    def _least_wall_s(self, head: Head) -> float:
        """Return what the shortest jobs like this may take: behind small arrays there may be others."""
        wall_s = math.inf if head.expected_wall_s is None else float(head.expected_wall_s)
        mixed = head.array_id is not None and head.queue_id is None
        return min(wall_s, self._horizon_s) if mixed else wall_s

    def _fits(self, head: Head) -> bool | None:
        """Return whether jobs like this fit into free slots; None: neither there nor ahead."""
        plain = (
            None
            if head.constraints
            or head.pool_ids
            or head.pool_id in self._bound
            or self._owned.parties(head.owner_id)
            or (head.owner_id, head.pool_id) in self._stopped
            else (head.pool_id, head.cores, head.memory_bytes, head.gpus, head.architecture)
        )
        if plain not in self._known:
            self._known[plain] = self._kinds(head)
        kinds = self._known[plain] if plain else self._kinds(head)
        return None if not kinds else False in kinds

    def _kinds(self, head: Head) -> set[bool]:
        return {
            room.ahead
            for pool in head.pool_ids or [head.pool_id]
            for room in self._rooms_for(head.owner_id, pool)
            if not room.whole and fits(head, room)
        }

    def _rooms_for(self, owner_id: int, pool_id: int) -> Sequence[Room]:
        """Return the rooms of a pool that its budget there, and limits of VMs, leave the owner."""
        if (owner_id, pool_id) in self._stopped:
            return ()
        only = self._owned.only(owner_id, pool_id)
        if only is None:
            return self._rooms.get(pool_id, ())
        if (owner_id, pool_id) not in self._own_rooms:
            mine = [vm for vm in self._vms if vm.pool_id == pool_id and vm.id in only]
            rooms = rooms_of(mine, self._max_ahead, self._horizon_s)
            self._own_rooms[owner_id, pool_id] = list(rooms)
        return self._own_rooms[owner_id, pool_id]

    def _within_quotas(
        self, fitting: Sequence[tuple[Head, bool]], old: Iterable[Head]
    ) -> Sequence[tuple[Head, bool]]:
        """Lock the quotas of those whose jobs fit, or are old; return what these let them have."""
        owners = {head.owner_id for head, _ in fitting} | {head.owner_id for head in old}
        if not self._limited or not owners:
            return fitting
        pools = sorted(self._rooms)
        self._quota = quotas.lock(self._connection, owners, pools, wait=self._wait)
        if self._quota.skipped:
            for head, free in fitting:
                if self._quota.is_skipped(head.owner_id, head.source or None):
                    self._skip(free, head.expected_wall_s)
        return [(head, free) for head, free in fitting if self._may_have(head)]

    def _skip(self, free: bool, wall_s: float | None) -> None:
        """Note that a job is left to others which fits free slots, or a queue if it is short."""
        if free:
            self._skipped.add(True)
        if wall_s is not None and wall_s <= self._horizon_s and self._max_ahead:
            self._skipped.add(False)

    def _may_have(self, head: Head) -> bool:
        if not self._quota.left:
            return True
        pool = None if head.pool_ids else head.pool_id
        left = self._quota.of(head.owner_id, pool)
        return left is None or head.cores <= left

    def _turns(
        self,
        fitting: Sequence[tuple[Head, bool]],
        shares: FairShares,
    ) -> list[_Turn]:
        """Return how many jobs of each owner to look at in each pool: its part, and some more."""
        shapes: dict[int, dict[int, list[tuple[Head, bool]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        heads: dict[int, list[Head]] = defaultdict(list)
        for head, free in fitting:
            shapes[head.source][head.owner_id].append((head, free))
            heads[head.source].append(head)
        turns = []
        for source, of_owner in shapes.items():
            most = self._room(source, heads[source])
            if not most:
                continue
            parts = allotments(most, shares, dict.fromkeys(of_owner)) if len(of_owner) > 1 else {}
            for owner, some in of_owner.items():
                limit = most if not parts else min(most, _enough(parts[owner], some))
                left = self._quota.of(owner, source or None)
                bound = limit if left is None else min(limit, left)
                turns.append(_Turn(source, owner, bound, bound < limit, some))
        return turns

    def _next_ones(
        self, turns: Sequence[_Turn]
    ) -> tuple[dict[int, PendingJob], frozenset[tuple[int, int]]]:
        full: set[int] = set()
        found: dict[int, PendingJob] = {}
        firsts = [(turn, turn.first()) for turn in turns]
        known = [job for _, job in firsts if job is not None]
        open_turns = [turn for turn, job in firsts if job is None]
        while True:
            seen = list(known)
            late: list[int] = []
            for several in (False, True):
                for row in self._rows(
                    [turn for turn in open_turns if (turn.source == SEVERAL) is several], full
                ):
                    seen.append(PendingJob(*row[:-1]))
                    if row[-1]:
                        late.append(row[0])
            if late and end_overdue(self._connection, late):
                continue
            self._arrays.lock({job.array_id for job in seen if job.array_id is not None})
            room = self._arrays.room
            over: Counter[int] = Counter()
            for job in seen:
                if job.array_id is not None and job.array_id in room:
                    over[job.array_id] += 1
                    if over[job.array_id] > room[job.array_id]:
                        if job.array_id in self._arrays.skipped:
                            self._skip(True, job.expected_wall_s)
                        continue
                found[job.id] = job
            ends = _ends(seen, turns)
            more = {a for a, count in over.items() if count > room[a]}
            if not ends or not more:
                bound = {(turn.source, turn.owner_id) for turn in turns if turn.all_it_may}
                return found, frozenset(ends - bound)
            full |= more  # those that may go are found; now for who stands behind the others

    def _rows(self, turns: Sequence[_Turn], full: Collection[int]) -> Sequence[Any]:
        if not turns:
            return ()
        told = [
            {
                "pool_id": turn.source,
                "owner_id": turn.owner_id,
                "most": turn.most,
                "shapes": _parts(turn),
            }
            for turn in turns
        ]
        return self._connection.execute(
            JOBS_OF_SEVERAL if turns[0].source == SEVERAL else JOBS_OF_ONE,
            {
                "turns": json.dumps(told),
                "full_arrays": sorted(full),
                "horizon": self._horizon_s,
            },
        ).all()

    def _without_room(
        self, old: Collection[Head], found: Mapping[int, PendingJob]
    ) -> list[PendingJob]:
        """Return those of the jobs, which have waited for long, that fit a VM that has nothing else."""
        wide = []
        self._arrays.lock({head.array_id for head in old if head.array_id is not None})
        for head in old:
            if head.id in found:
                continue
            if self._arrays.room.get(head.array_id or 0, 1) <= 0 or not self._may_have(head):
                continue
            rooms = [
                room
                for pool in head.pool_ids or [head.pool_id]
                for room in self._rooms_for(head.owner_id, pool)
                if fits(head, room)
            ]
            if any(room.whole for room in rooms) and all(
                room.whole or room.ahead for room in rooms
            ):
                wide.append(head.job()._replace(reserves=True))
        return wide


def _enough(part: int, shapes: Iterable[tuple[Head, bool]]) -> int:
    """Return how many jobs to look at of an owner who is to have about so many.

    With one more, where it is not known that there are more: who has none left is not waited for.
    """
    wanted = part + part // 4
    sure = sum(free and head.is_sure for head, free in shapes)
    return wanted if sure > wanted else wanted + 1


def _parts(turn: _Turn) -> list[dict[str, Any]]:
    """Return how many jobs of each shape there may be among the next of all of a turn.

    They are fewer by the first jobs of other shapes, which are known to go before.
    """
    found: list[dict[str, Any]] = []
    before = 0
    for head, free in sorted(turn.shapes, key=lambda each: _order(each[0])):
        if before < turn.most:
            found.append({"shape": head.shape, "most": turn.most - before, "free": free})
        before += free and head.is_sure
    return found


def _order(job: PendingJob | Head) -> tuple[int, bool, int]:
    return -job.priority, not job.displaced, job.id


def _ends(seen: Iterable[PendingJob], turns: Iterable[_Turn]) -> set[tuple[int, int]]:
    """Return the (pool, owner) of which as many jobs were seen as were to be: there may be more."""
    counts = Counter(job.source for job in seen)
    return {
        (turn.source, turn.owner_id)
        for turn in turns
        if counts[turn.source, turn.owner_id] >= turn.most
    }
