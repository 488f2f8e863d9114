"""How many more VMs owners may have, while a decision gives VMs out; pure.

A VM is an owner's while it is bound to it, or jobs or leases of it are there. Owners without a limit
are not in here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

__all__ = ["OwnedVms"]

Key = tuple[int, int | None]  # (owner, pool; None: all of them)


@dataclass(slots=True)
class OwnedVms:
    """The VMs that owners with a limit `has` by id, and how many more each may have, `left`.

    `skipped`: somebody else just places jobs of one of them.
    """

    has: dict[int, set[int]] = field(default_factory=dict)
    left: dict[Key, int] = field(default_factory=dict)
    skipped: bool = False

    def copy(self) -> OwnedVms:
        """Return one that can be given out without touching this."""
        has = {owner: set(vms) for owner, vms in self.has.items()}
        return OwnedVms(has, dict(self.left), self.skipped)

    def more(self, owner_id: int, pool_id: int) -> int | None:
        """Return how many more VMs of a pool the owner may have; None: any number."""
        left = [self.left[key] for key in self._keys(owner_id, pool_id)]
        return max(0, min(left)) if left else None

    def only(self, owner_id: int, pool_id: int) -> Collection[int] | None:
        """Return the VMs to which the owner's jobs may go, of a pool; None: to any of it."""
        if owner_id not in self.has or self.more(owner_id, pool_id) != 0:
            return None
        return self.has[owner_id]

    def take(self, owner_id: int, pool_id: int, vm_id: int) -> None:
        """Count a VM that the owner gets something on."""
        mine = self.has.get(owner_id)
        if mine is None or vm_id in mine:
            return
        mine.add(vm_id)
        for key in self._keys(owner_id, pool_id):
            self.left[key] -= 1

    def _keys(self, owner_id: int, pool_id: int) -> list[Key]:
        return [key for key in ((owner_id, None), (owner_id, pool_id)) if key in self.left]
