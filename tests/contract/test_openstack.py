"""The openstack provider over the fake Nova, or over the real one at $REMUDA_TEST_NOVA.

What is in TestOpenstackContract and TestBothNovas holds on both; docs/openstack.md says how to run it.
"""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
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
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.testing import wait_until
from remuda.workers.providers import VmSpec, get_provider
from remuda.workers.providers.firstboot import read_key
from remuda.workers.providers.openstack import OpenstackProvider
from remuda.workers.providers.openstack import clients as openstack_clients
from tests.contract.openstack_place import (
    NOBODY,
    PATIENCE_S,
    fake,
    key_file,
    ours,
    provider,
    running,
    servers,
    spec,
    url,
)
from tests.contract.strays import Canary, Strays
from tests.openstack.around import IMAGE, NETWORK, clouds_yaml
from tests.openstack.fake import FakeCloud
from tests.openstack.nova import QUOTA, fault
from tests.stores import environment

__all__ = [
    "fake",
    "key_file",
    "ours",
    "provider",
    "url",
]

# What the SDK says of its own later versions.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


class TestOpenstackContract(Strays):
    kind = "openstack"

    @pytest.fixture
    def canary(self, provider: OpenstackProvider) -> Canary:
        compute = provider.client.api.compute
        made = compute.create_server(
            name="canary", flavor_id="2", image_id=IMAGE, networks=[{"uuid": NETWORK}]
        )

        def look() -> object:
            server = compute.get_server(made.id)
            return server.name, server.metadata, server.status

        wait_until(lambda: compute.get_server(made.id).status == "ACTIVE", "it is built")
        return made.id, look

    patience_s = PATIENCE_S

    @pytest.fixture
    def pool_settings(self, ours: dict[str, Any]) -> dict[str, Any]:
        return ours

    @pytest.fixture
    def provider(self, provider: OpenstackProvider) -> OpenstackProvider:
        return provider

    def spec(self, name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
        return spec(name, pool, **more)


class TestBothNovas:
    def test_a_server_is_what_was_asked_for(
        self, ours: dict[str, Any], provider: OpenstackProvider, key_file: Path
    ) -> None:
        more = {"tags": {"team": "physics"}, "config_drive": True, "zones": ["nova"]}
        wide = provider.of_pool({**ours, **more, "networks": [NETWORK]})
        vm_id = wide.spawn(spec(image=IMAGE), "token-1")
        vm = wait_until(lambda: running(wide, vm_id), "it runs", patience_s=PATIENCE_S)
        assert vm.private_ip is not None
        assert vm.private_ip.startswith("192.168.1.")
        assert vm.address["address"] == vm.private_ip
        assert vm.address["host_key"] == read_key(str(key_file)).host_key("token-1").public
        (server,) = servers(wide)
        assert server.metadata == {
            "remuda-pool": "sim",
            "remuda-token": "token-1",
            "team": "physics",
        }
        assert server.name.startswith("vm-1-")

    def test_no_host_is_no_capacity(
        self, ours: dict[str, Any], provider: OpenstackProvider
    ) -> None:
        huge = provider.of_pool({**ours, "flavor": "huge"})
        with pytest.raises(CapacityError, match="No valid host was found") as caught:
            huge.spawn(spec(), "token-1")
        assert caught.value.made_nothing
        assert servers(provider) == []

    def test_a_zone_there_is_not_is_passed_over(
        self, ours: dict[str, Any], provider: OpenstackProvider
    ) -> None:
        vm_id = provider.of_pool({**ours, "zones": ["mars", "nova"]}).spawn(spec(), "token-1")
        assert [server.id for server in servers(provider)] == [vm_id]
        with pytest.raises(CapacityError, match="availability zone is not available") as caught:
            provider.of_pool({**ours, "zones": ["mars"]}).spawn(spec(), "token-2")
        assert caught.value.made_nothing

    @pytest.mark.parametrize(
        ("more", "image", "kind"),
        [
            ({"flavor": "m9.none"}, IMAGE, PermanentProviderError),
            ({"networks": ["nowhere"]}, IMAGE, PermanentProviderError),
            ({}, "plan9", ImageError),
            ({}, NOBODY, ImageError),
            ({}, "default", ImageError),
        ],
    )
    def test_what_there_is_not(
        self,
        ours: dict[str, Any],
        provider: OpenstackProvider,
        more: dict[str, Any],
        image: str,
        kind: type[ProviderError],
    ) -> None:
        with pytest.raises(ProviderError) as caught:
            provider.of_pool({**ours, **more}).spawn(spec(image=image), "token-1")
        assert (type(caught.value), caught.value.made_nothing) == (kind, True)
        assert servers(provider) == []

    def test_a_quota_is_told(self, provider: OpenstackProvider) -> None:
        compute = provider.client.api.compute
        for n in range(QUOTA):
            compute.create_server(
                name=f"other-{n}", flavor_id="2", image_id=IMAGE, networks=[{"uuid": NETWORK}]
            )
        with pytest.raises(QuotaExceeded, match="Quota exceeded") as caught:
            provider.spawn(spec(), "token-1")
        assert caught.value.made_nothing

    def test_what_is_not_ours_is_not_ended(self, provider: OpenstackProvider) -> None:
        made = provider.client.api.compute.create_server(
            name="canary", flavor_id="2", image_id=IMAGE, networks=[{"uuid": NETWORK}]
        )
        with pytest.raises(PermanentProviderError, match="none of Remuda's"):
            provider.terminate(made.id)
        assert provider.list("") == []
        assert [server.id for server in servers(provider)] == [made.id]


class TestLaunching:
    def test_user_data_reach_the_server(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud, key_file: Path
    ) -> None:
        more = {"sudo": True, "key_name": "ops", "security_groups": ["ssh"], "zones": ["west"]}
        provider.of_pool({**ours, **more}).spawn(spec(), "token-1")
        (server,) = fake.nova.servers.values()
        [vm] = provider.list("sim")
        assert (vm.cores, vm.memory_bytes) == (2, 2048 << 20)  # its flavor's
        asked = server["_asked"]
        config = json.loads(base64.b64decode(asked["user_data"]).decode().partition("\n")[2])
        key = read_key(str(key_file)).host_key("token-1")
        assert config["ssh_keys"]["ed25519_public"] == key.public
        assert (asked["key_name"], asked["availability_zone"]) == ("ops", "west")
        assert asked["security_groups"] == [{"name": "ssh"}]
        assert asked["networks"] == [{"uuid": NETWORK}]

    def test_without_networks_nova_chooses(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        provider.of_pool({**ours, "networks": []}).spawn(spec(), "token-1")
        (server,) = fake.nova.servers.values()
        assert server["_asked"]["networks"] == "auto"

    def test_who_asks_again_gets_the_same(
        self, provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        assert get_again(provider, "token-1") == vm_id
        assert len(fake.nova.servers) == 1

    def test_of_several_the_oldest_stays(
        self, provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        first = provider.spawn(spec(), "token-1")
        for older in (False, True):
            copy = dict(fake.nova.servers[first], id=NOBODY[:-1] + str(int(older)))
            copy["created"] = "2020-01-01T00:00:00Z" if older else "2099-01-01T00:00:00Z"
            fake.nova.servers[copy["id"]] = copy
        kept = get_again(provider, "token-1")
        assert kept == NOBODY[:-1] + "1"
        wait_until(lambda: [s.id for s in servers(provider)] == [kept], "one is left")

    def test_workers_that_launch_one_intent_at_once(
        self, ours: dict[str, Any], provider: OpenstackProvider, url: str, tmp_path: Path
    ) -> None:
        """Nova knows no tokens: both find nothing and make a server. One stays, and both say which."""
        command = [sys.executable, "-m", "tests.openstack.rivals", json.dumps(ours), str(tmp_path)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        ids = [worker.communicate(timeout=60)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0]
        wait_until(lambda: len(servers(provider)) == 1, "the surplus is gone")
        assert ids == [servers(provider)[0].id] * 2
        assert [vm.token for vm in provider.list("sim")] == ["token-1"]

    def test_of_one_second_the_first_stays(
        self, provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        """Whatever their ids are: who made it has told of it already."""
        first = provider.spawn(spec(), "token-1")
        for n, last in enumerate("0f"):
            late = dict(fake.nova.servers[first], id=f"{last * 8}{NOBODY[8:]}")
            late["_number"] += n + 1
            fake.nova.servers[late["id"]] = late
        assert get_again(provider, "token-1") == first
        wait_until(lambda: [s.id for s in servers(provider)] == [first], "one is left")

    def test_the_next_zone_is_asked_when_one_has_no_host(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        fake.nova.no_host = lambda asked: asked["availability_zone"] == "west"
        vm_id = provider.of_pool({**ours, "zones": ["west", "nova"]}).spawn(spec(), "token-1")
        (server,) = fake.nova.servers.values()
        assert server["id"] == vm_id
        assert server["OS-EXT-AZ:availability_zone"] == "nova"

    def test_every_zone_has_its_time(
        self, ours: dict[str, Any], provider: OpenstackProvider
    ) -> None:
        many = provider.of_pool({**ours, "zones": [f"z{n}" for n in range(4)]})
        assert many.deadline_s("spawn") == 360.0
        assert many.deadline_s("describe") == provider.deadline_s("describe")
        assert provider.deadline_s("spawn") == 180.0

    def test_what_could_not_be_built_is_removed_and_made_anew(
        self, provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        broken = {"status": "ERROR", "fault": {"message": "Build of instance aborted"}}
        fake.nova.servers[vm_id] |= broken
        assert provider.describe([vm_id])[vm_id].state == "stopped"
        with pytest.raises(PermanentProviderError, match="in ERROR: Build of instance aborted"):
            provider.livecheck(vm_id, provider.describe([vm_id])[vm_id])
        other = provider.spawn(spec(), "token-1")
        assert list(fake.nova.servers) == [other]
        provider.livecheck(other, provider.describe([other])[other])

    def test_nothing_secret_is_logged(
        self, provider: OpenstackProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, logger="remuda")
        provider.spawn(spec(), "token-1")
        provider.list("")
        assert "PRIVATE" not in caplog.text
        assert "secret" not in caplog.text

    def test_a_bad_key_asks_nothing(
        self, ours: dict[str, Any], provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        with pytest.raises(PermanentProviderError, match="cannot read the key file") as caught:
            provider.of_pool({**ours, "key_file": "/none"}).spawn(spec(), "token-1")
        assert caught.value.made_nothing
        assert [path for method, path, _ in fake.nova.asked if method == "POST"] == []


def get_again(provider: OpenstackProvider, token: str) -> str:
    return provider.spawn(spec(), token)


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "said", "kind", "nothing"),
        [
            (401, "The request you have made requires authentication.", ProviderAuthError, True),
            (403, "Policy doesn't allow this to be performed.", ProviderAuthError, True),
            (403, "Quota exceeded for cores: Requested 8", QuotaExceeded, True),
            (409, "conflict", TransientProviderError, False),
            (429, "Too many requests", TransientProviderError, False),
            (500, "Unexpected API Error.", TransientProviderError, False),
            (503, "busy", TransientProviderError, False),
            (400, "Invalid key_name provided.", PermanentProviderError, True),
        ],
    )
    def test_they_are_told_apart(
        self,
        provider: OpenstackProvider,
        fake: FakeCloud,
        code: int,
        said: str,
        kind: type[ProviderError],
        nothing: bool,
    ) -> None:
        fake.nova.refuse = lambda method, _: fault(code, said) if method == "POST" else None
        with pytest.raises(ProviderError, match="to launch vm-1") as caught:
            provider.spawn(spec(), "token-1")
        assert (type(caught.value), caught.value.made_nothing) == (kind, nothing)
        assert said[:20] in caught.value.message

    def test_silence_is_not_taken_for_gone(
        self, provider: OpenstackProvider, fake: FakeCloud
    ) -> None:
        vm_id = provider.spawn(spec(), "token-1")
        fake.nova.refuse = lambda *_: fault(400, f"marker [{NOBODY}] not found")
        with pytest.raises(TransientProviderError):
            provider.list("sim")
        fake.nova.refuse = lambda *_: fault(500, "Unexpected API Error.")
        for call in ("describe", "list", "terminate"):
            with pytest.raises(TransientProviderError):
                getattr(provider, call)([vm_id] if call == "describe" else vm_id)
        fake.nova.refuse = lambda *_: None

    def test_who_may_not_log_in_is_told(
        self, ours: dict[str, Any], url: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "other.yaml"
        file.write_text(clouds_yaml(url, password="wrong"))
        with environment(OS_CLIENT_CONFIG_FILE=str(file)):
            for cloud in ("test", "none"):
                lost = get_provider("openstack", Settings(), {**ours, "cloud": cloud})
                with pytest.raises(ProviderAuthError, match=r"clouds\.yaml") as caught:
                    lost.spawn(spec(), "token-1")
                assert "wrong" not in str(caught.value)
                with pytest.raises(ProviderAuthError):
                    lost.list("")

    def test_a_cloud_that_does_not_answer(self, ours: dict[str, Any], tmp_path: Path) -> None:
        file = tmp_path / "closed.yaml"
        file.write_text(clouds_yaml("http://127.0.0.1:9"))
        with environment(OS_CLIENT_CONFIG_FILE=str(file)):
            closed = get_provider("openstack", Settings(), ours)
            with pytest.raises(TransientProviderError):
                closed.describe([NOBODY])

    def test_without_the_sdk_its_extra_is_named(
        self, ours: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openstack_clients, "_clients", {})
        monkeypatch.setitem(sys.modules, "openstack", None)
        with pytest.raises(PermanentProviderError, match=r"openstacksdk.*remuda\[openstack\]"):
            get_provider("openstack", Settings(), ours).list("")

    def test_bad_settings_are_told(self) -> None:
        with pytest.raises(PermanentProviderError, match="key_file is missing"):
            get_provider("openstack", Settings(), {"flavor": "m1.small"})
        with pytest.raises(BadInput, match="flavor is missing"):
            get_provider("openstack", Settings()).validate({"key_file": "/k"})
