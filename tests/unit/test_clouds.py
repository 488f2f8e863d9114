"""What a pool may say of a cloud, and what a cloud may say: pure."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import exceptions
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.clouds import CHECKS, Ec2, Login, ec2_of, openstack_of
from remuda.errors import (
    BadInput,
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.workers.providers.base import VmSpec
from remuda.workers.providers.ec2.errors import told
from remuda.workers.providers.ec2.instances import interruption_of, oldest, state_of
from remuda.workers.providers.ec2.launch import Place, places, request
from remuda.workers.providers.openstack import servers
from remuda.workers.providers.openstack.errors import of_fault
from tests.examples import examples

EC2 = {"key_file": "/keys/pool", "instance_type": "c7i.large"}
OPENSTACK = {"key_file": "/keys/pool", "flavor": "m1.small"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TestSettings:
    def test_little_is_enough(self) -> None:
        login = Login("/keys/pool")
        assert ec2_of(EC2) == Ec2(login, instance_type="c7i.large")
        assert (login.user, login.port, login.sudo) == ("remuda", 22, False)
        assert openstack_of(OPENSTACK).flavor == "m1.small"
        assert ec2_of({"key_file": "/k", "launch_template": "lt-1"}).instance_type == ""

    @pytest.mark.parametrize("kind", ["ec2", "openstack"])
    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            ({"key_file": ""}, "key_file is missing"),
            ({"key_file": 7}, "key_file must be text"),
            ({"key_file": "a\nb"}, "key_file must be one line"),
            ({"key_file": "x" * 5000}, "key_file has 5000 bytes"),
            ({"user": "root"}, "user cannot be 'root'"),
            ({"user": "a; rm -rf /"}, "user cannot be"),
            ({"user": "ü"}, "user cannot be"),
            ({"port": 0}, "port must be a whole number"),
            ({"port": "22"}, "port must be a whole number"),
            ({"sudo": 1}, "sudo must be true or false"),
            ({"zones": "a"}, "zones must be a list"),
            ({"zones": ["a", "a"]}, "zones has a name twice"),
            ({"zones": [""]}, "zones cannot have ''"),
            ({"zones": ["../a"]}, "zones cannot have"),
            ({"zones": [f"z{n}" for n in range(101)]}, "zones has 101 names"),
            ({"address": "both"}, "address must be one of public, private"),
            ({"region": "a b\0"}, "region must not hold a NUL"),
            ({"region": "x" * 10_000_000}, "region has 10000000 bytes"),
            ({"tags": ["a"]}, "tags must be a mapping"),
            ({"tags": {"remuda-token": "x"}}, "tags cannot have 'remuda-token'"),
            ({"tags": {"a": 1}}, r"tags\.a must be text"),
            ({"tags": {f"t{n}": "" for n in range(41)}}, "tags has 41 keys"),
            ({"secret_key": "x"}, "has no setting secret_key"),
        ],
    )
    def test_wrong_ones_are_named(self, kind: str, wrong: dict[str, Any], why: str) -> None:
        good = {"ec2": EC2, "openstack": OPENSTACK}[kind]
        with pytest.raises(BadInput, match=why) as caught:
            CHECKS[kind]({**good, **wrong})
        assert len(str(caught.value)) < 600

    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            ({"instance_type": ""}, "instance_type is missing"),
            ({"subnets": ["10.0.0.0/24"]}, "subnets must be ids such as subnet-"),
            ({"security_groups": ["default"]}, "security_groups must be ids such as sg-"),
            ({"subnets": ["subnet-1"], "zones": ["a"]}, "cannot both be given"),
            ({"endpoint_url": "ftp://x"}, "endpoint_url must be an http"),
            ({"endpoint_url": "http://me:secret@x"}, "without a password"),
            ({"endpoint_url": "http://x:port"}, "endpoint_url must be"),
            ({"launch_template_version": "latest"}, "launch_template_version cannot be"),
            ({"spot": "yes"}, "spot must be true or false"),
        ],
    )
    def test_wrong_ones_of_ec2(self, wrong: dict[str, Any], why: str) -> None:
        with pytest.raises(BadInput, match=why) as caught:
            ec2_of({**EC2, **wrong})
        assert "secret" not in str(caught.value)

    def test_a_flavor_is_needed(self) -> None:
        with pytest.raises(BadInput, match="flavor is missing"):
            openstack_of({"key_file": "/k"})

    @settings(max_examples=examples(50))
    @given(st.dictionaries(st.sampled_from([*EC2, "tags", "zones", "user"]), st.from_type(object)))
    def test_junk_is_refused_or_read(self, junk: dict[str, Any]) -> None:
        for check in CHECKS.values():
            with contextlib.suppress(BadInput):
                assert check(junk).login.key_file


class TestRequest:
    def test_it_is_the_same_for_the_same_vm_in_the_same_place(self) -> None:
        spec, cloud = VmSpec("vm", "p", 2, image="ami-12345678"), ec2_of(EC2)
        one = request(cloud, spec, "t", Place("subnet-1"), b"x")
        assert request(cloud, spec, "t", Place("subnet-1"), b"x") == one
        tokens = {
            request(cloud, spec, token, place, b"x")["ClientToken"]
            for token in ("t", "u")
            for place in (Place(), Place("subnet-1"), Place(zone="subnet-1"))
        }
        assert len(tokens) == 6
        assert {len(token) for token in tokens} == {64}

    def test_places(self) -> None:
        assert list(places(ec2_of(EC2))) == [Place()]
        cloud = ec2_of({**EC2, "subnets": ["subnet-2", "subnet-1"]})
        assert list(places(cloud)) == [Place("subnet-2"), Place("subnet-1")]

    def test_options(self) -> None:
        more = {
            "launch_template": "lt-1",
            "launch_template_version": "7",
            "instance_profile": "arn:aws:iam::1:instance-profile/x",
            "security_groups": ["sg-1"],
        }
        asked = request(ec2_of({**EC2, **more}), VmSpec("v", "p", 1), "t", Place(), b"")
        assert asked["LaunchTemplate"] == {"LaunchTemplateId": "lt-1", "Version": "7"}
        assert asked["IamInstanceProfile"] == {"Arn": more["instance_profile"]}
        assert asked["SecurityGroupIds"] == ["sg-1"]
        assert "ImageId" not in asked


def refused(code: str, status: int, retries: int = 0) -> ProviderError:
    about = {"HTTPStatusCode": status, "RetryAttempts": retries}
    said = "You are not. Encoded authorization failure message: " + "x" * 3000
    answer: Any = {"Error": {"Code": code, "Message": said}, "ResponseMetadata": about}
    with pytest.raises(ProviderError) as caught, told("to launch vm-1"):
        raise exceptions.ClientError(answer, "RunInstances")
    return caught.value


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "status", "kind", "nothing"),
        [
            ("InsufficientInstanceCapacity", 500, CapacityError, True),
            ("Server.InsufficientInstanceCapacity", 500, CapacityError, True),
            ("InsufficientFreeAddressesInSubnet", 400, CapacityError, True),
            ("Unsupported", 400, CapacityError, True),
            ("SpotMaxPriceTooLow", 400, CapacityError, True),
            ("MaxSpotInstanceCountExceeded", 400, QuotaExceeded, True),
            ("InstanceLimitExceeded", 400, QuotaExceeded, True),
            ("VcpuLimitExceeded", 400, QuotaExceeded, True),
            ("UnauthorizedOperation", 403, ProviderAuthError, True),
            ("AuthFailure", 401, ProviderAuthError, True),
            ("InvalidAMIID.NotFound", 400, ImageError, True),
            ("InvalidAMIID.Malformed", 400, ImageError, True),
            ("InvalidAMIID.Unavailable", 400, ImageError, True),
            ("InvalidSubnetID.NotFound", 400, PermanentProviderError, True),
            ("InvalidParameterValue", 400, PermanentProviderError, True),
            ("RequestLimitExceeded", 503, TransientProviderError, False),
            ("Throttling", 400, TransientProviderError, False),
            ("IdempotentParameterMismatch", 400, TransientProviderError, False),
            ("InternalError", 500, TransientProviderError, False),
            ("SomethingNew", 502, TransientProviderError, False),
        ],
    )
    def test_refusals_are_told_apart(
        self, code: str, status: int, kind: type[ProviderError], nothing: bool
    ) -> None:
        error = refused(code, status)
        assert (type(error), error.made_nothing) == (kind, nothing)
        assert error.message == f"EC2 refuses to launch vm-1: {code}: You are not."

    def test_after_a_try_without_answer_nothing_is_sure(self) -> None:
        assert not refused("UnauthorizedOperation", 403, retries=1).made_nothing
        assert refused("InsufficientInstanceCapacity", 500, retries=2).made_nothing

    @pytest.mark.parametrize(
        ("error", "kind", "nothing"),
        [
            (exceptions.NoCredentialsError(), ProviderAuthError, True),
            (exceptions.ProfileNotFound(profile="x"), ProviderAuthError, True),
            (
                exceptions.TokenRetrievalError(provider="sso", error_msg="x"),
                ProviderAuthError,
                True,
            ),
            (
                exceptions.CredentialRetrievalError(provider="x", error_msg="y"),
                TransientProviderError,
                True,
            ),
            (exceptions.NoRegionError(), PermanentProviderError, True),
            (exceptions.ParamValidationError(report="x"), PermanentProviderError, True),
            (exceptions.EndpointConnectionError(endpoint_url="x"), TransientProviderError, False),
            (exceptions.ReadTimeoutError(endpoint_url="x"), TransientProviderError, False),
            (exceptions.ConnectTimeoutError(endpoint_url="x"), TransientProviderError, False),
        ],
    )
    def test_what_goes_wrong_on_the_way(
        self, error: Exception, kind: type[ProviderError], nothing: bool
    ) -> None:
        with pytest.raises(ProviderError) as caught, told("to launch vm-1"):
            raise error
        assert (type(caught.value), caught.value.made_nothing) == (kind, nothing)


class TestInstances:
    @pytest.mark.parametrize(
        ("name", "state"),
        [
            ("pending", "pending"),
            ("running", "running"),
            ("stopping", "stopped"),
            ("stopped", "stopped"),
            ("shutting-down", "stopped"),
            ("terminated", "gone"),
        ],
    )
    def test_states(self, name: str, state: str) -> None:
        assert state_of({"State": {"Name": name}}) == state

    def test_everybody_keeps_the_same(self) -> None:
        made = [(NOW, "i-3"), (NOW - timedelta(seconds=1), "i-2"), (NOW, "i-1")]
        listed = [{"LaunchTime": when, "InstanceId": vm_id} for when, vm_id in made]
        assert {oldest(order)["InstanceId"] for order in (listed, listed[::-1])} == {"i-2"}

    @pytest.mark.parametrize(
        ("code", "at"),
        [
            ("fulfilled", None),
            ("instance-terminated-by-user", None),
            ("marked-for-termination", NOW + timedelta(minutes=2)),
            ("instance-terminated-no-capacity", NOW),
            ("instance-terminated-by-price", NOW),
        ],
    )
    def test_interruptions(self, code: str, at: datetime | None) -> None:
        assert interruption_of({}, {"Status": {"Code": code, "UpdateTime": NOW}}) == at

    def test_an_interruption_without_its_request(self) -> None:
        gone = {
            "StateReason": {"Code": "Server.SpotInstanceTermination"},
            "StateTransitionReason": "Server.SpotInstanceTermination (2026-01-01 00:00:00 GMT)",
        }
        assert interruption_of(gone, None) == NOW
        assert (
            interruption_of({"StateReason": {"Code": "Client.UserInitiatedShutdown"}}, None) is None
        )
        undated = interruption_of({**gone, "StateTransitionReason": ""}, None)
        assert undated is not None
        assert abs(undated - datetime.now(UTC)) < timedelta(minutes=1)


def server(**fields: Any) -> Any:
    least: dict[str, Any] = {
        "addresses": {},
        "access_ipv4": "",
        "access_ipv6": "",
        "task_state": None,
    }
    return SimpleNamespace(**{**least, **fields})


class TestServers:
    @pytest.mark.parametrize(
        ("status", "task", "state"),
        [
            ("BUILD", "scheduling", "pending"),
            ("ACTIVE", None, "running"),
            ("HARD_REBOOT", "rebooting", "running"),
            ("ACTIVE", "deleting", "stopped"),
            ("ERROR", None, "stopped"),
            ("SHUTOFF", None, "stopped"),
            ("DELETED", None, "gone"),
            ("SOFT_DELETED", None, "gone"),
            ("UNHEARD_OF", None, "stopped"),
        ],
    )
    def test_states(self, status: str, task: str | None, state: str) -> None:
        assert servers.state_of(server(status=status, task_state=task)) == state

    def test_addresses(self) -> None:
        def ip(addr: str, kind: str = "fixed") -> dict[str, Any]:
            version = 6 if ":" in addr else 4
            return {"addr": addr, "version": version, "OS-EXT-IPS:type": kind}

        assert servers.ips_of(server()) == (None, None)
        both = {"a": [ip("fd00::1"), ip("10.0.0.1")], "b": [ip("198.51.100.1", "floating")]}
        assert servers.ips_of(server(addresses=both)) == ("10.0.0.1", "198.51.100.1")
        six = server(addresses={"a": [ip("fd00::1")]}, access_ipv6="2001:db8::1")
        assert servers.ips_of(six) == ("fd00::1", "2001:db8::1")

    def test_names_end_in_their_tokens(self) -> None:
        for name in ("sim-1", "../../up", "ü" * 300, ""):
            made = servers.name_of(VmSpec(name, "p", 1), "t")
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", made)
            assert re.search(servers.pattern_of("t"), made)
            assert not re.search(servers.pattern_of("u"), made)

    @pytest.mark.parametrize(
        ("message", "kind"),
        [
            ("No valid host was found. ", CapacityError),
            ("No valid host was found. There are not enough hosts available.", CapacityError),
            ("Exceeded maximum number of retries. Exhausted all hosts", CapacityError),
            ("Insufficient compute resources: Free memory 1 MB", CapacityError),
            ("Quota exceeded for resources: ['port'].", QuotaExceeded),
            ("Image 155d is unacceptable: not a qcow2", ImageError),
            ("Failed to allocate the network(s), not rescheduling.", TransientProviderError),
            ("", TransientProviderError),
        ],
    )
    def test_faults(self, message: str, kind: type[ProviderError]) -> None:
        assert type(of_fault("vm-1", message)) is kind
