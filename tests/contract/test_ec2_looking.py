"""What the ec2 provider sees of its instances, and how it connects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import (
    BadInput,
    PermanentProviderError,
    ProviderAuthError,
    TransientProviderError,
)
from remuda.workers.providers import get_provider
from remuda.workers.providers.ec2 import Ec2Provider
from remuda.workers.providers.ec2 import clients as ec2_clients
from remuda.workers.providers.ec2.instances import cores_of
from tests.contract.ec2_place import (
    IMAGE,
    endpoint,
    fault,
    instances,
    key_file,
    ours,
    pool_settings,
    provider,
    spec,
)
from tests.ec2 import Ec2Faults, faults
from tests.stores import environment

__all__ = [
    "endpoint",
    "fault",
    "key_file",
    "ours",
    "pool_settings",
    "provider",
]


class TestLooking:
    def test_a_vm_that_is_not_shown_yet_is_pending(
        self, provider: Ec2Provider, fault: Ec2Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(provider.client, "now", lambda: clock[0])
        other = provider.spawn(spec(), "token-1")
        vm_id = provider.spawn(spec("vm-2"), "token-2")
        fault.hidden.add(vm_id)
        seen = provider.describe([vm_id, other, "i-00000000"])
        assert {key: vm.state for key, vm in seen.items()} == {vm_id: "pending", other: "running"}
        assert seen[other].cores is None  # moto does not say; EC2 does
        assert {vm.token for vm in provider.list("sim")} == {"token-1", "token-2"}
        assert provider.list("other") == []
        fault.refuse = lambda action, _: (
            "InvalidInstanceID.NotFound" if action == "TerminateInstances" else ""
        )
        with pytest.raises(TransientProviderError, match=r"InvalidInstanceID\.NotFound"):
            provider.terminate(vm_id)  # it runs, or soon will
        clock[0] = ec2_clients.NEW_S + 1
        assert list(provider.describe([vm_id, other])) == [other]
        provider.terminate(vm_id)  # nothing to end

    def test_many_are_asked_for_a_thousand_at_a_time(
        self, provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        fault.asked.clear()
        ids = [f"i-{n:017x}" for n in range(1500)]
        assert list(provider.describe([*ids, vm_id])) == [vm_id]
        sizes = [
            (
                len([k for k in p if k.startswith("InstanceId")]),
                len([k for k in p if ".Value." in k]),
            )
            for _, p in fault.asked
        ]
        by_filter = [(0, 200)] * 5
        assert sizes == [(1000, 0), *by_filter, (501, 0), (0, 200), (0, 200), (0, 101)]

    def test_a_list_has_all_pages(self, provider: Ec2Provider, fault: Ec2Faults) -> None:
        ids = {provider.spawn(spec(f"vm-{n}"), f"token-{n}") for n in range(5)}
        fault.asked.clear()
        paged = provider.client.api.get_paginator
        paginator = paged("describe_instances")
        small = type("Small", (), {"paginate": lambda _, **kw: _two(paginator, kw)})()
        provider.client.api.get_paginator = lambda name: small
        try:
            assert {vm.provider_id for vm in provider.list("sim")} == ids
        finally:
            provider.client.api.get_paginator = paged
        assert len(fault.calls("DescribeInstances")) == 3

    def test_silence_is_not_taken_for_gone(
        self,
        pool_settings: dict[str, Any],
        provider: Ec2Provider,
        fault: Ec2Faults,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("botocore.endpoint.time.sleep", lambda s: None)
        vm_id = provider.spawn(spec(), "token-1")
        fault.refuse = lambda *_: "UnauthorizedOperation"
        closed = provider.of_pool({**pool_settings, "endpoint_url": "http://127.0.0.1:9"})
        for call in ("describe", "list", "terminate"):
            about = [vm_id] if call == "describe" else vm_id
            with pytest.raises(ProviderAuthError):
                getattr(provider, call)(about)
            with pytest.raises(TransientProviderError, match="does not answer"):
                getattr(closed, call)(about)

    def test_what_ec2_says_of_cores(self) -> None:
        """As EC2 itself answers: what the operating system sees are threads."""
        assert cores_of({"CpuOptions": {"CoreCount": 4, "ThreadsPerCore": 2}}) == 8
        assert cores_of({"CpuOptions": {}}) is None
        assert cores_of({}) is None

    def test_states(self, provider: Ec2Provider) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        provider.client.api.stop_instances(InstanceIds=[vm_id])
        stopped = provider.describe([vm_id])[vm_id]
        assert (stopped.state, stopped.address) == ("stopped", {})
        provider.terminate(vm_id)
        assert provider.describe([vm_id])[vm_id].state == "gone"
        assert provider.list("sim") == []
        provider.terminate(vm_id)

    def test_what_is_not_ours_is_not_ended(self, provider: Ec2Provider) -> None:
        api = provider.client.api
        made = api.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"][0]
        with pytest.raises(PermanentProviderError, match="none of Remuda's"):
            provider.terminate(made["InstanceId"])
        assert [i["State"]["Name"] for i in instances(provider)] == ["running"]
        assert provider.list("") == []

    def test_a_key_that_is_lost_hides_addresses_but_nothing_else(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        blind = provider.of_pool({**pool_settings, "key_file": "/no/such/key"})
        (seen,) = blind.list("sim")
        assert (seen.provider_id, seen.state, seen.address) == (vm_id, "running", {})
        assert "cannot be reached" in caplog.text
        blind.terminate(vm_id)
        assert blind.list("sim") == []

    def test_spot_instances_cost_what_their_zone_does(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        assert provider.price(spec()) is None  # bought at a fixed price, which EC2 does not tell
        pool_settings = {**pool_settings, "instance_type": "t3.micro"}
        spot = provider.of_pool({**pool_settings, "spot": True})
        price = spot.price(spec())
        assert price is not None
        assert price > 0
        vm_id = spot.spawn(spec(), "token-1")
        (instance,) = instances(provider)
        zone = instance["Placement"]["AvailabilityZone"]
        assert spot.describe([vm_id])[vm_id].price == price
        assert len(fault.calls("DescribeSpotPriceHistory")) == 1  # it holds for a while
        there = spot.of_pool({**pool_settings, "spot": True, "zones": ["us-east-1x", zone]})
        assert there.price(spec()) == price
        nowhere = spot.of_pool({**pool_settings, "spot": True, "zones": ["us-east-1x"]})
        assert nowhere.price(spec()) is None
        provider.client.note_prices("t3.micro", {zone: 0.75, "us-east-1x": 2.0})
        assert there.price(spec()) == 2.0
        assert spot.describe([vm_id])[vm_id].price == 0.75
        plain = provider.spawn(spec("plain"), "token-2")
        assert provider.describe([plain])[plain].price is None

    def test_a_price_that_cannot_be_had_is_not_known(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        spot = provider.of_pool({**pool_settings, "spot": True, "instance_type": "t3.nano"})
        vm_id = spot.spawn(spec(), "token-1")
        fault.refuse = lambda action, _: "UnauthorizedOperation" if "Price" in action else ""
        assert spot.describe([vm_id])[vm_id].price is None
        with pytest.raises(ProviderAuthError):
            spot.price(spec())

    def test_a_spot_instance_that_is_taken_away_says_when(
        self, pool_settings: dict[str, Any], provider: Ec2Provider
    ) -> None:
        spot = provider.of_pool({**pool_settings, "spot": True})
        vm_id = spot.spawn(spec(), "token-1")
        marked = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        status = {"Code": "fulfilled", "UpdateTime": marked}

        def mark(parsed: dict[str, Any], **_: Any) -> None:
            for held in parsed["Reservations"]:
                for instance in held["Instances"]:
                    instance["SpotInstanceRequestId"] = "sir-1"

        def requests(parsed: dict[str, Any], **_: Any) -> None:
            one = {"SpotInstanceRequestId": "sir-1", "Status": status}
            parsed["SpotInstanceRequests"] = [one]

        events = provider.client.api.meta.events
        hooks = [("DescribeInstances", mark), ("DescribeSpotInstanceRequests", requests)]
        for name, hook in hooks:
            events.register(f"after-call.ec2.{name}", hook)
        try:
            assert spot.describe([vm_id])[vm_id].interruption_at is None
            status["Code"] = "marked-for-termination"
            seen = spot.describe([vm_id])[vm_id]
            assert seen.interruption_at == marked + timedelta(minutes=2)
            assert spot.list("sim") == [seen]
            with faults(provider.client.api) as fault:
                fault.refuse = lambda action, _: "UnauthorizedOperation" if "Spot" in action else ""
                assert spot.describe([vm_id])[vm_id].state == "running"
        finally:
            for name, hook in hooks:
                events.unregister(f"after-call.ec2.{name}", hook)


def _two(paginator: Any, arguments: dict[str, Any]) -> Any:
    return paginator.paginate(**{**arguments, "PaginationConfig": {"PageSize": 2}})


class TestConnecting:
    def test_missing_credentials_are_told(
        self, pool_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ec2_clients, "_clients", {})
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with environment(
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"), AWS_CONFIG_FILE=str(tmp_path / "no")
        ):
            lost = get_provider("ec2", Settings(), pool_settings)
            with pytest.raises(ProviderAuthError, match=r"credentials.*docs/ec2\.md") as caught:
                lost.spawn(spec(), "token-1")
            assert caught.value.made_nothing
            named = get_provider("ec2", Settings(), {**pool_settings, "profile": "none"})
            with pytest.raises(ProviderAuthError, match="profile"):
                named.list("")

    def test_threads_and_pools_share_a_client(
        self, pool_settings: dict[str, Any], provider: Ec2Provider
    ) -> None:
        other = provider.of_pool({**pool_settings, "instance_type": "m5.large"})
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: other.client, range(8)))
        assert {id(client) for client in found} == {id(provider.client)}
        assert provider.of_pool({**pool_settings, "region": "eu-west-1"}).client is not found[0]

    def test_without_boto3_its_extra_is_named(
        self, pool_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ec2_clients, "_clients", {})
        monkeypatch.setitem(__import__("sys").modules, "boto3", None)
        lacking = get_provider("ec2", Settings(), pool_settings)
        with pytest.raises(PermanentProviderError, match=r"boto3.*remuda\[ec2\]"):
            lacking.spawn(spec(), "token-1")

    def test_bad_settings_of_a_pool_are_told(self) -> None:
        with pytest.raises(PermanentProviderError, match="key_file is missing"):
            get_provider("ec2", Settings(), {"instance_type": "t3.small"})
        with pytest.raises(BadInput, match="instance_type is missing"):
            get_provider("ec2", Settings()).validate({"key_file": "/k"})
