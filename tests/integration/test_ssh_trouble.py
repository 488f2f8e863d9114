"""Hosts in trouble (full, cut off, elsewhere in time) and the ways to reach them; over real sshd."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remuda import JobSpec
from remuda.errors import ProviderAuthError, TransientProviderError, VmUnreachable
from remuda.hosts import host_of
from remuda.workers import login, remote
from remuda.workers.backends import InputFile
from remuda.workers.transport import connections
from tests.integration.test_ssh import SPEC, Vm, no_connections_left, provider_of, works
from tests.namespaces import hosts, namespace
from tests.sshd import Sshd, me, ordinary_user, running_sshd, sshd, two_sshd
from tests.system import eventually, running_system

__all__ = ["no_connections_left", "sshd", "two_sshd"]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts or namespaces")


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Put a small disk of its own there."""
    options = f"size={size},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "remuda", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@only_root
class TestFullDisks:
    def test_while_an_input_comes(
        self, sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "big").write_bytes(os.urandom(8 << 20))
        file = InputFile("big", str(tmp_path / "big"))
        with small_disk(sshd.home, "4m"):
            vm = Vm(sshd)
            channel = vm.connect()
            assert vm.run(channel, 1, "true", inputs=(file,))["why"] == "STAGING"
            assert "No space left" in caplog.text
            assert os.listdir(Path(vm.address["home"]) / "cache") == []
            assert vm.run(channel, 2, "true")["why"] == "OK"
            channel.close()
            vm.end()

    def test_from_the_beginning(self, sshd: Sshd) -> None:
        with small_disk(sshd.home, "16k"):
            with pytest.raises(TransientProviderError, match="No space left"):
                Vm(sshd)
            provider = provider_of(sshd.entry())
            (left,) = provider.list("")
            provider.terminate(left.provider_id)
            assert provider.list("") == []


@only_root
class TestHostsOfTheirOwn:
    """Hosts with addresses of their own, in network namespaces."""

    @pytest.mark.parametrize("user", ["root", "ordinary"])
    def test_several_hosts(self, user: str) -> None:
        with hosts(2, me() if user == "root" else ordinary_user()) as several:
            assert len({host.address for host in several}) == 2
            for host in several:
                (host.folder / "host_key.pub").chmod(0o644)
                works(host)
            provider = provider_of(*(host.entry() for host in several))
            ids = [provider.spawn(SPEC, token) for token in "ab"]
            assert len(set(ids)) == 2
            for vm_id in ids:
                provider.terminate(vm_id)

    def test_one_that_is_cut_off(self) -> None:
        """Nobody says no; the deadline does, on open connections too."""
        with (
            namespace(0) as place,
            running_sshd(address=place.address, prefix=place.prefix) as host,
        ):
            vm = Vm(host)
            described = host_of(host.entry())
            place.cut()
            for _ in range(2):  # over the connection there is, then without one
                began = time.monotonic()
                with pytest.raises(VmUnreachable, match="does not answer"):
                    remote.call(described, "look", place=".remuda", timeout_s=0.5)
                assert time.monotonic() - began < 5
                connections().close()
            place.mend()
            vm.connect().close()
            vm.end()


@only_root
def test_a_clock_an_hour_off_and_an_sshd_that_dies(tmp_path: Path, database_url: str) -> None:
    """Times recorded are those of here; a job outlives its host's sshd and is heard of again."""
    shift = ("unshare", "--time", "--boottime=3600", "--monotonic=3600", "--fork")
    with (
        running_sshd(prefix=shift) as host,
        running_system(tmp_path, database_url=database_url) as system,
    ):
        gate = host.home / "gate"
        with system.client() as client:
            pool = client.create_pool(
                "lab", provider="static", settings={"hosts": [host.entry()]}, heartbeat_s=1
            )
            pool.submit()
            began = datetime.now(UTC) - timedelta(seconds=2)
            quick = client.submit(JobSpec(["cat", "/proc/uptime"]), pool=pool)
            uptime = float(quick.result(timeout_s=60).stdout.split()[0])
            assert abs(uptime - time.clock_gettime(time.CLOCK_BOOTTIME) - 3600) < 60
            wait = f"until [ -e {gate} ]; do sleep 0.05; done; echo done"
            job = client.submit(JobSpec(["sh", "-c", wait]), pool=pool)
            eventually("it runs", lambda: job.refresh().state == "RUNNING")
            host.kill()
            eventually("the watcher noticed", lambda: "lost the channel" in system.log("worker"))
            gate.touch()
            host.start()
            assert job.result(timeout_s=60).stdout == b"done\n"
            rows = system.query("SELECT started_at, ended_at FROM attempts")
            now = datetime.now(UTC) + timedelta(seconds=2)
            assert len(rows) == 2
            assert all(began < row["started_at"] <= row["ended_at"] < now for row in rows)
            pool.close()
            pool.wait_closed(timeout_s=60)


class TestWays:
    """What `~/.ssh/config` and an agent say."""

    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        (tmp_path / ".ssh").mkdir()
        return tmp_path

    @staticmethod
    def known(home: Path, *servers: Sshd) -> None:
        lines = [f"[127.0.0.1]:{one.port} {one.host_key}\n" for one in servers]
        (home / ".ssh" / "known_hosts").write_text("".join(lines))

    @staticmethod
    def there_and_back(entry: dict[str, object]) -> None:
        provider = provider_of(entry)
        provider.terminate(provider.spawn(SPEC, "1"))

    def test_a_proxy_jump(self, two_sshd: list[Sshd], home: Path) -> None:
        gate, host = two_sshd
        self.known(home, gate, host)
        (home / ".ssh" / "config").write_text(
            f"Host gate\n HostName 127.0.0.1\n Port {gate.port}\n User {gate.user}\n"
            f" IdentityFile {gate.key_file}\n"
            f"Host lab\n HostName 127.0.0.1\n Port {host.port}\n User {host.user}\n"
            f" IdentityFile {host.key_file}\n ProxyJump gate\n"
        )
        self.there_and_back({"address": "lab"})
        assert "Accepted publickey" in gate.log()
        assert "Accepted publickey" in host.log()

    def test_a_jump_host_that_is_gone_before_the_thread_ends(self) -> None:
        class Session:
            """A way through a jump host that is gone: it has nothing more, and cannot be closed."""

            def settimeout(self, seconds: float) -> None:
                pass

            def send(self, data: bytes) -> int:
                return len(data)

            def recv(self, size: int) -> bytes:
                return b""

            def close(self) -> None:
                raise EOFError

        login._transport(Session()).run()

    def test_a_proxy_command(self, sshd: Sshd, home: Path) -> None:
        self.known(home, sshd)
        bridge = home / "bridge.py"
        bridge.write_text(
            "import os, socket, sys, threading\n"
            "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "def up():\n"
            "    while d := os.read(0, 65536): s.sendall(d)\n"
            "    s.shutdown(1)\n"
            "threading.Thread(target=up, daemon=True).start()\n"
            "while d := s.recv(65536): os.write(1, d)\n"
        )
        (home / ".ssh" / "config").write_text(
            f"Host 127.0.0.1\n Port {sshd.port}\n User {sshd.user}\n"
            f" IdentityFile {sshd.key_file}\n ProxyCommand {sys.executable} {bridge} %p\n"
        )
        self.there_and_back({"address": "127.0.0.1"})

    def test_an_agent(self, sshd: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known(home, sshd)
        entry = {"address": "127.0.0.1", "port": sshd.port, "user": sshd.user}
        with pytest.raises(ProviderAuthError, match="no key to log in"):
            provider_of(entry).spawn(SPEC, "1")
        socket_ = home / "agent"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_)], stdout=subprocess.DEVNULL)
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_))
            eventually("the agent listens", socket_.exists)
            subprocess.run(["ssh-add", "-q", str(sshd.key_file)], check=True)
            self.there_and_back(entry)
        finally:
            agent.terminate()
            agent.wait(10)

    def test_a_key_with_a_passphrase(self, sshd: Sshd, home: Path) -> None:
        words = ["ssh-keygen", "-q", "-p", "-N", "a secret", "-P", "", "-f", str(sshd.key_file)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        with pytest.raises(ProviderAuthError, match=r"passphrase.*ssh-agent"):
            provider_of(sshd.entry()).spawn(SPEC, "1")

    def test_the_pool_names_who_is_unreachable(self, sshd: Sshd, home: Path) -> None:
        sshd.kill()
        with pytest.raises(TransientProviderError, match=f":{sshd.port} does not answer"):
            provider_of(sshd.entry()).spawn(SPEC, "1")
