"""The ec2 provider over moto's server, with what that lacks put in by hooks (tests/ec2.py)."""

from __future__ import annotations

import base64
import json
import logging
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import (
    BadInput,
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.testing import ProviderContract
from remuda.workers.providers import VmSpec, get_provider
from remuda.workers.providers.ec2 import Ec2Provider
from remuda.workers.providers.ec2 import clients as ec2_clients
from remuda.workers.providers.firstboot import read_key
from tests.ec2 import Ec2Faults, faults
from tests.sshd import keygen
from tests.stores import environment, moto_server

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


class TestEc2Contract(ProviderContract):
    @pytest.fixture
    def pool_settings(self, ours: dict[str, Any]) -> dict[str, Any]:
        return ours

    @pytest.fixture
    def provider(self, provider: Ec2Provider, fault: Ec2Faults) -> Ec2Provider:
        return provider

    def spec(self, name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
        return spec(name, pool, **more)


class TestLaunching:
    def test_what_is_asked(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        provider.client.api.create_key_pair(KeyName="ops")
        (subnet, *_), tags = subnets(provider), {"team": "physics"}
        more = {"subnets": [subnet], "key_name": "ops", "tags": tags, "public_ip": True}
        wide = provider.of_pool({**pool_settings, **more, "spot": True})
        vm_id = wide.spawn(spec(max_price=0.25), "token-1")
        (asked,) = fault.calls("RunInstances")
        assert asked["NetworkInterface.1.SubnetId"] == subnet
        assert asked["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.250000"
        assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert asked["MetadataOptions.HttpTokens"] == "required"
        (instance,) = instances(provider)
        assert (instance["InstanceId"], instance["InstanceLifecycle"]) == (vm_id, "spot")
        assert instance["SubnetId"] == subnet
        assert {t["Key"]: t["Value"] for t in instance["Tags"]} == {
            "Name": "vm-1",
            "remuda-pool": "sim",
            "remuda-token": "token-1",
            "team": "physics",
        }

    def test_user_data_and_address_agree_on_the_host_key(
        self, provider: Ec2Provider, key_file: Path
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        data = provider.client.api.describe_instance_attribute(
            InstanceId=vm_id, Attribute="userData"
        )["UserData"]["Value"]
        config = json.loads(base64.b64decode(data).decode().partition("\n")[2])
        address = provider.describe([vm_id])[vm_id].address
        assert address["host_key"] == config["ssh_keys"]["ed25519_public"]
        assert address["host_key"] == read_key(str(key_file)).host_key("token-1").public
        assert address["key_file"] == str(key_file)
        assert config["users"][0]["name"] == address["user"] == "remuda"

    def test_a_launch_template_may_have_the_image_and_the_type(
        self, pool_settings: dict[str, Any], provider: Ec2Provider
    ) -> None:
        data = {"ImageId": "ami-11111111", "InstanceType": "m5.large"}
        provider.client.api.create_launch_template(
            LaunchTemplateName="lean", LaunchTemplateData=data
        )
        settings = {**pool_settings, "launch_template": "lean"}
        del settings["instance_type"]
        provider.of_pool(settings).spawn(spec(image="default"), "token-1")
        (instance,) = instances(provider)
        assert (instance["ImageId"], instance["InstanceType"]) == ("ami-11111111", "m5.large")

    def test_an_answer_that_was_lost_costs_nothing(
        self, provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        fault.lost = 1  # botocore asks again
        vm_id = provider.spawn(spec(), "token-1")
        assert len(fault.calls("RunInstances")) == 2
        assert [i["InstanceId"] for i in instances(provider)] == [vm_id]

    def test_no_answer_at_all_leaves_what_is_found_again(
        self, provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        fault.lost = ec2_clients.TRIES
        with pytest.raises(
            TransientProviderError, match=r"does not answer.* to launch vm-1"
        ) as caught:
            provider.spawn(spec(), "token-1")
        assert not caught.value.made_nothing
        (left,) = provider.list("sim")
        assert left.token == "token-1"
        assert provider.spawn(spec(), "token-1") == left.provider_id

    def test_settings_that_changed_meanwhile_launch_nothing_more(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        fault.hidden.add(vm_id)
        other = provider.of_pool({**pool_settings, "instance_type": "t3.large"})
        with pytest.raises(TransientProviderError, match="IdempotentParameterMismatch") as caught:
            other.spawn(spec(), "token-1")
        assert not caught.value.made_nothing
        fault.hidden.clear()
        assert other.spawn(spec(), "token-1") == vm_id

    @pytest.mark.parametrize("code", ["RequestLimitExceeded", "Unavailable", "InternalError"])
    def test_what_passes_is_asked_again(
        self, provider: Ec2Provider, fault: Ec2Faults, monkeypatch: pytest.MonkeyPatch, code: str
    ) -> None:
        monkeypatch.setattr("botocore.endpoint.time.sleep", lambda s: None)
        refuse = [code] * 2
        fault.refuse = lambda action, _: refuse.pop() if refuse and action == "RunInstances" else ""
        assert provider.spawn(spec(), "token-1")
        refuse += [code] * 10
        with pytest.raises(TransientProviderError, match=code) as caught:
            provider.spawn(spec(), "token-2")
        assert not caught.value.made_nothing
        assert len(fault.calls("RunInstances")) == 3 + ec2_clients.TRIES

    @pytest.mark.parametrize("image", ["default", "debian-12", "ami-xyz", "../x"])
    def test_an_image_that_is_none_is_not_asked_for(
        self, provider: Ec2Provider, fault: Ec2Faults, image: str
    ) -> None:
        with pytest.raises(ImageError) as caught:
            provider.spawn(spec(image=image), "token-1")
        assert (caught.value.made_nothing, fault.calls("RunInstances")) == (True, [])

    def test_a_limit_of_price_is_for_spot(self, provider: Ec2Provider) -> None:
        with pytest.raises(PermanentProviderError, match="max_price is for spot"):
            provider.spawn(spec(max_price=1.0), "token-1")

    def test_user_data_over_the_limit_or_a_bad_key_asks_nothing(
        self,
        pool_settings: dict[str, Any],
        provider: Ec2Provider,
        fault: Ec2Faults,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        big = tmp_path / "big"
        big.write_text("#!/bin/sh\n# secret\n" * 1000)
        for more, why in (
            ({"user_data_file": str(big)}, r"bytes, the cloud takes at most 16384"),
            ({"key_file": str(tmp_path / "none")}, "cannot read the key file"),
        ):
            with pytest.raises(PermanentProviderError, match=why) as caught:
                provider.of_pool({**pool_settings, **more}).spawn(spec(), "token-1")
            assert caught.value.made_nothing
            assert "secret" not in str(caught.value)
        assert fault.asked == []

    def test_nothing_secret_is_logged(
        self, provider: Ec2Provider, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, logger="remuda")
        provider.spawn(spec(), "token-1")
        provider.list("")
        assert "PRIVATE" not in caplog.text
        assert "UserData" not in caplog.text


class TestPlaces:
    @pytest.fixture
    def wide(self, pool_settings: dict[str, Any], provider: Ec2Provider) -> Ec2Provider:
        return provider.of_pool({**pool_settings, "subnets": subnets(provider)})

    def test_the_first_with_capacity_is_taken(
        self, wide: Ec2Provider, fault: Ec2Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("botocore.endpoint.time.sleep", lambda s: None)
        one, two, _ = subnets(wide)
        fault.refuse = lambda _, p: (
            "InsufficientInstanceCapacity" if p.get("SubnetId") == one else ""
        )
        vm_id = wide.spawn(spec(), "token-1")
        (instance,) = instances(wide)
        assert (instance["InstanceId"], instance["SubnetId"]) == (vm_id, two)
        assert wide.spawn(spec(), "token-1") == vm_id

    def test_zones_are_places_too(
        self, pool_settings: dict[str, Any], provider: Ec2Provider, fault: Ec2Faults
    ) -> None:
        zones = ["us-east-1b", "us-east-1c"]
        fault.refuse = lambda _, p: (
            "Unsupported" if p.get("Placement.AvailabilityZone") == zones[0] else ""
        )
        provider.of_pool({**pool_settings, "zones": zones}).spawn(spec(), "token-1")
        (instance,) = instances(provider)
        assert instance["Placement"]["AvailabilityZone"] == zones[1]

    def test_none_has_capacity(self, wide: Ec2Provider, fault: Ec2Faults) -> None:
        fault.refuse = lambda action, _: "Unsupported" if action == "RunInstances" else ""
        with pytest.raises(CapacityError) as caught:
            wide.spawn(spec(), "token-1")
        assert caught.value.made_nothing
        assert len(fault.calls("RunInstances")) == 3

    def test_a_quota_holds_everywhere(self, wide: Ec2Provider, fault: Ec2Faults) -> None:
        fault.refuse = lambda action, _: "VcpuLimitExceeded" if action == "RunInstances" else ""
        with pytest.raises(QuotaExceeded):
            wide.spawn(spec(), "token-1")
        assert len(fault.calls("RunInstances")) == 1

    def test_capacity_that_comes_and_goes_leaves_one(
        self, wide: Ec2Provider, fault: Ec2Faults
    ) -> None:
        places = dict.fromkeys(subnets(wide), 2)

        def flaps(action: str, parameters: dict[str, str]) -> str:
            subnet = parameters.get("SubnetId", "")
            places[subnet] = places.get(subnet, 0) - 1
            return "Unsupported" if action == "RunInstances" and places[subnet] >= 0 else ""

        fault.refuse = flaps
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(wide.spawn, spec(), "token-1") for _ in range(4)]
            failed = [type(each.exception()) for each in asked if each.exception()]
        assert set(failed) <= {CapacityError}
        vm_id = wide.spawn(spec(), "token-1")
        assert [i["InstanceId"] for i in instances(wide)] == [vm_id]


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
