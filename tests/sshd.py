"""Real OpenSSH servers on free loopback ports, each with keys and a home of its own, surely stopped."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.providers.local import remove_tree

_DEADLINE_S = 20.0
_WHERE = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


@dataclass
class Sshd:
    """One server, run as the user it lets in; `folder` has its files, `home` is that user's."""

    folder: Path
    user: str
    port: int
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()  # of the command that starts it, such as `ip netns exec NAME`
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def key_file(self) -> Path:
        return self.folder / "client_key"

    @property
    def host_key(self) -> str:
        kind, text = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"{kind} {text}"

    def entry(self, **more: Any) -> dict[str, Any]:
        """Return what a pool's settings say of it."""
        way = {"address": self.address, "port": self.port, "user": self.user}
        return {**way, "key_file": str(self.key_file), "host_key": self.host_key, **more}

    def prepare(self) -> None:
        """Make keys, home and configuration."""
        self.folder.chmod(0o755)
        self.home.mkdir(mode=0o700)
        for name in ("host_key", "client_key"):
            keygen(self.folder / name)
        shutil.copy(self.folder / "client_key.pub", self.folder / "authorized_keys")
        (self.folder / "authorized_keys").chmod(0o644)
        owner = pwd.getpwnam(self.user)
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def configure(self, extra: str = "") -> None:
        """Write the configuration; `extra` lines come first, so they win."""
        (self.folder / "config").write_text(
            f"{extra}\n"
            f"ListenAddress {self.address}\nPort {self.port}\nHostKey {self.folder}/host_key\n"
            f"PidFile none\nAuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            "PermitRootLogin yes\nLogLevel VERBOSE\nPrintMotd no\n"
            f"SetEnv HOME={self.home}\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
        )

    def start(self) -> None:
        """Start it and wait until it accepts."""
        server = shutil.which("sshd", path=_WHERE)
        assert server, "sshd is missing: apt-get install openssh-server"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = [*self.prefix, server, "-D", "-e", "-f", str(self.folder / "config")]
        owner = pwd.getpwnam(self.user)
        other = owner.pw_uid != os.geteuid()
        as_user: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        if other and self.prefix:  # what is in front needs root
            ids = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
            command = [*self.prefix, "setpriv", *ids, *command[len(self.prefix) :]]
            other = False
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **(as_user if other else {}),
            )
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port)):
                return
            time.sleep(0.01)  # between two looks at a condition with a deadline

    def kill(self) -> None:
        """Kill the server and all its sessions; what they started in sessions of its own lives."""
        if self.process is None:
            return
        for pid in [*sessions(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def sessions(server: int) -> list[int]:
    """Return the sshd processes below a server."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{name}/stat").read_text()
            head, _, rest = text.rpartition(")")
            if head.partition("(")[2].startswith("sshd"):
                parents.setdefault(int(rest.split()[1]), []).append(int(name))
    found, todo = [], [server]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def keygen(path: Path) -> None:
    """Make a pair of keys, anew if there is one."""
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def ordinary_user() -> str:
    """Return who can log in here and is not root; skips the test if nobody can."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid()).pw_name
    shells = ("/bin/bash", "/bin/sh", "/bin/dash")
    for entry in pwd.getpwall():
        if entry.pw_uid >= 1000 and entry.pw_shell in shells:
            return entry.pw_name
    pytest.skip("this machine has no ordinary user")


def me() -> str:
    """Return the user these tests run as."""
    return pwd.getpwuid(os.geteuid()).pw_name


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_sshd(
    user: str = "", *, extra: str = "", address: str = "127.0.0.1", prefix: tuple[str, ...] = ()
) -> Iterator[Sshd]:
    """Run a server that lets `user` in (default: who runs the tests)."""
    folder = Path(tempfile.mkdtemp(prefix="remuda-sshd-"))
    server = Sshd(folder, user or me(), free_port(), address, prefix)
    try:
        server.prepare()
        server.configure(extra)
        server.start()
        yield server
    finally:
        server.kill()
        remove_tree(folder)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """A server of who runs the tests."""
    with running_sshd() as server:
        yield server


@pytest.fixture
def two_sshd() -> Iterator[list[Sshd]]:
    """Two servers."""
    with running_sshd() as one, running_sshd() as other:
        yield [one, other]
