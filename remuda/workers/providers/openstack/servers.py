"""Servers as Nova describes them, as VMs, and what Nova is asked for: pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from remuda.clouds import Openstack
from remuda.workers.providers.base import VmSpec, VmState

__all__ = [
    "MAX_USER_DATA_BYTES",
    "POOL",
    "TOKEN",
    "ips_of",
    "name_of",
    "oldest",
    "request",
    "size_of",
    "state_of",
    "token_of",
]

POOL, TOKEN = "remuda-pool", "remuda-token"
MAX_USER_DATA_BYTES = 49149  # 65,535 when it is encoded
_STATES: Mapping[str, VmState] = {
    "BUILD": "pending",
    "REBUILD": "pending",
    "ACTIVE": "running",
    "REBOOT": "running",
    "HARD_REBOOT": "running",
    "PASSWORD": "running",
    "MIGRATING": "running",
    "DELETED": "gone",
    "SOFT_DELETED": "gone",
}


def name_of(spec: VmSpec, token: str) -> str:
    """Return the name of the server: by its end it is found, whatever became of the call."""
    stem = re.sub(r"[^A-Za-z0-9-]", "-", spec.name)[:40].strip("-") or "vm"
    return f"{stem}-{_digest(token)}"


def pattern_of(token: str) -> str:
    """Return the pattern of names that Nova is to look for."""
    return f"-{_digest(token)}$"


def request(
    settings: Openstack,
    spec: VmSpec,
    token: str,
    *,
    zone: str,
    flavor_id: str,
    image_id: str,
    network_ids: tuple[str, ...],
    user_data: bytes,
) -> dict[str, Any]:
    """Return the attributes of the server to make."""
    asked: dict[str, Any] = {
        "name": name_of(spec, token),
        "flavor_id": flavor_id,
        "image_id": image_id,
        "networks": [{"uuid": one} for one in network_ids] or "auto",
        "metadata": {**settings.tags, POOL: spec.pool[:255], TOKEN: token[:255]},
        "user_data": base64.b64encode(user_data).decode(),
    }
    if zone:
        asked["availability_zone"] = zone
    if settings.security_groups:
        asked["security_groups"] = [{"name": name} for name in settings.security_groups]
    if settings.key_name:
        asked["key_name"] = settings.key_name
    if settings.config_drive is not None:
        asked["config_drive"] = settings.config_drive
    return asked


def token_of(server: Any) -> str:
    """Return the token of the VM, "" if it is none of ours."""
    return str((server.metadata or {}).get(TOKEN, ""))


def size_of(server: Any) -> tuple[int | None, int | None]:
    """Return the cores and bytes of memory that its flavor has; None where Nova does not say."""
    flavor = server.flavor
    return (flavor.vcpus or None, (flavor.ram or 0) << 20 or None) if flavor else (None, None)


def pool_of(server: Any) -> str:
    """Return the pool of the VM, "" if it is none of ours."""
    return str((server.metadata or {}).get(POOL, ""))


def state_of(server: Any) -> VmState:
    """Return the state of the VM; one in ERROR is not running, and not gone either."""
    if str(server.task_state or "") == "deleting":
        return "stopped"
    return _STATES.get(str(server.status), "stopped")


def ips_of(server: Any) -> tuple[str | None, str | None]:
    """Return the private and the public IP, IPv4 before IPv6; a public one is floating or told so."""
    found: dict[str, list[tuple[int, str]]] = {"fixed": [], "floating": []}
    for network in (server.addresses or {}).values():
        for one in network:
            kind = "floating" if one.get("OS-EXT-IPS:type") == "floating" else "fixed"
            found[kind].append((int(one.get("version") or 4), str(one["addr"])))
    first = {kind: min(ips, key=lambda ip: ip[0])[1] for kind, ips in found.items() if ips}
    public = first.get("floating") or server.access_ipv4 or server.access_ipv6 or None
    return first.get("fixed"), public


def oldest(servers: list[Any]) -> Any:
    """Return the server that was made first: everybody chooses the same.

    Nova tells seconds, and lists the newest first: of one second the last in its list was first. So who
    has seen only its own is not contradicted by who comes just after.
    """
    return min(reversed(servers), key=lambda s: str(s.created_at))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]
