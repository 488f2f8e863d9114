"""The ssh backend and the static provider when things go wrong, over real sshd."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import (
    ProviderAuthError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hosts import host_of
from remuda.workers import remote
from remuda.workers.backends import InputFile, StartJob, VmAddress, get_backend
from remuda.workers.channel import Channel
from remuda.workers.providers import Provider, VmSpec, get_provider
from remuda.workers.transport import Connections, connections
from tests.sshd import Sshd, free_port, keygen, sshd, two_sshd
from tests.unit.vm import output, wait_until

__all__ = ["sshd", "two_sshd"]

SPEC = VmSpec("vm", "sim", 2, heartbeat_s=0.2)


@pytest.fixture(autouse=True)
def no_connections_left() -> Iterator[None]:
    yield
    connections().close()


def provider_of(*hosts: dict[str, Any]) -> Provider:
    return get_provider("static", Settings(data_dir=Path("/nonexistent")), {"hosts": list(hosts)})


class Vm:
    """A VM on a host, and all that its watcher heard."""

    def __init__(self, host: Sshd, **entry: Any) -> None:
        self.backend = get_backend("ssh")
        self.provider = provider_of(host.entry(**entry))
        self.id = self.provider.spawn(SPEC, "token")
        self.address = dict(self.provider.describe([self.id])[self.id].address)
        self.vm = VmAddress(1, "vm", "ssh", self.address)
        self.entries: dict[int, dict[str, Any]] = {}
        self.closed = threading.Event()

    def connect(self, **changed: Any) -> Channel:
        self.closed.clear()
        return self.backend.connect(
            VmAddress(1, "vm", "ssh", {**self.address, **changed}),
            watch=True,
            since=max(self.entries, default=0),
            on_push=self.heard,
            on_close=lambda _: self.closed.set(),
        )

    def heard(self, channel: Channel, message: dict[str, Any]) -> None:
        self.entries.update({entry["n"]: entry for entry in message.get("entries", ())})

    def told(self, kind: str, *attempts: int) -> list[dict[str, Any]]:
        """Return what was told of a kind so far, of these attempts or all, while more comes in."""
        every = list(self.entries.values())
        return [e for e in every if e["t"] == kind and (e["a"] in attempts or not attempts)]

    def exit(self, attempt: int) -> dict[str, Any]:
        entry: dict[str, Any] = wait_until(
            lambda: self.told("exit", attempt), f"attempt {attempt} ends"
        )[0]
        return entry

    def run(self, channel: Channel, attempt: int, *command: str, **more: Any) -> dict[str, Any]:
        job = StartJob(attempt, attempt, 1, command, **more)
        self.backend.submit_jobs(channel, self.vm, [job], floor=1)
        return self.exit(attempt)

    def end(self) -> None:
        self.provider.terminate(self.id)
        assert self.provider.list("") == []


def works(host: Sshd, **entry: Any) -> None:
    """Spawn, run a job with a file, terminate; the host is clean then."""
    vm = Vm(host, **entry)
    channel = vm.connect()
    files = (InputFile("in", str(host.folder / "host_key.pub")),)
    assert output(vm.run(channel, 1, "cat", "in", inputs=files)).decode().startswith("ssh-ed25519")
    channel.close()
    vm.end()
    assert not (host.home / ".remuda").exists()


class TestWhoWeTalkTo:
    def test_a_changed_host_key_is_refused_loudly(
        self, sshd: Sshd, caplog: pytest.LogCaptureFixture
    ) -> None:
        vm = Vm(sshd)
        sshd.kill()
        old = sshd.host_key
        keygen(sshd.folder / "host_key")
        sshd.start()
        with pytest.raises(VmUnreachable, match=r"HOST KEY CHANGED.*SHA256.*pin its new key"):
            vm.connect()
        assert "HOST KEY CHANGED" in caplog.text
        with pytest.raises(ProviderAuthError, match="HOST KEY CHANGED"):
            vm.provider.describe([vm.id])
        assert "Accepted publickey" not in sshd.log().rpartition("Server listening")[2]
        vm.connect(host_key=sshd.host_key).close()
        assert old != sshd.host_key
        provider_of(sshd.entry()).terminate(vm.id)

    def test_an_unknown_host_key_is_refused_and_never_added(
        self, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        entry = {**sshd.entry(), "host_key": ""}
        hint = 'not pinned.*set host_key = "ssh-ed25519 AAAA'
        for _ in range(2):
            with pytest.raises(ProviderAuthError, match=hint):
                provider_of(entry).spawn(SPEC, "1")
        assert list(tmp_path.iterdir()) == []

    def test_a_known_hosts_file_pins(self, sshd: Sshd, tmp_path: Path) -> None:
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
        works(sshd, host_key="", known_hosts=str(known))
        with pytest.raises(ProviderAuthError, match="cannot read known_hosts"):
            Vm(sshd, host_key="", known_hosts=str(tmp_path / "none"))

    def test_ssh_config_is_honoured(
        self, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ssh").mkdir()
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
        (tmp_path / ".ssh" / "config").write_text(
            f"Host lab\n HostName 127.0.0.1\n Port {sshd.port}\n User {sshd.user}\n"
            f" IdentityFile {sshd.key_file}\n UserKnownHostsFile {known}\n"
        )
        provider = provider_of({"address": "lab"})
        vm_id = provider.spawn(SPEC, "1")
        assert vm_id.startswith("lab#")
        provider.terminate(vm_id)

    def test_a_jump_host(
        self, two_sshd: list[Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate, host = two_sshd
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{gate.port} {gate.host_key}\n")
        with (gate.folder / "authorized_keys").open("a") as keys:
            keys.write((host.folder / "client_key.pub").read_text())
        works(host, jump=f"{gate.user}@127.0.0.1:{gate.port}", known_hosts=str(known))
        assert "Accepted publickey" in gate.log()
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ProviderAuthError, match="not pinned"):
            Vm(host, jump=f"{gate.user}@127.0.0.1:{gate.port}")

    def test_a_wrong_key_and_a_missing_one(self, sshd: Sshd, tmp_path: Path) -> None:
        keygen(tmp_path / "other")
        for key, said in (
            (tmp_path / "other", "refuses to let us in"),
            (tmp_path / "no", "no key"),
        ):
            with pytest.raises(ProviderAuthError, match=said):
                Vm(sshd, key_file=str(key))
        (tmp_path / "junk").write_text("junk")
        with pytest.raises(ProviderAuthError):
            Vm(sshd, key_file=str(tmp_path / "junk"))

    def test_an_unreachable_host_is_not_gone(self, sshd: Sshd) -> None:
        vm = Vm(sshd)
        sshd.kill()
        connections().close()
        for ask in (
            lambda: vm.provider.describe([vm.id]),
            lambda: vm.provider.list("sim"),
            lambda: vm.provider.terminate(vm.id),
            lambda: vm.provider.spawn(SPEC, "other"),
        ):
            with pytest.raises(TransientProviderError, match="does not answer"):
                ask()
        with pytest.raises(VmUnreachable):
            vm.connect()
        with pytest.raises(VmUnreachable):
            vm.backend.revive(vm.vm)
        sshd.start()
        vm.end()

    def test_one_who_accepts_and_says_nothing(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            entry = {"address": "127.0.0.1", "port": silent.getsockname()[1], "user": "x"}
            with pytest.raises(VmUnreachable):
                remote.call(host_of(entry), "look", place=".remuda", timeout_s=0.5)

    def test_nothing_secret_is_said(self, sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        works(sshd)
        secret = sshd.key_file.read_text().splitlines()[1]
        assert secret not in caplog.text
        assert secret not in sshd.log()


class TestLinesThatBreak:
    def test_sshd_is_killed_and_jobs_are_unharmed(self, sshd: Sshd) -> None:
        vm = Vm(sshd)
        channel = vm.connect()
        gate = sshd.home / "gate"
        script = f"echo before; until [ -e {gate} ]; do sleep 0.02; done; echo after"
        job = StartJob(1, 1, 1, ("sh", "-c", script))
        vm.backend.submit_jobs(channel, vm.vm, [job], floor=1)
        wait_until(lambda: vm.told("start"), "it started")
        sshd.kill()
        assert vm.closed.wait(20)
        with pytest.raises(VmUnreachable):
            channel.request("status")
        with pytest.raises(VmUnreachable):
            vm.connect()
        gate.touch()  # it ends while nobody listens
        sshd.start()
        again = vm.connect()
        assert again.hello["pid"] == channel.hello["pid"]
        assert output(vm.exit(1)) == b"before\nafter\n"
        again.close()
        vm.end()

    def test_many_channels_share_connections(self, sshd: Sshd) -> None:
        vm = Vm(sshd)
        with ThreadPoolExecutor(12) as pool:
            channels = list(pool.map(lambda _: vm.backend.connect(vm.vm), range(12)))
        assert all(channel.request("status")["ok"] for channel in channels)
        assert sshd.log().count("Accepted publickey") == 2
        for channel in channels:
            channel.close()
        vm.end()

    def test_a_server_that_allows_few_sessions(self, sshd: Sshd) -> None:
        sshd.kill()
        sshd.configure("MaxSessions 2")
        sshd.start()
        vm = Vm(sshd)
        channels = [vm.backend.connect(vm.vm) for _ in range(3)]
        assert all(channel.request("status")["ok"] for channel in channels)
        for channel in channels:
            channel.close()
        vm.end()

    def test_a_peer_that_reads_nothing_blocks_nobody_else(self, two_sshd: list[Sshd]) -> None:
        stuck, fine = Vm(two_sshd[0]), Vm(two_sshd[1])
        one, other = stuck.connect(), fine.connect()
        os.kill(one.hello["pid"], 19)
        try:
            for _ in range(40):
                one.send("nonsense", padding="x" * (1 << 18))
            assert other.request("status", timeout_s=20)["ok"]
        finally:
            os.kill(one.hello["pid"], 18)
        assert one.request("status", timeout_s=20)["ok"]
        one.close()
        other.close()
        stuck.end()
        fine.end()

    def test_big_files_both_ways(self, sshd: Sshd, tmp_path: Path) -> None:
        source = tmp_path / "big"
        source.write_bytes(os.urandom(1 << 20) * 20)
        vm = Vm(sshd)
        channel = vm.connect()
        files = (InputFile("big", source.as_uri()),)
        assert vm.run(channel, 1, "mv", "big", "out", inputs=files)["why"] == "OK"
        assert vm.backend.fetch(channel, vm.vm, 1, "out", tmp_path / "back") == 20 << 20
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        channel.close()
        vm.end()

    def test_an_input_is_sent_once_per_vm(self, sshd: Sshd, tmp_path: Path) -> None:
        source = tmp_path / "data"
        source.write_bytes(b"x" * 300_000)
        vm = Vm(sshd)
        file = InputFile("data", source.as_uri())
        with ThreadPoolExecutor(6) as pool:
            paths = set(pool.map(lambda _: vm.backend.source(file, vm.vm), range(6)))
        (path,) = paths
        cached = Path(path)
        assert cached.read_bytes() == source.read_bytes()
        assert stat.S_IMODE(cached.stat().st_mode) == 0o600
        assert os.listdir(cached.parent) == [cached.name]
        first = cached.stat()
        assert vm.backend.source(file, vm.vm) == path
        assert cached.stat().st_ino == first.st_ino
        vm.end()


def test_connections_that_nobody_uses_are_closed(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda.workers.transport.IDLE_S", 0.0)
    own, host = Connections(), host_of(sshd.entry())
    for _ in range(2):
        with own.session(host, timeout_s=10) as channel:
            channel.exec_command("true")
            assert channel.recv_exit_status() == 0
    assert sshd.log().count("Accepted publickey") == 2
    own.close()
    with (
        pytest.raises(VmUnreachable),
        own.session(host_of({**sshd.entry(), "port": free_port()}), timeout_s=5),
    ):
        pass
