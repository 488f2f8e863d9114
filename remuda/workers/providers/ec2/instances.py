"""Instances as EC2 describes them, as VMs: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from remuda.workers.providers.base import VmState
from remuda.workers.providers.ec2.launch import POOL, TOKEN

__all__ = ["interruption_of", "ips_of", "oldest", "state_of", "token_of"]

NOTICE = timedelta(minutes=2)  # from a spot instance's being marked to its end
_STATES: Mapping[str, VmState] = {
    "pending": "pending",
    "running": "running",
    "stopping": "stopped",
    "stopped": "stopped",
    "shutting-down": "stopped",  # not gone until EC2 says so
    "terminated": "gone",
}
_MARKED = ("marked-for-termination", "marked-for-stop")
_TAKEN = ("instance-terminated-", "instance-stopped-")
_BY_US = ("instance-terminated-by-user", "instance-stopped-by-user")
_REASONS = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")
_WHEN = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) GMT\)")


def token_of(instance: Mapping[str, Any]) -> str:
    """Return the token of the VM, "" if it is none of ours."""
    return _tag(instance, TOKEN)


def pool_of(instance: Mapping[str, Any]) -> str:
    """Return the pool of the VM, "" if it is none of ours."""
    return _tag(instance, POOL)


def _tag(instance: Mapping[str, Any], key: str) -> str:
    tags = instance.get("Tags") or ()
    return next((str(tag["Value"]) for tag in tags if tag["Key"] == key), "")


def state_of(instance: Mapping[str, Any]) -> VmState:
    """Return the state of the VM."""
    return _STATES.get(str(instance.get("State", {}).get("Name")), "pending")


def ips_of(instance: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return its private and its public IP."""
    return instance.get("PrivateIpAddress") or None, instance.get("PublicIpAddress") or None


def cores_of(instance: Mapping[str, Any]) -> int | None:
    """Return how many cores its operating system sees; None if EC2 does not say."""
    options = instance.get("CpuOptions") or {}
    found = int(options.get("CoreCount") or 0) * int(options.get("ThreadsPerCore") or 0)
    return found or None


def oldest(instances: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the instance that was launched first: everybody chooses the same."""
    return min(instances, key=lambda i: (i["LaunchTime"], i["InstanceId"]))


def interruption_of(
    instance: Mapping[str, Any], spot_request: Mapping[str, Any] | None
) -> datetime | None:
    """Return when EC2 takes, or took, a spot instance away; None if it does not."""
    status = (spot_request or {}).get("Status", {})
    code, when = str(status.get("Code", "")), status.get("UpdateTime")
    if isinstance(when, datetime):
        if code in _MARKED:
            return when + NOTICE
        if code.startswith(_TAKEN) and code not in _BY_US:
            return when
    if (instance.get("StateReason") or {}).get("Code") in _REASONS:
        told = _WHEN.search(str(instance.get("StateTransitionReason", "")))
        if told:
            return datetime.strptime(told[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return datetime.now(UTC).replace(microsecond=0)
    return None
