"""Where the jobs of a snapshot run out while a decision is made of it; pure.

There may be more jobs of an owner in a pool than a snapshot has. Once all it has were seen, the next
of them would come at the owner's next turn: from then on the pool is left to another look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush

from remuda.fairness import Ledger, Party
from remuda.pending import SEVERAL, PendingJob


class Cuts:
    """The (pool, owner) that are cut, and the pools in which the turn of unknown jobs has come."""

    def __init__(
        self, jobs: Iterable[PendingJob], cut: Collection[tuple[int, int]], ledger: Ledger
    ) -> None:
        """`jobs`: all the snapshot has; `ledger`: which is charged for what is given out."""
        self._cut = cut
        self._left = Counter(job.source for job in jobs if not job.reserves) if cut else Counter()
        self._ledger = ledger
        self._ended: dict[Party, dict[int, set[int]]] = {}  # pools by the owner who has more there
        self._levels: list[tuple[float, Party]] = []  # of those, at the time they came in
        self._class: tuple[int, bool] | None = None
        self._served: set[int] = set()
        self._over: set[int] = set()

    def turn(self, job: PendingJob) -> None:
        """Note whose turn it is: unknown jobs that would have come before close their pools.

        In doubt they would have: of two at one level either may have the older job.
        """
        if not self._cut:
            return
        if self._class != (job.priority, job.displaced):
            self._class = (job.priority, job.displaced)
            for party in list(self._ended):
                self._close(party)
        if not self._ended:
            return
        party = self._ledger.party(job.owner_id)
        self._close_members(party, job.owner_id)
        level = self._ledger.level(party)
        kept = []
        while self._levels and self._levels[0][0] <= level:
            other = heappop(self._levels)[1]
            now = self._ledger.level(other)
            if other == party or now > level:
                kept.append((now, other))
            else:
                self._close(other)
        for entry in kept:
            if entry[1] in self._ended:
                heappush(self._levels, entry)

    def seen(self, job: PendingJob, served: int | None) -> None:
        """Note that the job had its turn, and the pool that serves it; what it takes is charged."""
        if served is not None:
            self._served.add(served)
        if not self._cut:
            return
        source = job.source
        self._left[source] -= 1
        if source not in self._cut or self._left[source]:
            return
        party = self._ledger.party(job.owner_id)
        if party not in self._ended:
            self._ended[party] = {}
            heappush(self._levels, (self._ledger.level(party), party))
        self._ended[party].setdefault(job.owner_id, set()).add(source[0])

    def still_open(self, pools: Sequence[int]) -> Sequence[int]:
        """Return those of the pools of which enough jobs are known."""
        if not self._over:
            return pools
        if SEVERAL in self._over:
            return ()
        return [pool for pool in pools if pool not in self._over]

    def _close_members(self, party: Party, owner_id: int) -> None:
        """Close the pools of those of a party who come before this owner, and its own."""
        members = self._ended.get(party)
        if not members:
            return
        level = self._ledger.level((False, owner_id))
        for owner in list(members):
            if owner == owner_id or self._ledger.level((False, owner)) <= level:
                self._over |= self._closing(members.pop(owner))
        if not members:
            del self._ended[party]

    def _close(self, party: Party) -> None:
        for pools in self._ended.pop(party, {}).values():
            self._over |= self._closing(pools)

    def _closing(self, pools: Collection[int]) -> set[int]:
        """Return those of the pools in which something was placed: another look gets on from there."""
        return {
            pool for pool in pools if pool in self._served or (pool == SEVERAL and self._served)
        }
