"""Asking EC2 what there is, whole or not at all."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from remuda.errors import ProviderError, TransientProviderError
from remuda.workers.providers.ec2.clients import Client
from remuda.workers.providers.ec2.errors import code_of, told

__all__ = ["ID", "by_id", "spot_requests", "tagged"]

log = logging.getLogger(__name__)
ID = re.compile(r"i-[0-9a-f]{8,17}")
AT_ONCE = 1000  # ids in one question, instances in one page
VALUES = 200  # in one filter


def by_id(client: Client, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the instances that EC2 knows of these."""
    chunks = [list(ids[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)]
    return [instance for chunk in chunks for instance in _known(client, chunk)]


def _known(client: Client, ids: list[str]) -> list[dict[str, Any]]:
    """Ask by id, which EC2 refuses if it does not know one of them; then by filters."""
    try:
        with told("to describe instances"):
            return _pages(client, InstanceIds=ids)
    except TransientProviderError as error:
        if error.__cause__ is None or code_of(error.__cause__) != "InvalidInstanceID.NotFound":
            raise
    if len(ids) == 1:
        return []
    found: list[dict[str, Any]] = []
    for i in range(0, len(ids), VALUES):
        where = {"Name": "instance-id", "Values": ids[i : i + VALUES]}
        with told("to describe instances"):
            found += _pages(client, Filters=[where])
    return found


def tagged(client: Client, key: str, value: str = "") -> list[dict[str, Any]]:
    """Return the instances with a tag, of that value if it is not empty."""
    where = {"Name": "tag-key", "Values": [key]}
    if value:
        where = {"Name": f"tag:{key}", "Values": [_literal(value)]}
    with told("to list instances"):
        return _pages(client, Filters=[where], PaginationConfig={"PageSize": AT_ONCE})


def _pages(client: Client, **arguments: Any) -> list[dict[str, Any]]:
    pages = client.api.get_paginator("describe_instances").paginate(**arguments)
    return [i for page in pages for held in page["Reservations"] for i in held["Instances"]]


def spot_requests(client: Client, instances: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the requests of spot instances, by id; without them notices are not heard."""
    ids = sorted({i["SpotInstanceRequestId"] for i in instances if i.get("SpotInstanceRequestId")})
    found: dict[str, dict[str, Any]] = {}
    for i in range(0, len(ids), VALUES):
        where = {"Name": "spot-instance-request-id", "Values": ids[i : i + VALUES]}
        try:
            with told("to describe spot requests"):
                pages = client.api.get_paginator("describe_spot_instance_requests").paginate(
                    Filters=[where]
                )
                for page in pages:
                    for one in page["SpotInstanceRequests"]:
                        found[one["SpotInstanceRequestId"]] = one
        except ProviderError as error:
            log.warning("notices of interruption cannot be heard: %s", error)
    return found


def _literal(text: str) -> str:
    """Return a filter's value that matches only this text."""
    return re.sub(r"([\\*?])", r"\\\1", text)
