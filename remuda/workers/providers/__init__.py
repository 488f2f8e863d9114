"""Providers make and remove VMs of a kind; see base.py for the contract."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from remuda.config import Settings
from remuda.errors import BadInput
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState

__all__ = ["Provider", "VmDescription", "VmSpec", "VmState", "get_provider"]

GROUP = "remuda.providers"


def get_provider(
    kind: str, settings: Settings, pool_settings: Mapping[str, Any] | None = None
) -> Provider:
    """Return the provider of a kind: `local`, `static`, or one an installed package registered.

    With the settings of a pool it is that pool's (see `Provider.of_pool`).

    A package registers something to call with the Settings, such as a Provider subclass, as an
    entry point of the group `remuda.providers`. Raises BadInput, naming the known kinds, for any
    other.
    """
    if kind == "local":
        from remuda.workers.providers.local import LocalProvider

        return LocalProvider(settings)
    if kind == "static":
        from remuda.workers.providers.static import StaticProvider

        static = StaticProvider(settings)
        return static.of_pool(pool_settings) if pool_settings else static
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({"local", "static", *plugins}))
        raise BadInput(f"there is no provider {kind!r}", hint=f"known: {known}")
    provider: Provider = plugins[kind].load()(settings)
    return provider.of_pool(pool_settings) if pool_settings else provider
