"""The providers' contract over libvirt, and what is libvirt's alone; the VMs here boot nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from remuda.config import Settings
from remuda.errors import ImageError, PermanentProviderError, ProviderError, TransientProviderError
from remuda.testing.place import wait_until
from remuda.workers.providers import Provider, VmDescription, VmSpec, get_provider
from remuda.workers.providers.libvirt.volumes import make_volumes
from tests.contract.strays import Canary, Strays
from tests.libvirtd import Libvirtd, libvirtd

__all__ = ["libvirtd"]

PROVIDER = "remuda.workers.providers.libvirt.provider"
LAUNCH = "remuda.workers.providers.libvirt.launch"


def spec(name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
    return VmSpec(name, pool, 2, heartbeat_s=0.2, **{"image": "blank", **more})


@contextlib.contextmanager
def canary_of(libvirtd: Libvirtd) -> Iterator[Any]:
    """Give a domain of somebody else."""
    connection = libvirt.open(libvirtd.uri)
    domain = connection.createXML(
        "<domain type='qemu'><name>canary</name><uuid>11111111-2222-3333-4444-555555555555</uuid>"
        "<memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>",
        0,
    )
    try:
        yield domain
    finally:
        domain.destroy()
        connection.close()


class Libvirt:
    """The fixtures."""

    @pytest.fixture
    def pool_settings(self, libvirtd: Libvirtd) -> dict[str, Any]:
        return libvirtd.settings(memory_bytes=32 << 20)

    @pytest.fixture
    def provider(self, pool_settings: dict[str, Any], libvirtd: Libvirtd) -> Iterator[Provider]:
        made = get_provider("libvirt", Settings(data_dir=Path("/nonexistent")), pool_settings)
        yield made
        for vm in made.list(""):
            made.terminate(vm.provider_id)
        assert made.list("") == []
        assert libvirtd.emulators() == {}
        assert list(libvirtd.store.iterdir()) == []


class TestLibvirtContract(Libvirt, Strays):
    """VMs with nothing to boot are made and removed like any others."""

    kind = "libvirt"

    @pytest.fixture
    def canary(self, provider: Provider, libvirtd: Libvirtd) -> Iterator[Canary]:
        with canary_of(libvirtd) as domain:
            yield domain.UUIDString(), lambda: (domain.isActive(), domain.XMLDesc(0))

    def spec(self, name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
        return spec(name, pool, **more)


class TestVms(Libvirt):
    def test_a_vm_whose_plug_is_pulled_is_stopped(
        self, provider: Provider, libvirtd: Libvirtd
    ) -> None:
        vm_id = provider.spawn(spec(), "1")
        os.kill(libvirtd.emulators()[vm_id], signal.SIGKILL)
        wait_until(lambda: provider.describe([vm_id])[vm_id].state == "stopped", "it is stopped")
        assert [vm.state for vm in provider.list("sim")] == ["stopped"]
        assert {path.suffix for path in libvirtd.store.iterdir()} == {".qcow2", ".iso"}
        provider.terminate(vm_id)
        assert (provider.describe([vm_id]), list(libvirtd.store.iterdir())) == ({}, [])

    def test_what_a_crash_leaves_is_listed_and_finished_or_removed(
        self, provider: Provider, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After each step of a spawn."""
        for step in ("make_volumes", "_begin"):
            with monkeypatch.context() as patch:
                patch.setattr(f"{LAUNCH}.{step}", crash)
                with pytest.raises(KeyboardInterrupt):
                    provider.spawn(spec(), step)
                with pytest.raises(KeyboardInterrupt):
                    provider.spawn(spec(), f"{step} for good")
            left = {vm.token: vm for vm in provider.list("sim")}
            assert {vm.state for vm in left.values()} == {"stopped"}
            provider.terminate(left.pop(f"{step} for good").provider_id)
            assert provider.spawn(spec(), step) == left[step].provider_id
            assert [vm.state for vm in provider.list("sim")] == ["running"]
            provider.terminate(left[step].provider_id)
            assert (provider.list(""), list(libvirtd.store.iterdir())) == ([], [])

    def test_workers_that_make_one_vm_at_once(
        self, provider: Provider, pool_settings: dict[str, Any]
    ) -> None:
        code = (
            f"import tests.contract.test_libvirt as t; t.spawn_one({json.dumps(pool_settings)!r})"
        )
        workers = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        ids = {worker.communicate(timeout=60)[0] for worker in workers}
        assert ids == {provider.list("sim")[0].provider_id}
        assert provider.list("sim")[0].state == "running"

    def test_a_vm_terminated_while_it_is_made_leaves_nothing(
        self, provider: Provider, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def ended(*args: Any, **more: Any) -> bool:
            made = make_volumes(*args, **more)
            provider.terminate(provider.list("sim")[0].provider_id)
            make_volumes(*args, **more)  # as a slower worker does
            return made

        monkeypatch.setattr(f"{LAUNCH}.make_volumes", ended)
        with pytest.raises(TransientProviderError, match="was terminated while it was made"):
            provider.spawn(spec(), "1")
        assert (provider.list(""), list(libvirtd.store.iterdir())) == ([], [])

    @pytest.mark.parametrize("name", ["../../up", "ü/<&>\"'"])
    def test_any_name_will_do(self, provider: Provider, libvirtd: Libvirtd, name: str) -> None:
        vm_id = provider.spawn(spec(name), "tok/../en")
        (vm,) = provider.list("sim")
        assert (vm.provider_id, vm.token, vm.state) == (vm_id, "tok/../en", "running")
        assert (vm.cores, vm.memory_bytes) == (1, 32 << 20)  # its domain
        assert len(list(libvirtd.store.iterdir())) == 2

    def test_a_disk_may_be_bigger_than_its_image_and_not_smaller(
        self, libvirtd: Libvirtd, pool_settings: dict[str, Any], provider: Provider
    ) -> None:
        big = provider_of({**pool_settings, "disk_bytes": 64 << 20})
        vm_id = big.spawn(spec(), "1")
        (disk,) = libvirtd.store.glob("*.qcow2")
        words = ["qemu-img", "info", "-U", "--output=json", str(disk)]
        about = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
        assert about["virtual-size"] == 64 << 20
        assert about["full-backing-filename"] == f"{libvirtd.folder}/blank.qcow2"
        big.terminate(vm_id)
        small = provider_of({**pool_settings, "disk_bytes": 8 << 20})
        with pytest.raises(PermanentProviderError, match="disk_bytes is 8388608"):
            small.spawn(spec(), "2")


class TestWhatGoesWrong(Libvirt):
    @pytest.mark.parametrize(
        ("more", "error", "words"),
        [
            ({"storage": "nowhere"}, PermanentProviderError, "no storage pool nowhere"),
            ({"images": {"blank": "/no/such.qcow2"}}, ImageError, "no/such.qcow2"),
            ({"images": {"blank": "no-such"}}, ImageError, "no-such"),
            ({"network": "network:none"}, PermanentProviderError, "none"),
            ({"key_file": "/no/such/key"}, PermanentProviderError, "/no/such/key"),
            ({"uri": "qemu:///session?socket=/no/such"}, TransientProviderError, "/no/such"),
            ({"uri": "qemu+tcp://127.0.0.1:1/system"}, TransientProviderError, "127.0.0.1:1"),
            ({"memory_bytes": 1 << 49}, ProviderError, "memory"),
        ],
    )
    def test_it_is_said_and_nothing_is_left(
        self,
        provider: Provider,
        pool_settings: dict[str, Any],
        more: dict[str, Any],
        error: type[ProviderError],
        words: str,
    ) -> None:
        with pytest.raises(error, match=words):
            provider_of({**pool_settings, **more}).spawn(spec(), "1")
        for vm in provider.list(""):
            assert (vm.token, vm.state) == ("1", "stopped")

    def test_a_pool_without_an_image(self, provider: Provider) -> None:
        with pytest.raises(ImageError, match="needs an image"):
            provider.spawn(spec(image="default"), "1")

    def test_where_kvm_does_not_work_vms_are_emulated(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{LAUNCH}._without_kvm", {})
        monkeypatch.setattr(f"{LAUNCH}._kvm_is_offered", lambda _: True)
        vm_id = provider.spawn(spec(), "1")
        assert provider.describe([vm_id])[vm_id].state == "running"
        provider.terminate(vm_id)

    def test_a_daemon_that_hangs_costs_a_deadline_and_not_the_vm(
        self, provider: Provider, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vm_id = provider.spawn(spec(), "1")
        daemon = libvirtd.daemon()
        os.kill(daemon, signal.SIGSTOP)
        try:
            monkeypatch.setattr(f"{PROVIDER}.LOOK_S", 0.5)
            with pytest.raises(TransientProviderError, match=r"within 0\.5 s"):
                provider.describe([vm_id])
        finally:
            os.kill(daemon, signal.SIGCONT)
        monkeypatch.undo()
        assert provider.describe([vm_id])[vm_id].state == "running"

    def test_a_daemon_that_dies_and_comes_back_knows_its_vms(
        self, provider: Provider, libvirtd: Libvirtd
    ) -> None:
        vm_id = provider.spawn(spec(), "1")
        before = provider.describe([vm_id])
        os.kill(libvirtd.daemon(), signal.SIGKILL)

        def back() -> dict[str, VmDescription] | None:
            with contextlib.suppress(TransientProviderError):
                return provider.describe([vm_id])
            return None

        assert wait_until(back, "it is back") == before


def crash(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def provider_of(settings: dict[str, Any]) -> Provider:
    return get_provider("libvirt", Settings(data_dir=Path("/nonexistent")), settings)


def spawn_one(settings: str) -> None:
    """What one of several workers does, in a process of its own."""
    print(provider_of(json.loads(settings)).spawn(spec(), "1"), end="")
