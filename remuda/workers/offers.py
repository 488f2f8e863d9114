"""Which offer a VM is made from: a pure function of the offers, what was refused lately, and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from remuda.offers import Offer

__all__ = ["ORDERS", "Choice", "Refusal", "choose", "refusal_s"]

# As they are listed; cheapest first; cheapest first and dearer ones only if a deadline asks for it.
ORDERS = ("listed", "cheapest", "deadline")
FIRST_S = 5.0
LONGEST_S = 300.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An offer without capacity or quota, not to be asked until `expires_at`."""

    offer: str
    reason: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Choice:
    """The offer to ask. None: none now; the first may be asked again `at` (None: nobody knows).

    `passed`: why each offer before it, or every one, was passed over.
    """

    offer: Offer | None
    at: datetime | None = None
    passed: tuple[str, ...] = ()


def choose(
    offers: Sequence[Offer],
    refusals: Sequence[Refusal],
    now: datetime,
    *,
    broken_images: Mapping[tuple[str, str], str] | None = None,
    order: str = "listed",
    deadline: datetime | None = None,
) -> Choice:
    """Return the first offer that was not refused lately and whose image is not in ERROR.

    `broken_images`: (provider, image) to what is wrong with it. `order`: a word of ORDERS. By
    `deadline` nothing dearer than an offer is taken that may be asked again before that time, when
    something must be asked for at the latest (None: that can wait).
    """
    if order != "listed":
        offers = sorted(offers, key=lambda offer: (offer.price is None, offer.price))
    refused = {r.offer: r for r in refusals if r.expires_at > now}
    passed: list[str] = []
    waits: list[datetime] = []
    for offer in offers:
        broken = (broken_images or {}).get((offer.provider, offer.image))
        if broken is not None:
            passed.append(f"{_called(offer)}image {offer.image} is in ERROR: {broken}")
        elif offer.name in refused:
            refusal = refused[offer.name]
            passed.append(f"{_called(offer)}{refusal.reason}")
            waits.append(refusal.expires_at)
        elif order == "deadline" and waits and (deadline is None or min(waits) < deadline):
            passed.append(f"{_called(offer)}dearer, and there is time to wait for a cheaper one")
        else:
            return Choice(offer, passed=tuple(passed))
    return Choice(None, at=min(waits, default=None), passed=tuple(passed))


def refusal_s(times: int) -> float:
    """Return for how long an offer is not asked that was refused `times` times in a row, in seconds."""
    return float(min(LONGEST_S, FIRST_S * 2 ** max(0, min(times, 20) - 1)))


def _called(offer: Offer) -> str:
    return f"offer {offer.name}: " if offer.name else ""
