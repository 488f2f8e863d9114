"""Which policy rules a pool's size now, and which limit over several pools it is under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from remuda.config import Settings
from remuda.models import ceilings as models
from remuda.models import launches, preempting
from remuda.models.sizing import note_policy
from remuda.offers import offers_for
from remuda.policies import ElasticSettings, Policy, next_change, policy_at
from remuda.policy_rows import own_size, policies_of
from remuda.shelves import FLEX, shelf_of
from remuda.workers.ceilings import PoolUse, tightest
from remuda.workers.pool_snapshot import Ceiling


@dataclass(frozen=True, slots=True)
class Ruling:
    """`policy`: None, the pool's own size rules. `size` None: a fixed number of VMs.

    `is_new`: it did not rule at the last decision, or was changed since. `change`: when another
    takes over, and which.
    """

    policy: Policy | None
    size: ElasticSettings | None
    is_new: bool
    change: tuple[datetime, Policy | None] | None

    @property
    def name(self) -> str | None:
        """The policy's name."""
        return self.policy.name if self.policy is not None else None


def of_pool(pool: Mapping[str, Any], now: datetime) -> Ruling:
    """Return what rules a pool (its row); raises BadInput if its settings make no sense here."""
    policies = policies_of(pool["policies"]) if pool["policies"] else ()
    policy = policy_at(policies, now)
    name = policy.name if policy is not None else None
    until = pool["policy_changes_at"]
    is_new = name != pool["policy_name"] or (until is not None and until <= now)
    size = policy.size if policy is not None else own_size(pool)
    return Ruling(policy, size, is_new, next_change(policies, now))


def note(connection: Connection, pool: Mapping[str, Any], rules: Ruling) -> None:
    """Store what SQL has to know of what rules a pool, its row locked, unless it is there already."""
    policy = rules.policy
    columns = {
        "policy_name": rules.name,
        "policy_minimum_slots": policy.size.minimum_total_slots if policy else None,
        "policy_maximum_slots": policy.size.maximum_total_slots if policy else None,
        "policy_resize_period_s": policy.size.resize_period
        if policy and policy.kind == "queue"
        else None,
        "policy_changes_at": rules.change[0] if rules.change is not None else None,
    }
    if any(pool[name] != value for name, value in columns.items()):
        note_policy(connection, pool["id"], columns)


def lock_ceilings(connection: Connection, settings: Settings) -> frozenset[int]:
    """Where there are limits over several pools, have them sized by nobody else meanwhile.

    Returns the pools that can have no VM more for that reason.
    """
    if not _are_there(settings):
        return frozenset()
    models.lock(connection)
    found = models.usage(connection)
    uses = uses_of(found)
    rooms = {row["id"]: _tightest(row["id"], uses, settings) for row in found}
    return frozenset(
        row["id"]
        for row in found
        if (ceiling := rooms[row["id"]]) is not None and ceiling.room < row["slots_per_vm"]
    )


def ceiling_of(
    connection: Connection, pool: Mapping[str, Any], settings: Settings
) -> Ceiling | None:
    """Return the limit over several pools that leaves a pool (its row) least room, if there are any."""
    if pool["scheduling_type"] == FLEX:
        held = _held_for(connection, pool)
        if held is not None:
            return held
    if not _are_there(settings):
        return None
    return _tightest(pool["id"], uses_of(models.usage(connection)), settings)


def _held_for(connection: Connection, pool: Mapping[str, Any]) -> Ceiling | None:
    """Return what keeps a flex pool from the hosts it shares, while others' work waits for one."""
    mine = {host.name for host in shelf_of(pool["provider"], pool["settings"], pool["offers"])}
    if not mine:
        return None
    for other in preempting.waiting_for(connection, pool["id"]):
        theirs = shelf_of(other["provider"], other["settings"], other["offers"])
        if mine & {host.name for host in theirs}:
            why = f"its hosts, as pool {other['name']} waits for one, whose work goes first"
            return Ceiling("its hosts", 0, 0, why=why)
    return None


def is_shelf_full(connection: Connection, pool: Mapping[str, Any]) -> bool:
    """Return whether a pool (its row) pauses because others have the hosts it shares with them."""
    listed = offers_for(
        pool["offers"], provider=pool["provider"], image="", settings=pool["settings"]
    )
    static = {offer.name for offer in listed if offer.provider == "static"}
    return bool(static) and any(
        row["offer"] in static for row in launches.refusals(connection, pool["id"])
    )


def uses_of(found: Sequence[Mapping[str, Any]]) -> list[PoolUse]:
    """Return what pools use (rows of `remuda.models.ceilings.usage`) as deciders see it."""
    return [
        PoolUse(
            row["id"],
            row["used"],
            row["alive"],
            row["floor"],
            group=row["sizing_group"],
            flex=row["flex"],
            short=row["short"],
            leaving=row["leaving"],
        )
        for row in found
    ]


def _tightest(pool_id: int, uses: Sequence[PoolUse], settings: Settings) -> Ceiling | None:
    return tightest(
        pool_id, uses, most=settings.max_total_slots, of_groups=settings.group_max_slots
    )


def _are_there(settings: Settings) -> bool:
    return settings.max_total_slots is not None or bool(settings.group_max_slots)
