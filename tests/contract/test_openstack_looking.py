"""What the openstack provider tells of a cloud, page by page, and of addresses that come and go."""

from __future__ import annotations

from typing import Any

import pytest

from remuda.testing import wait_until
from remuda.workers.providers.openstack import OpenstackProvider
from tests.contract.openstack_place import (
    NOBODY,
    fake,
    key_file,
    ours,
    provider,
    running,
    spec,
    url,
)
from tests.openstack.fake import FakeCloud

__all__ = [
    "fake",
    "key_file",
    "ours",
    "provider",
    "url",
]

# What the SDK says of its own later versions.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


class TestLooking:
    def test_a_list_has_all_pages(self, provider: OpenstackProvider, fake: FakeCloud) -> None:
        fake.nova.page = 2
        ids = {provider.spawn(spec(f"vm-{n}"), f"token-{n}") for n in range(5)}
        assert {vm.provider_id for vm in provider.list("sim")} == ids
        assert set(provider.describe([*ids, *[NOBODY[:-2] + f"{n:02}" for n in range(9)]])) == ids

    def test_a_key_that_is_lost_hides_addresses_but_nothing_else(
        self, ours: dict[str, Any], provider: OpenstackProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        blind = provider.of_pool({**ours, "key_file": "/no/such/key"})
        (seen,) = blind.list("sim")
        assert (seen.provider_id, seen.address) == (vm_id, {})
        assert "cannot be reached" in caplog.text

    def test_a_floating_ip_comes_and_goes_with_its_vm(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        floats = provider.of_pool({**ours, "floating_network": "outside"})
        vm_id = floats.spawn(spec(), "token-1")
        vm = wait_until(lambda: running(floats, vm_id), "it runs")
        assert vm.public_ip == vm.address["address"] == "198.51.100.1"
        assert running(floats, vm_id) == vm
        assert len(fake.around.floating_ips) == 1
        floats.terminate(vm_id)
        assert fake.around.floating_ips == {}
        floats.terminate(vm_id)

    def test_a_floating_ip_of_a_vm_that_vanished_is_given_back(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        floats = provider.of_pool({**ours, "floating_network": "outside"})
        vm_id = floats.spawn(spec(), "token-1")
        wait_until(lambda: running(floats, vm_id), "it runs")
        fake.nova.servers.clear()
        assert floats.describe([vm_id]) == {}
        floats.terminate(vm_id)
        assert fake.around.floating_ips == {}
