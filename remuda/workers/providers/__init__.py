"""Providers make and remove VMs of a kind; see base.py for the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remuda.config import Settings
from remuda.kinds import PROVIDERS, find_kind
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState

__all__ = ["Provider", "VmDescription", "VmSpec", "VmState", "get_provider"]

GROUP = PROVIDERS


def get_provider(
    kind: str, settings: Settings, pool_settings: Mapping[str, Any] | None = None
) -> Provider:
    """Return the provider of a kind: `libvirt`, `local`, `static`, `noop`, or one a package registered.

    With the settings of a pool it is that pool's (see `Provider.of_pool`).

    A package registers something to call with the Settings, such as a Provider subclass, as an
    entry point of the group `remuda.providers`. Raises BadInput, naming the known kinds, for any
    other.
    """
    provider: Provider = find_kind(GROUP, kind).load()(settings)
    return provider.of_pool(pool_settings) if pool_settings else provider
