"""What spot instances cost: EC2's price history, asked seldom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from remuda.errors import ProviderError
from remuda.workers.providers.ec2.clients import Client
from remuda.workers.providers.ec2.errors import told

__all__ = ["AGE_S", "spot_prices", "spot_prices_of"]

log = logging.getLogger(__name__)
AGE_S = 300.0  # for so long a price is taken for the present one
_SYSTEMS = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"]


def spot_prices(client: Client, instance_type: str) -> dict[str, float]:
    """Return what a spot instance of the type costs for an hour (USD), by zone; raises ProviderError."""
    known = client.prices(instance_type, age_s=AGE_S)
    if known is not None:
        return known
    with told("for spot prices"):
        pages = client.api.get_paginator("describe_spot_price_history").paginate(
            InstanceTypes=[instance_type],
            ProductDescriptions=_SYSTEMS,
            StartTime=datetime.now(UTC),  # those that hold now
        )
        found = [row for page in pages for row in page["SpotPriceHistory"]]
    latest = {row["AvailabilityZone"]: row for row in sorted(found, key=lambda r: r["Timestamp"])}
    prices = {zone: float(row["SpotPrice"]) for zone, row in latest.items()}
    client.note_prices(instance_type, prices)
    return prices


def spot_prices_of(client: Client, instances: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the present price of each spot instance, by id; those that cannot be told are left out."""
    found: dict[str, float] = {}
    for instance in instances:
        if instance.get("InstanceLifecycle") != "spot":
            continue
        zone = (instance.get("Placement") or {}).get("AvailabilityZone")
        try:
            price = spot_prices(client, str(instance.get("InstanceType"))).get(str(zone))
        except ProviderError as error:
            log.warning("prices of spot instances cannot be told: %s", error.message)
            break
        if price is not None:
            found[instance["InstanceId"]] = price
    return found
