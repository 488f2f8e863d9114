"""How many more VMs owners and groups may have, while a decision gives VMs out; pure.

A VM is an owner's while it is bound to it, or jobs or leases of it are there; it is a group's while it
is one of its members', of however many. Who has no limit is not in here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["OwnedVms", "Party", "VmLimit", "group"]

Party = int  # an owner by its id; a group, as all its members together, by `group` of its id
Key = tuple[Party, int | None]  # (party, pool; None: all of them)

_ANY = (None,)


def group(owner_id: int) -> Party:
    """Return the party that a group's members are together: what it has itself is one thing more."""
    return -owner_id


@dataclass(slots=True)
class VmLimit:
    """How many VMs a party may have: in all (`most`; None: any number), and in `pools` that say so.

    `own`: of these pools those where that is the party's limit, not everybody's.
    """

    name: str
    is_group: bool = False
    most: int | None = None
    pools: dict[int, int] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)

    def whose(self) -> str:
        """Return who is limited, in words."""
        return f"{'group' if self.is_group else 'owner'} {self.name}"

    def word(self, pool_id: int) -> str:
        """Return what the limit in a pool is called."""
        return "max_vms in the pool" if pool_id in self.own else "max_vms_per_owner"


@dataclass(slots=True)
class OwnedVms:
    """The VMs that parties with a limit `has` by id, and how many more each may have, `left`.

    `group_of`: the group, if it has a limit, of its members and of itself. `skipped`: somebody else
    just places jobs of one of them.
    """

    has: dict[Party, set[int]] = field(default_factory=dict)
    left: dict[Key, int] = field(default_factory=dict)
    skipped: bool = False
    group_of: Mapping[int, int] = field(default_factory=dict)

    def copy(self) -> OwnedVms:
        """Return one that can be given out without touching this."""
        has = {party: set(vms) for party, vms in self.has.items()}
        return OwnedVms(has, dict(self.left), self.skipped, self.group_of)

    def parties(self, owner_id: int) -> Sequence[Party]:
        """Return whose limits say something of the owner: its own, its group's."""
        found = [owner_id] if owner_id in self.has else []
        if owner_id in self.group_of:
            found.append(group(self.group_of[owner_id]))
        return found

    def owners(self) -> Collection[int]:
        """Return the owners of whom a limit says something."""
        return {party for party in self.has if party > 0} | self.group_of.keys()

    def lefts(self, owner_id: int, pool_id: int) -> dict[Party, int]:
        """Return how many more VMs of a pool each of the owner's parties may have."""
        found = {}
        for party in self.parties(owner_id):
            left = [self.left[key] for key in ((party, None), (party, pool_id)) if key in self.left]
            if left:
                found[party] = max(0, min(left))
        return found

    def more(self, owner_id: int, pool_id: int) -> int | None:
        """Return how many more VMs of a pool the owner may have; None: any number."""
        return min(self.lefts(owner_id, pool_id).values(), default=None)

    def only(self, owner_id: int, pool_id: int) -> Collection[int] | None:
        """Return the VMs to which the owner's jobs may go, of a pool; None: to any of it."""
        lefts = self.lefts(owner_id, pool_id)
        return self._shared_by(party for party, left in lefts.items() if not left)

    def choices(self, owner_id: int, pool_id: int) -> Sequence[Collection[int] | None]:
        """Return which VMs of a pool to try for the owner, one set after the other; None: any.

        Those come first which count to none of its limits any more, then those that its group has.
        """
        parties = self.parties(owner_id) if self.has else ()
        if not parties:
            return _ANY
        found: list[Collection[int] | None] = [self._shared_by(parties)]
        lefts = self.lefts(owner_id, pool_id)
        full = [party for party in parties if lefts.get(party) == 0]
        if len(parties) > 1 and owner_id not in full:
            found.append(self.has[parties[1]])
        if not full:
            found.append(None)
        return found

    def take(self, owner_id: int, pool_id: int, vm_id: int) -> None:
        """Count a VM that the owner gets something on."""
        for party in self.parties(owner_id):
            if vm_id in self.has[party]:
                continue
            self.has[party].add(vm_id)
            for key in ((party, None), (party, pool_id)):
                if key in self.left:
                    self.left[key] -= 1

    def _shared_by(self, parties: Iterable[Party]) -> Collection[int] | None:
        found: Collection[int] | None = None
        for party in parties:
            has = self.has[party]
            found = has if found is None else has.intersection(found)
        return found
