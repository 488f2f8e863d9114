"""What EC2 is asked to launch, and where: pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from remuda.clouds import Ec2
from remuda.errors import ImageError, PermanentProviderError
from remuda.workers.providers.base import VmSpec

__all__ = ["MAX_USER_DATA_BYTES", "POOL", "TOKEN", "Place", "places", "request"]

POOL, TOKEN = "remuda-pool", "remuda-token"
MAX_USER_DATA_BYTES = 16384  # before it is encoded
_IMAGE = re.compile(r"ami-[0-9a-f]{8,17}|resolve:ssm:[A-Za-z0-9/_.:-]{1,180}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is launched; both "": where EC2 likes."""

    subnet: str = ""
    zone: str = ""


def places(settings: Ec2) -> Iterator[Place]:
    """Return the places to try, in their order."""
    yield from (Place(subnet=subnet) for subnet in settings.subnets)
    yield from (Place(zone=zone) for zone in settings.zones)
    if not settings.subnets and not settings.zones:
        yield Place()


def request(
    settings: Ec2, spec: VmSpec, token: str, place: Place, user_data: bytes
) -> dict[str, Any]:
    """Return the arguments of RunInstances, equal for equal arguments; raises a ProviderError.

    The client token differs by place: EC2 refuses the same token with anything else changed.
    """
    asked: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": hashlib.sha256(
            f"{token}\0{place.subnet}\0{place.zone}".encode()
        ).hexdigest(),
        "UserData": user_data.decode(),  # botocore encodes it
        "TagSpecifications": _tags(settings, spec, token),
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        # A VM that powers itself off is to be gone, not to be paid for.
        "InstanceInitiatedShutdownBehavior": "terminate",
    }
    if settings.instance_type:
        asked["InstanceType"] = settings.instance_type
    if settings.launch_template:
        by = "Id" if settings.launch_template.startswith("lt-") else "Name"
        asked["LaunchTemplate"] = {
            f"LaunchTemplate{by}": settings.launch_template,
            "Version": settings.launch_template_version,
        }
    if spec.image != "default":
        if not _IMAGE.fullmatch(spec.image):
            raise ImageError(
                f"{spec.image[:80]!r} is no AMI", hint="ami-..., or resolve:ssm: and a parameter"
            )
        asked["ImageId"] = spec.image
    elif not settings.launch_template:
        raise ImageError("the pool has no image", hint="an AMI of its region, or a launch_template")
    if settings.key_name:
        asked["KeyName"] = settings.key_name
    if settings.instance_profile:
        by = "Arn" if settings.instance_profile.startswith("arn:") else "Name"
        asked["IamInstanceProfile"] = {by: settings.instance_profile}
    asked |= _network(settings, place) | _market(settings, spec)
    return asked


def _network(settings: Ec2, place: Place) -> dict[str, Any]:
    asked: dict[str, Any] = {"Placement": {"AvailabilityZone": place.zone}} if place.zone else {}
    if settings.public_ip is None:
        if place.subnet:
            asked["SubnetId"] = place.subnet
        if settings.security_groups:
            asked["SecurityGroupIds"] = list(settings.security_groups)
        return asked
    card: dict[str, Any] = {"DeviceIndex": 0, "AssociatePublicIpAddress": settings.public_ip}
    if place.subnet:
        card["SubnetId"] = place.subnet
    if settings.security_groups:
        card["Groups"] = list(settings.security_groups)
    return {**asked, "NetworkInterfaces": [card]}


def _market(settings: Ec2, spec: VmSpec) -> dict[str, Any]:
    if not settings.spot:
        if spec.max_price is not None:
            raise PermanentProviderError(
                "max_price is for spot instances", hint='set "spot": true in the same offer'
            )
        return {}
    options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    if spec.max_price is not None:
        options["MaxPrice"] = f"{spec.max_price:.6f}"
    return {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": options}}


def _tags(settings: Ec2, spec: VmSpec, token: str) -> list[dict[str, Any]]:
    tags = {**settings.tags, POOL: spec.pool, TOKEN: token, "Name": spec.name}
    listed = [{"Key": key, "Value": value[:256]} for key, value in tags.items()]
    kinds = ["instance", "volume", *(["spot-instances-request"] if settings.spot else [])]
    return [{"ResourceType": kind, "Tags": listed} for kind in kinds]
