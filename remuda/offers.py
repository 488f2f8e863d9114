"""What a pool's VMs may be made from: offers, tried in their order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remuda.checks import shown
from remuda.errors import BadInput

__all__ = ["MAX_OFFERS", "Offer", "offer_row", "offers_of"]

MAX_OFFERS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_KEYS = ("name", "provider", "image", "settings", "price", "max_price")
_MOST = 1e9


@dataclass(frozen=True, slots=True)
class Offer:
    """One way of having a VM made. `provider`, `image`: "" for the pool's own.

    `settings` are laid over the pool's: region, zone, flavor or whatever the provider knows.
    `price`: of one VM for an hour, in a currency that is the same for all of a pool's offers, None if
    it is not known. `max_price`: the most to pay, for what is sold at a changing price (spot).
    """

    name: str
    provider: str = ""
    image: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    price: float | None = None
    max_price: float | None = None


def offers_of(value: Any) -> tuple[Offer, ...]:
    """Return the offers that a list of mappings describes; raises BadInput naming the wrong key."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise BadInput(f"offers must be a list of mappings, not {shown(value)}")
    if len(value) > MAX_OFFERS:
        raise BadInput(f"there are {len(value)} offers; at most {MAX_OFFERS} are possible")
    offers = tuple(_offer(each, f"offers[{i}]") for i, each in enumerate(value))
    seen: dict[str, int] = {}
    for i, offer in enumerate(offers):
        if offer.name in seen:
            raise BadInput(f"offers[{i}] is called {offer.name!r} like offers[{seen[offer.name]}]")
        seen[offer.name] = i
    return offers


def offer_row(offer: Offer) -> dict[str, Any]:
    """Return an offer as the database keeps it: what is told, nothing else."""
    row: dict[str, Any] = {"name": offer.name}
    for key in _KEYS[1:]:
        told = getattr(offer, key)
        if told not in ("", None) and told != {}:
            row[key] = dict(told) if key == "settings" else told
    return row


def _offer(value: Any, what: str) -> Offer:
    if isinstance(value, Offer):
        value = offer_row(value)
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    unknown = sorted(str(key) for key in value if key not in _KEYS)
    if unknown:
        raise BadInput(
            f"{what} has no key {', '.join(unknown)[:200]}",
            hint=f"keys: {', '.join(_KEYS)}; what is the provider's stands under settings",
        )
    offer = Offer(
        name=_word(f"{what}.name", value.get("name"), _NAME),
        provider=_word(f"{what}.provider", value["provider"], _KIND)
        if value.get("provider")
        else "",
        image=_image(f"{what}.image", value.get("image")),
        settings=_settings(f"{what}.settings", value.get("settings")),
        price=_price(f"{what}.price", value.get("price")),
        max_price=_price(f"{what}.max_price", value.get("max_price")),
    )
    if offer.price is not None and offer.max_price is not None and offer.price > offer.max_price:
        raise BadInput(f"{what}: its price ({offer.price:g}) is above max_price")
    return offer


def _word(what: str, value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value:
        raise BadInput(
            f"{what} must be a short name, not {shown(value)}",
            hint="letters, digits, dots, slashes, dashes, underscores",
        )
    return value


def _image(what: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise BadInput(f"{what} must be a name, not {shown(value)}")
    return value


def _settings(what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    try:
        kept = json.dumps(dict(value), allow_nan=False)
        kept.encode()
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} cannot be kept as JSON: {error}") from None
    if "\\u0000" in kept or re.search(r"\\ud[89a-f]", kept):
        raise BadInput(f"{what} holds text that cannot be stored")
    return dict(value)


def _price(what: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
        raise BadInput(f"{what} must be a number from 0 up, not {shown(value)}")
    return float(value)


def offers_for(
    rows: Sequence[Mapping[str, Any]], *, provider: str, image: str, settings: Mapping[str, Any]
) -> tuple[Offer, ...]:
    """Return a pool's offers, from their rows, with all that they leave to the pool filled in.

    A pool that lists none has one, called "": itself.
    """
    listed = [Offer(**row) for row in rows] or [Offer("")]
    return tuple(
        Offer(
            name=offer.name,
            provider=offer.provider or provider,
            image=offer.image or image,
            settings={**settings, **offer.settings},
            price=offer.price,
            max_price=offer.max_price,
        )
        for offer in listed
    )
