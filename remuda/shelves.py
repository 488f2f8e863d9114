"""The hosts that pools share: which of them may serve a pool, and to which group they are reserved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from remuda.errors import BadInput
from remuda.hosts import Host, hosts_of
from remuda.offers import offers_for

__all__ = ["FLEX", "RESERVED", "TYPES", "check_scheduling", "place_of", "serving", "shelf_of"]

FLEX, RESERVED = "flex", "reserved"
TYPES = (FLEX, "on_demand", RESERVED)


def shelf_of(
    provider: str, settings: Mapping[str, Any], offers: Sequence[Mapping[str, Any]]
) -> list[Host]:
    """Return the hosts a pool lists, itself or by its offers; raises BadInput."""
    listed = offers_for(offers, provider=provider, image="", settings=settings)
    found: dict[str, Host] = {}
    for offer in listed:
        if offer.provider == "static":
            found.update({host.name: host for host in hosts_of(offer.settings)})
    return list(found.values())


def serving(
    hosts: Iterable[Host], *, slots: int, memory_bytes: int | None, group: str | None
) -> frozenset[str]:
    """Return the names of the hosts that are big enough and of the group (None: of no group)."""
    return frozenset(
        host.name
        for host in hosts
        if host.group == (group or "")
        and (not host.cores or slots <= host.cores)
        and (not host.memory_bytes or (memory_bytes or 0) <= host.memory_bytes)
    )


def place_of(host: Host) -> tuple[str, int]:
    """Return what is one machine, whoever logs in there."""
    return host.address, host.port or 22


def check_scheduling(
    scheduling_type: str,
    group: str | None,
    *,
    provider: str,
    settings: Mapping[str, Any],
    offers: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse a scheduling type that a pool's hosts do not go with; raises BadInput."""
    if scheduling_type == RESERVED and group is None:
        raise BadInput(
            "reserved_group is missing: scheduling_type reserved is for a named group of hosts",
            hint='hosts=[{"address": "10.0.0.5", "group": "lab"}], reserved_group="lab"',
        )
    if scheduling_type != RESERVED and group is not None:
        raise BadInput(
            f"reserved_group goes with scheduling_type reserved only, not with {scheduling_type}"
        )
    providers = {
        offer.provider
        for offer in offers_for(offers, provider=provider, image="", settings=settings)
    }
    if scheduling_type == RESERVED and providers != {"static"}:
        raise BadInput(
            "scheduling_type reserved needs given hosts (provider static), "
            f"not VMs of {', '.join(sorted(providers - {'static'}))}"
        )
    if "static" not in providers:
        return
    hosts = shelf_of(provider, settings, offers)
    if not any(host.group == (group or "") for host in hosts):
        groups = ", ".join(sorted({host.group or "none" for host in hosts}))
        whose = f"of the reserved_group {group}" if group else "without a group"
        raise BadInput(
            f"hosts: none is {whose} (their groups: {groups})",
            hint="hosts of a group serve pools with scheduling_type reserved and that group only",
        )
