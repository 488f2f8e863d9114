"""What offers cost where only their provider knows: asked before a launch, remembered for a while."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from remuda.errors import BadInput, ProviderError
from remuda.models import launches
from remuda.offers import Offer
from remuda.tasks.providing import provider_for
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.base import VmSpec

__all__ = ["Unasked", "offers_of", "unasked"]

log = logging.getLogger(__name__)
AGE_S = 300.0  # for so long a price is taken for the present one
OLDEST_S = 3600.0  # for so long where a newer one cannot be had; then it is not known


@dataclass(frozen=True, slots=True)
class _Told:
    """A price (None: not known), when it was told, and when it was last asked for."""

    price: float | None
    told_at: float
    asked_at: float


@dataclass(frozen=True, slots=True)
class Unasked:
    """A pool of whose offers some have no price that was asked for lately."""

    pool: Mapping[str, Any]
    offers: tuple[Offer, ...]


_told: dict[str, _Told] = {}
_lock = threading.Lock()


def offers_of(pool: Mapping[str, Any]) -> tuple[Offer, ...]:
    """Return a pool's offers with the prices that providers told; it asks nobody."""
    found = []
    for offer in launches.offers_of_pool(pool):
        told = _remembered(pool, offer)
        fresh = told is not None and time.monotonic() - told.told_at <= OLDEST_S
        if offer.price is None and told is not None and fresh:
            offer = replace(offer, price=told.price)
        found.append(offer)
    return tuple(found)


def unasked(runtime: Runtime, pool: Mapping[str, Any]) -> Unasked | None:
    """Return the offers to ask for the price of before a VM is made; None: there are none.

    It asks nobody either.
    """
    late = []
    for offer in launches.offers_of_pool(pool):
        if offer.price is not None:
            continue
        told = _remembered(pool, offer)
        if told is not None and time.monotonic() - told.asked_at <= AGE_S:
            continue
        try:
            if provider_for(runtime, offer.provider, offer.settings).tells_prices:
                late.append(offer)
        except (ProviderError, BadInput):
            continue  # asking for a VM will tell
    return Unasked(pool, tuple(late)) if late else None


def ask(runtime: Runtime, wanted: Unasked) -> None:
    """Ask the providers, outside of any transaction; what they do not know, or tell, is not known."""
    for offer in wanted.offers:
        before, now = _remembered(wanted.pool, offer), time.monotonic()
        try:
            provider = provider_for(runtime, offer.provider, offer.settings)
            price = provider.price(_spec(wanted.pool, offer))
            good = price is not None and 0 <= price <= 1e9
            told = _Told(price if good else None, now, now)
        except (ProviderError, BadInput) as error:
            log.warning("offer %s of pool %s: no price: %s", offer.name, wanted.pool["name"], error)
            told = replace(before, asked_at=now) if before is not None else _Told(None, now, now)
        with _lock:
            if len(_told) > 10_000:
                _told.clear()
            _told[_key(wanted.pool, offer)] = told


def _remembered(pool: Mapping[str, Any], offer: Offer) -> _Told | None:
    with _lock:
        return _told.get(_key(pool, offer))


def _key(pool: Mapping[str, Any], offer: Offer) -> str:
    sizes = (pool["slots_per_vm"], pool["memory_bytes_per_vm"], pool["reserved_group"])
    asked = [offer.name, offer.provider, offer.settings, offer.image, sizes]
    return json.dumps(asked, sort_keys=True)


def _spec(pool: Mapping[str, Any], offer: Offer) -> VmSpec:
    return VmSpec(
        name="",
        pool=pool["uuid"],
        slots=pool["slots_per_vm"],
        memory_bytes=pool["memory_bytes_per_vm"],
        image=offer.image,
        settings=offer.settings,
        offer=offer.name,
        max_price=offer.max_price,
        reserved_group=pool["reserved_group"] or "",
    )
