"""What every provider must do.

A package that adds a provider runs this suite on it:

    from remuda.testing import ProviderContract

    class TestMine(ProviderContract):
        @pytest.fixture
        def provider(self, pool_settings):
            provider = MyProvider(Settings()).of_pool(pool_settings)
            yield provider
            for vm in provider.list(""):
                provider.terminate(vm.provider_id)

It must be able to make three VMs; no other VM may be there. Where there can be machines of others,
override the fixture `canary` too, so that it is seen that they are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from remuda.errors import BadInput, PermanentProviderError
from remuda.testing.place import wait_until
from remuda.workers.providers.base import DEADLINES_S, Provider, VmDescription, VmSpec


class ProviderContract:
    """The contract of `Provider`. Override `provider`, and `pool_settings` if it needs any."""

    patience_s: ClassVar[float] = 20.0  # what making or removing a VM may take

    @pytest.fixture
    def pool_settings(self) -> dict[str, Any]:
        """Give settings of a pool that the provider accepts."""
        return {}

    @pytest.fixture
    def provider(self, pool_settings: dict[str, Any]) -> Iterator[Provider]:
        """Give the provider, without VMs, and remove what it has made."""
        raise NotImplementedError("override the fixture `provider`")

    @pytest.fixture
    def canary(self, provider: Provider) -> tuple[str, Callable[[], object]] | None:
        """Give a machine that is none of Remuda's: its id, and what tells all that it is.

        None: nobody else has machines there.
        """
        return None

    def spec(self, name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
        """Return what VM is wanted."""
        return VmSpec(name, pool, 2, heartbeat_s=0.2, **more)

    def only(self, provider: Provider, vm_id: str) -> VmDescription:
        """Return what is known of a VM that is there."""
        found = provider.describe([vm_id])
        assert list(found) == [vm_id]
        return found[vm_id]

    def wait_running(self, provider: Provider, vm_id: str) -> VmDescription:
        """Return the description of a VM once it runs."""

        def running() -> VmDescription | None:
            vm = self.only(provider, vm_id)
            return vm if vm.state == "running" else None

        vm = wait_until(running, f"{vm_id} runs", patience_s=self.patience_s)
        assert vm is not None
        return vm

    def wait_gone(self, provider: Provider, vm_id: str) -> None:
        """Wait until nothing is known of a VM, or that it is gone."""

        def gone() -> bool:
            found = provider.describe([vm_id]).get(vm_id)
            return found is None or found.state == "gone"

        wait_until(gone, f"{vm_id} is gone", patience_s=self.patience_s)

    def test_a_vm_from_spawn_to_termination(self, provider: Provider) -> None:
        vm_id = provider.spawn(self.spec(), "token-1")
        vm = self.wait_running(provider, vm_id)
        assert (vm.provider_id, vm.token) == (vm_id, "token-1")
        assert vm.address
        assert provider.list("sim") == [vm]
        provider.terminate(vm_id)
        self.wait_gone(provider, vm_id)
        assert [vm for vm in provider.list("sim") if vm.state != "gone"] == []

    def test_the_same_token_is_the_same_vm(self, provider: Provider) -> None:
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(lambda _: provider.spawn(self.spec(), "token-1"), range(4)))
        assert len(set(ids)) == 1
        assert provider.spawn(self.spec(), "token-1") == ids[0]
        assert len(provider.list("sim")) == 1

    def test_other_tokens_are_other_vms_even_of_one_name(self, provider: Provider) -> None:
        ids = {provider.spawn(self.spec(), token) for token in ("12345678-a", "12345678-b", "x")}
        assert len(ids) == 3
        assert {vm.token for vm in provider.list("sim")} == {"12345678-a", "12345678-b", "x"}

    def test_vms_are_listed_by_pool(self, provider: Provider) -> None:
        one = provider.spawn(self.spec("a", "one"), "1")
        two = provider.spawn(self.spec("b", "two"), "2")
        assert [vm.provider_id for vm in provider.list("one")] == [one]
        # Told, so that those of other installations in the same account are known for such.
        every = provider.list("")
        assert {vm.provider_id: vm.pool for vm in every} == {one: "one", two: "two"}
        assert self.only(provider, two).pool == "two"
        assert provider.list("three") == []

    def test_what_others_have_is_left_alone(
        self, provider: Provider, canary: tuple[str, Callable[[], object]] | None
    ) -> None:
        """It is in no pool, has no token, and stays as it is whatever is asked for."""
        other, look = canary or ("none-12345678", lambda: None)
        before = look()
        kept = provider.spawn(self.spec(), "1")
        assert [vm.provider_id for vm in provider.list("sim")] == [kept]
        assert all(not (vm.token or vm.pool) for vm in provider.list("") if vm.provider_id != kept)
        with suppress(PermanentProviderError):
            provider.terminate(other)
        provider.terminate(kept)
        self.wait_gone(provider, kept)
        assert look() == before

    @pytest.mark.parametrize("vm_id", ["", "none-12345678", "..", "../vms", ".trash-1", "/", "a/b"])
    def test_what_is_unknown_is_gone(self, provider: Provider, vm_id: str) -> None:
        kept = provider.spawn(self.spec(), "1")
        assert provider.describe([vm_id]) == {}
        provider.terminate(vm_id)
        assert self.only(provider, kept).state in ("pending", "running")

    def test_termination_may_be_repeated_and_raced(self, provider: Provider) -> None:
        vm_id = provider.spawn(self.spec(), "1")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: provider.terminate(vm_id), range(4)))
        provider.terminate(vm_id)
        self.wait_gone(provider, vm_id)

    def test_what_is_known_is_told_beside_what_is_not(self, provider: Provider) -> None:
        vm_id = provider.spawn(self.spec(), "1")
        assert list(provider.describe(["none-12345678", vm_id, vm_id, "../x"])) == [vm_id]
        assert provider.describe([]) == {}

    def test_a_name_is_no_path(self, provider: Provider) -> None:
        vm_id = provider.spawn(self.spec("../../up"), "1")
        assert ".." not in vm_id
        assert self.only(provider, vm_id).token == "1"
        provider.terminate(vm_id)
        self.wait_gone(provider, vm_id)

    def test_a_vm_that_is_well_passes_and_is_released(self, provider: Provider) -> None:
        vm_id = provider.spawn(self.spec(), "1")
        provider.livecheck(vm_id, self.wait_running(provider, vm_id))
        provider.release(vm_id)
        assert self.only(provider, vm_id).state == "running"

    def test_a_price_is_one_or_not_known(self, provider: Provider) -> None:
        price = provider.price(self.spec())
        assert price is None or 0 <= price < 1e9
        assert provider.list("") == []  # asking makes nothing
        vm_id = provider.spawn(self.spec(), "1")
        told = self.only(provider, vm_id).price
        assert told is None or 0 <= told < 1e9

    def test_every_call_has_a_deadline(self, provider: Provider) -> None:
        for call in DEADLINES_S:
            assert 0 < provider.deadline_s(call) <= 2 * 86_400 + 3600

    def test_settings_are_checked(self, provider: Provider, pool_settings: dict[str, Any]) -> None:
        provider.validate(pool_settings)
        with pytest.raises(BadInput, match="no_such_setting"):
            provider.validate({**pool_settings, "no_such_setting": 1})
