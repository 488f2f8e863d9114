"""Asking OpenStack for servers and for what they are made of, whole or not at all."""

from __future__ import annotations

import re
from typing import Any

from remuda.errors import ImageError, ProviderError
from remuda.workers.providers.base import VmSpec
from remuda.workers.providers.openstack.clients import Client
from remuda.workers.providers.openstack.errors import status_of, told
from remuda.workers.providers.openstack.servers import pattern_of, state_of, token_of

__all__ = [
    "ID",
    "all_servers",
    "delete_server",
    "flavor_id",
    "image_id",
    "network_id",
    "server_of",
    "servers_named",
]

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def flavor_id(client: Client, name: str) -> str:
    """Return the id of a flavor given by name or id."""
    with told(f"for flavor {name}"):
        return str(client.api.compute.find_flavor(name, ignore_missing=False).id)


def image_id(client: Client, spec: VmSpec) -> str:
    """Return the id of an image given by name or id; raises ImageError."""
    if spec.image == "default":
        raise ImageError("the pool has no image", hint="the name or id of one in Glance")
    if ID.fullmatch(spec.image):
        return spec.image
    from openstack.exceptions import NotFoundException

    with told(f"for image {spec.image}"):
        try:
            return str(client.api.image.find_image(spec.image, ignore_missing=False).id)
        except NotFoundException:
            raise ImageError(f"OpenStack has no image {spec.image[:80]!r}") from None


def network_id(client: Client, name: str) -> str:
    """Return the id of a network given by name or id."""
    if ID.fullmatch(name):
        return name
    with told(f"for network {name}"):
        return str(client.api.network.find_network(name, ignore_missing=False).id)


def server_of(client: Client, server_id: str) -> Any:
    """Return a server, None if there is none."""
    from openstack.exceptions import NotFoundException

    with told("for a server"):
        try:
            server = client.api.compute.get_server(server_id)
        except NotFoundException:
            return None
    return None if state_of(server) == "gone" else server


def all_servers(client: Client, **query: Any) -> list[Any]:
    """Return the servers of the project, page by page."""
    with told("to list servers"):
        return list(client.api.compute.servers(**query))


def servers_named(client: Client, token: str) -> list[Any]:
    """Return the servers of a token."""
    found = [s for s in all_servers(client, name=pattern_of(token)) if token_of(s) == token]
    return [s for s in found if s.task_state != "deleting" and state_of(s) != "gone"]


def delete_server(client: Client, server_id: str) -> None:
    """Ask for a server's end; harmless if it is ending, or gone."""
    try:
        with told(f"to end {server_id}"):
            client.api.compute.delete_server(server_id, ignore_missing=True)
    except ProviderError as error:
        if status_of(error.__cause__) != 409:  # it is being ended already
            raise
