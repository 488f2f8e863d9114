"""Floating IPs of VMs: given when a VM has its port, taken back before it goes."""

from __future__ import annotations

import logging
from typing import Any

from remuda.errors import TransientProviderError
from remuda.workers.providers.openstack.clients import Client
from remuda.workers.providers.openstack.errors import status_of, told

__all__ = ["give", "take_back"]

log = logging.getLogger(__name__)


def give(client: Client, network: str, server_id: str) -> str | None:
    """Return the floating IP of a server, made if it has none; None while it has no port.

    Neutron gives a port one only, so of two who ask at once one is refused and finds the other's.
    """
    mark = _mark(server_id)
    with told("for the ports of a VM"):
        port = next(iter(client.api.network.ports(device_id=server_id)), None)
    if port is None:
        return None
    with told("for floating IPs"):
        outside = client.api.network.find_network(network, ignore_missing=False)
        known = _of(client, mark)
    if known:
        return str(known[0].floating_ip_address)
    try:
        with told("for a floating IP"):
            made = client.api.network.create_ip(
                floating_network_id=outside.id, port_id=port.id, description=mark
            )
            return str(made.floating_ip_address)
    except TransientProviderError as error:
        if status_of(error.__cause__) != 409:
            raise
    log.info("somebody else gives %s its floating IP", server_id)
    with told("for floating IPs"):
        found = next(iter(client.api.network.ips(port_id=port.id)), None)
    return str(found.floating_ip_address) if found is not None else None


def take_back(client: Client, server_id: str) -> None:
    """Release the floating IPs that a server was given; harmless when there are none."""
    with told("to release a floating IP"):
        for one in _of(client, _mark(server_id)):
            client.api.network.delete_ip(one.id, ignore_missing=True)


def _of(client: Client, mark: str) -> list[Any]:
    return list(client.api.network.ips(description=mark))


def _mark(server_id: str) -> str:
    return f"remuda {server_id}"
