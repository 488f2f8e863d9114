"""What offers cost where only their provider knows: asked before a launch, remembered for a while."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from remuda.errors import BadInput, ProviderError
from remuda.models import launches
from remuda.offers import Offer
from remuda.tasks.providing import provider_for
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.base import VmSpec

__all__ = ["Prices", "priced"]

log = logging.getLogger(__name__)
AGE_S = 300.0  # for so long a price is taken for the present one
OLDEST_S = 3600.0  # for so long where a newer one cannot be had; then it is not known

Prices = Mapping[str, float]  # by the offers' names

_told: dict[str, tuple[float, float | None]] = {}
_lock = threading.Lock()


def prices_for(runtime: Runtime, vm_id: int) -> dict[str, float]:
    """Return the prices of the offers that a VM still to be asked for may come from, but fixed ones.

    Providers are asked outside of any transaction. What is not known is left out, never 0.
    """
    pool = runtime.transact(lambda c: launches.to_price(c, vm_id))
    if pool is None:
        return {}
    found = {}
    for offer in launches.offers_of_pool(pool):
        if offer.price is None:
            price = _price(runtime, pool, offer)
            if price is not None:
                found[offer.name] = price
    return found


def priced(offers: tuple[Offer, ...], prices: Prices) -> tuple[Offer, ...]:
    """Return the offers with the prices that only their providers know."""
    return tuple(
        replace(offer, price=prices[offer.name])
        if offer.price is None and offer.name in prices
        else offer
        for offer in offers
    )


def _price(runtime: Runtime, pool: Mapping[str, Any], offer: Offer) -> float | None:
    sizes = (pool["slots_per_vm"], pool["memory_bytes_per_vm"], pool["reserved_group"])
    asked = [offer.name, offer.provider, offer.settings, offer.image, sizes]
    key = json.dumps(asked, sort_keys=True)
    now = time.monotonic()
    with _lock:
        at, price = _told.get(key, (-OLDEST_S, None))
    if now - at <= AGE_S:
        return price
    try:
        provider = provider_for(runtime, offer.provider, offer.settings)
        if not provider.tells_prices:
            return None
        fresh = provider.price(_spec(pool, offer))
    except (ProviderError, BadInput) as error:
        log.warning("offer %s of pool %s: no price: %s", offer.name, pool["name"], error)
        return price if now - at <= OLDEST_S else None
    fresh = fresh if fresh is not None and 0 <= fresh <= 1e9 else None
    with _lock:
        if len(_told) > 10_000:
            _told.clear()
        _told[key] = (now, fresh)
    return fresh


def _spec(pool: Mapping[str, Any], offer: Offer) -> VmSpec:
    return VmSpec(
        name="",
        pool=pool["pool"],
        slots=pool["slots_per_vm"],
        memory_bytes=pool["memory_bytes_per_vm"],
        image=offer.image,
        settings=offer.settings,
        offer=offer.name,
        max_price=offer.max_price,
        reserved_group=pool["reserved_group"] or "",
    )
