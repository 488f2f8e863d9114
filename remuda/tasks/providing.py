"""The providers as tasks call them: within deadlines, and no two threads with the same at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from remuda.tasks.runtime import Runtime
from remuda.workers.providers import get_provider
from remuda.workers.providers.base import Provider
from remuda.workers.providers.bounded import Bounded
from remuda.workers.vmpool import VMPool

_under_way: set[tuple[str, int]] = set()
_lock = threading.Lock()


def provider_for(runtime: Runtime, kind: str, settings: Mapping[str, Any]) -> Provider:
    """Return the provider of a kind, as a pool's settings have it, its calls within deadlines.

    Raises BadInput for an unknown kind, PermanentProviderError for settings that make none.
    """
    return Bounded(get_provider(kind, runtime.settings, settings))


def provider_of(runtime: Runtime, row: Mapping[str, Any]) -> Provider:
    """Return the provider of a VM, from its row (see `models.machines.vm_with_pool`)."""
    return provider_for(runtime, row["provider"], row["settings"])


def vm_pool(runtime: Runtime, row: Mapping[str, Any]) -> VMPool:
    """Return the view of a VM's pool and offer, from its row (see `vm_with_pool`), without a query."""
    return VMPool(
        row["pool_id"],
        provider_of(runtime, row),
        runtime.transact,
        offer=row["offer"],
        known=(row["pool_name"], row["pool"]),
    )


@contextmanager
def alone(what: str, vm_id: int) -> Iterator[bool]:
    """Have one thread of this process do `what` to a VM; gives False to all others meanwhile.

    Sweeps send again what takes long; that would but occupy more threads with the same.
    """
    with _lock:
        mine = (what, vm_id) not in _under_way
        _under_way.add((what, vm_id))
    try:
        yield mine
    finally:
        if mine:
            with _lock:
                _under_way.discard((what, vm_id))
