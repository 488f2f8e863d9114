"""Providers make and remove VMs of a kind; see base.py for the contract."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from remuda.config import Settings
from remuda.errors import BadInput
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState

__all__ = ["Provider", "VmDescription", "VmSpec", "VmState", "get_provider"]

GROUP = "remuda.providers"
_HERE = {
    "command": "remuda.workers.providers.command:CommandProvider",
    "ec2": "remuda.workers.providers.ec2:Ec2Provider",
    "libvirt": "remuda.workers.providers.libvirt:LibvirtProvider",
    "local": "remuda.workers.providers.local:LocalProvider",
    "noop": "remuda.workers.providers.noop:NoopProvider",
    "openstack": "remuda.workers.providers.openstack:OpenstackProvider",
    "static": "remuda.workers.providers.static:StaticProvider",
}


def get_provider(
    kind: str, settings: Settings, pool_settings: Mapping[str, Any] | None = None
) -> Provider:
    """Return the provider of a kind: `libvirt`, `local`, `static`, `noop`, or one a package registered.

    With the settings of a pool it is that pool's (see `Provider.of_pool`).

    A package registers something to call with the Settings, such as a Provider subclass, as an
    entry point of the group `remuda.providers`. Raises BadInput, naming the known kinds, for any
    other.
    """
    where = _HERE.get(kind)
    found = EntryPoint(kind, where, GROUP) if where else _plugin(kind)
    provider: Provider = found.load()(settings)
    return provider.of_pool(pool_settings) if pool_settings else provider


def _plugin(kind: str) -> EntryPoint:
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({*_HERE, *plugins}))
        raise BadInput(f"there is no provider {kind!r}", hint=f"known: {known}")
    return plugins[kind]
