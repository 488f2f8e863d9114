"""Who comes next: fair shares between owners, and between the members of a group; pure.

Of the owners whose jobs wait the one that has used least for its weight comes next. A group counts as
one owner of its own weight, with all that its members use; its turn goes to the member that has used
least for its own. What a decision gives out counts at once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from typing import Protocol, TypeVar

UNKNOWN_WALL_S = 60.0  # of a job about whose length nothing is known


@dataclass(frozen=True, slots=True)
class Share:
    """An owner's or a group's `weight`, and what it used: slot-seconds, older ones counting less."""

    weight: float = 1.0
    usage_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FairShares:
    """The shares of owners and of groups, by id; `group_of`: the group of owners that have one.

    Who is not there has a weight of one and used nothing.
    """

    owners: Mapping[int, Share] = field(default_factory=dict)
    groups: Mapping[int, Share] = field(default_factory=dict)
    group_of: Mapping[int, int] = field(default_factory=dict)


class Waiting(Protocol):
    """What the order of jobs is made from."""

    @property
    def id(self) -> int:
        """Of the job."""

    @property
    def owner_id(self) -> int:
        """Whose it is."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def displaced(self) -> bool:
        """Whether its VM was taken away: it goes first among those of its priority."""

    @property
    def submitted_at(self) -> datetime:
        """When it was submitted."""


J = TypeVar("J", bound=Waiting)
_NOBODY = Share()
Party = tuple[bool, int]  # (whether it is a group, id)
Turn = tuple[float, datetime, int]  # use over weight; then the age of the oldest job


class Ledger:
    """The shares, and what a decision gives out on top of them."""

    def __init__(self, shares: FairShares) -> None:
        """Nothing is given out yet."""
        self._group_of = shares.group_of
        self._share = {
            **{(False, key): share for key, share in shares.owners.items()},
            **{(True, key): share for key, share in shares.groups.items()},
        }
        self._given_s: dict[Party, float] = defaultdict(float)

    def charge(self, owner_id: int, slot_s: float) -> None:
        """Count expected slot-seconds of a job that was placed."""
        self._given_s[False, owner_id] += slot_s
        group = self._group_of.get(owner_id)
        if group is not None:
            self._given_s[True, group] += slot_s

    def party(self, owner_id: int) -> Party:
        """Return who competes for it with all others: its group, or itself."""
        group = self._group_of.get(owner_id)
        return (False, owner_id) if group is None else (True, group)

    def weight(self, party: Party) -> float:
        """Return the weight of an owner or group."""
        return self._share.get(party, _NOBODY).weight

    def level(self, party: Party) -> float:
        """Return what a party used for its weight: the least comes next."""
        share = self._share.get(party, _NOBODY)
        return (share.usage_s + self._given_s[party]) / share.weight


def in_fair_order(jobs: Iterable[J], ledger: Ledger) -> Iterator[J]:
    """Yield the jobs by priority, displaced ones first, then by fair share, then by age.

    Whoever iterates charges the ledger for what it gives out before it takes the next.
    """
    classes: dict[tuple[int, bool], list[J]] = defaultdict(list)
    for job in jobs:
        classes[-job.priority, not job.displaced].append(job)
    for key in sorted(classes):
        yield from _of_one_class(classes[key], ledger)


def _of_one_class(jobs: Iterable[J], ledger: Ledger) -> Iterator[J]:
    queues: dict[int, deque[J]] = defaultdict(deque)
    for job in sorted(jobs, key=_age):
        queues[job.owner_id].append(job)
    members: dict[Party, list[tuple[Turn, int]]] = defaultdict(list)
    for owner_id, queue in queues.items():
        members[ledger.party(owner_id)].append((_turn(ledger, (False, owner_id), queue), owner_id))
    parties: list[tuple[Turn, Party]] = []
    for party, turns in members.items():
        turns.sort()
        _enter(parties, party, turns, ledger)
    while parties:
        party = heappop(parties)[1]
        owner_id = heappop(members[party])[1]
        queue = queues[owner_id]
        yield queue.popleft()
        if queue:
            heappush(members[party], (_turn(ledger, (False, owner_id), queue), owner_id))
        if members[party]:
            _enter(parties, party, members[party], ledger)


def _enter(
    parties: list[tuple[Turn, Party]],
    party: Party,
    turns: list[tuple[Turn, int]],
    ledger: Ledger,
) -> None:
    _, submitted_at, job_id = turns[0][0]
    heappush(parties, ((ledger.level(party), submitted_at, job_id), party))


def _turn(ledger: Ledger, party: Party, queue: deque[J]) -> Turn:
    return ledger.level(party), *_age(queue[0])


def _age(job: Waiting) -> tuple[datetime, int]:
    return job.submitted_at, job.id


def allotments(
    room: int, shares: FairShares, walls_s: Mapping[int, float | None]
) -> dict[int, int]:
    """Return about how many jobs of each owner a fair division of `room` jobs takes, rounded up.

    `walls_s`: the owners whose jobs wait, with their jobs' expected time. The level of use for weight
    up to which everybody is filled is the one at which all the room is given out.
    """
    ledger = Ledger(shares)
    members: dict[Party, list[int]] = defaultdict(list)
    for owner_id in walls_s:
        members[ledger.party(owner_id)].append(owner_id)
    found: dict[int, int] = {}
    whole = {p: [walls_s[o] for o in owners] for p, owners in members.items()}
    costs = {p: sum(w or UNKNOWN_WALL_S for w in walls) / len(walls) for p, walls in whole.items()}
    for party, jobs in _fill(room, costs, ledger).items():
        some = {(False, o): walls_s[o] or UNKNOWN_WALL_S for o in members[party]}
        found |= {key: -int(-count // 1) for (_, key), count in _fill(jobs, some, ledger).items()}
    return found


def _fill(room: float, costs: Mapping[Party, float], ledger: Ledger) -> dict[Party, float]:
    """Divide `room` so that all who get something end at one level, and nobody above it gets any."""
    if len(costs) == 1:
        return dict.fromkeys(costs, room)
    levels = sorted((ledger.level(party), party) for party in costs)
    # Jobs a unit of level costs, and what those above their own level have been given too much.
    rate = spent = 0.0
    level = levels[0][0]
    for place, (own, party) in enumerate(levels):
        rate += ledger.weight(party) / costs[party]
        spent += own * ledger.weight(party) / costs[party]
        level = (room + spent) / rate
        if place + 1 == len(levels) or level <= levels[place + 1][0]:
            break
    return {
        party: max(0.0, level - own) * ledger.weight(party) / costs[party] for own, party in levels
    }
