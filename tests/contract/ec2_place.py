"""Where the ec2 provider is tested: moto, keys, faults."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.workers.providers import VmSpec, get_provider
from remuda.workers.providers.ec2 import Ec2Provider
from tests.ec2 import Ec2Faults, faults
from tests.sshd import keygen
from tests.stores import moto_server

IMAGE = "ami-0123456789abcdef0"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "pool_key"
    keygen(path)
    return path


@pytest.fixture
def ours(endpoint: str, key_file: Path) -> dict[str, Any]:
    return {
        "region": "us-east-1",
        "endpoint_url": endpoint,
        "instance_type": "t3.small",
        "key_file": str(key_file),
    }


@pytest.fixture
def pool_settings(ours: dict[str, Any]) -> dict[str, Any]:
    return ours


@pytest.fixture
def provider(ours: dict[str, Any], endpoint: str) -> Ec2Provider:
    urllib.request.urlopen(f"{endpoint}/moto-api/reset", b"").close()
    made = get_provider("ec2", Settings(), ours)
    assert isinstance(made, Ec2Provider)
    made.client.forget_all()
    return made


@pytest.fixture
def fault(provider: Ec2Provider) -> Iterator[Ec2Faults]:
    with faults(provider.client.api) as made:
        yield made


def spec(name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
    return VmSpec(name, pool, 2, **{"image": IMAGE, **more})


def subnets(provider: Ec2Provider) -> list[str]:
    found = provider.client.api.describe_subnets()["Subnets"]
    return sorted(subnet["SubnetId"] for subnet in found)[:3]


def instances(provider: Ec2Provider) -> list[dict[str, Any]]:
    held = provider.client.api.describe_instances()["Reservations"]
    return [i for r in held for i in r["Instances"] if i["State"]["Name"] != "terminated"]
