"""Providers make and remove VMs of a kind; see base.py for the contract."""

from __future__ import annotations

from importlib.metadata import entry_points

from remuda.config import Settings
from remuda.errors import BadInput
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState

__all__ = ["Provider", "VmDescription", "VmSpec", "VmState", "get_provider"]

GROUP = "remuda.providers"


def get_provider(kind: str, settings: Settings) -> Provider:
    """Return the provider of a kind: `local`, or one an installed package registered.

    A package registers something to call with the Settings, such as a Provider subclass, as an
    entry point of the group `remuda.providers`. Raises BadInput, naming the known kinds, for any
    other.
    """
    if kind == "local":
        from remuda.workers.providers.local import LocalProvider

        return LocalProvider(settings)
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({"local", *plugins}))
        raise BadInput(f"there is no provider {kind!r}", hint=f"known: {known}")
    provider: Provider = plugins[kind].load()(settings)
    return provider
