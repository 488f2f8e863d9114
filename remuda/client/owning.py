"""What the client offers of owners: their weights, groups and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from remuda.checks import shown, text_of, whole
from remuda.client.pools import Pool, pool_row
from remuda.errors import BadInput
from remuda.models import lease_requests, owners

if TYPE_CHECKING:
    from remuda.client.context import Context

MAX_WEIGHT = 1_000_000.0
MAX_SLOTS = 2**31 - 1


class OwnerChanges(TypedDict, total=False):
    """What can be set of an owner; what is not given stays as it is. None: no limit, no group."""

    weight: float
    group: str | None
    max_vms: int | None
    max_pools: int | None
    max_slots: int | None
    max_queued: int | None


class Owning:
    """The part of the client that is about owners."""

    _context: Context

    def owners(self) -> list[dict[str, Any]]:
        """Return the owners by name.

        Each with its weight, group, members' number, quotas, decayed use in slot-seconds, what it has
        on machines and waiting, and its leases and VMs (of a group those of all its members).
        """
        half_life_s = self._context.settings.usage_half_life_s
        return self._context.read(lambda c: owners.listing(c, half_life_s=half_life_s))

    def set_owner(
        self, name: str, *, pool: Pool | str | None = None, **changes: Unpack[OwnerChanges]
    ) -> None:
        """Set an owner's weight, group or limits; the owner is made when new.

        `weight`: its part where several owners' jobs wait, against theirs. `group`: the owner whose
        weight and limits of slots, waiting jobs and VMs it shares with the other members.
        `max_slots`: slots its jobs may have, `max_queued`: jobs that may wait, `max_vms`: VMs that
        may serve it, its leases and jobs, at once; all of that `pool`, else in all together.
        `max_pools`: pools it may have before it can make no more; they count until they are deleted.
        What it has at the time stays.
        Raises BadInput, UnknownPool, Refused (of groups of groups).
        """
        owner = text_of("owner", name, least=1, most=200)
        pool_id = None if pool is None else int(pool_row(self._context, pool)["id"])
        checked = _checked(changes, in_pool=pool is not None)
        self._context.commit(lambda c: owners.change(c, owner, checked, pool_id=pool_id))
        if checked.keys() & {"max_vms", "group"}:
            self._context.commit(lease_requests.serve)


def _checked(changes: Mapping[str, Any], *, in_pool: bool) -> dict[str, Any]:
    possible = (
        {"max_slots", "max_queued", "max_vms"} if in_pool else set(OwnerChanges.__annotations__)
    )
    unknown = sorted(set(changes) - possible)
    if unknown:
        of = "of an owner in a pool" if in_pool else "of an owner"
        raise BadInput(f"{shown(unknown[0])} cannot be set {of}", hint=", ".join(sorted(possible)))
    if not changes:
        raise BadInput("nothing is to be set", hint=", ".join(sorted(possible)))
    checked = dict(changes)
    if "weight" in checked:
        checked["weight"] = _weight(checked["weight"])
    if checked.get("group") is not None:
        checked["group"] = text_of("group", checked["group"], least=1, most=200)
    limits = {
        "max_vms": 100_000,
        "max_pools": 100_000,
        "max_slots": MAX_SLOTS,
        "max_queued": MAX_SLOTS,
    }
    for limit, most in limits.items():
        if checked.get(limit) is not None:
            checked[limit] = whole(limit, checked[limit], least=0, most=most)
    return checked


def _weight(value: Any) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if not 0 < number <= MAX_WEIGHT:
        raise BadInput(
            f"weight must be a number, more than 0 and at most {MAX_WEIGHT:.0f}, not {shown(value)}"
        )
    return float(number)
