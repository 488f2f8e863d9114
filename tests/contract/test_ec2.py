"""The ec2 provider over moto's server, with what that lacks put in by hooks (tests/ec2.py)."""

from __future__ import annotations

import base64
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.workers.providers import VmSpec
from remuda.workers.providers.ec2 import Ec2Provider
from remuda.workers.providers.ec2 import clients as ec2_clients
from remuda.workers.providers.firstboot import read_key
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
    subnets,
)
from tests.contract.strays import Canary, Strays
from tests.ec2 import Ec2Faults

__all__ = [
    "endpoint",
    "fault",
    "key_file",
    "ours",
    "pool_settings",
    "provider",
]


class TestEc2Contract(Strays):
    kind = "ec2"

    @pytest.fixture
    def canary(self, provider: Ec2Provider) -> Canary:
        made = provider.client.api.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)
        vm_id = made["Instances"][0]["InstanceId"]

        def look() -> object:
            found = {i["InstanceId"]: i for i in instances(provider)}
            return found[vm_id]["State"], found[vm_id].get("Tags")

        return vm_id, look

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
