"""Where the openstack provider is tested: a cloud, keys, servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.exceptions import BadRequestException

from remuda.config import Settings
from remuda.testing import wait_until
from remuda.workers.providers import VmSpec, get_provider
from remuda.workers.providers.openstack import OpenstackProvider
from tests.openstack.around import clouds_yaml
from tests.openstack.fake import FakeCloud, fake_cloud
from tests.sshd import keygen
from tests.stores import environment

REAL = os.environ.get("REMUDA_TEST_NOVA", "")
PATIENCE_S = 120.0 if REAL else 20.0  # the real one does all of a cloud's work in one thread
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "pool_key"
    keygen(path)
    return path


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return REAL or str(request.getfixturevalue("fake").url)


@pytest.fixture
def ours(key_file: Path) -> dict[str, Any]:
    return {
        "cloud": "test",
        "flavor": "m1.small",
        "networks": ["private"],
        "key_file": str(key_file),
    }


@pytest.fixture
def provider(ours: dict[str, Any], url: str, tmp_path: Path) -> Iterator[OpenstackProvider]:
    (tmp_path / "clouds.yaml").write_text(clouds_yaml(url))
    with environment(OS_CLIENT_CONFIG_FILE=str(tmp_path / "clouds.yaml")):
        made = get_provider("openstack", Settings(), ours)
        assert isinstance(made, OpenstackProvider)
        yield made
        compute = made.client.api.compute
        for server in list(compute.servers()):
            compute.delete_server(server.id)

        def none_left() -> bool:
            try:
                return not list(compute.servers())
            except BadRequestException:  # what a page ended with was deleted before the next
                return False

        wait_until(none_left, "none is left", patience_s=PATIENCE_S)


def spec(name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
    return VmSpec(name, pool, 2, **{"image": "cirros", **more})


def servers(provider: OpenstackProvider) -> list[Any]:
    return list(provider.client.api.compute.servers())


def running(provider: OpenstackProvider, vm_id: str) -> Any:
    vm = provider.describe([vm_id])[vm_id]
    return vm if vm.state == "running" and vm.address else None
