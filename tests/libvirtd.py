"""A real libvirt daemon of the tests' own, run as an ordinary user, and the guest that boots in it.

It has its own PID namespace: when it ends, whatever it has started ends too.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.providers.local import remove_tree
from tests.sshd import keygen

_DEADLINE_S = 30.0
_BUILD_S = 240.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CMDLINE = (
    "quiet panic=-1 mitigations=off nokaslr cryptomgr.notests audit=0 apparmor=0 ipv6.disable=1"
)
MEMORY = 192 << 20  # bytes
# One that is killed comes again. The shell buries whoever has no parent.
_AGAIN = "while :; do libvirtd; sleep 0.1; done"


@dataclass
class Libvirtd:
    """One daemon; `folder` has all that is its own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"qemu:///session?socket={self.folder}/run/libvirt/libvirt-sock"

    @property
    def store(self) -> Path:
        """Where the VMs' disks are."""
        return self.folder / "store"

    @property
    def key_file(self) -> Path:
        return self.folder / "key"

    def settings(
        self, guest: Path | None = None, *, clock_s: int = 0, **more: Any
    ) -> dict[str, Any]:
        """Return settings of a pool. Its image `guest` boots from a folder that `built_guest` made.

        It boots with its clock `clock_s` seconds fast.
        The image `blank` is there always: an empty disk, on which a VM finds nothing to do.
        """
        images: dict[str, Any] = {"blank": f"{self.folder}/blank.qcow2"}
        if guest is not None:
            files = {
                name: self._taken(guest / name) for name in ("disk.qcow2", "vmlinuz", "initrd.img")
            }
            images["guest"] = {
                "disk": files["disk.qcow2"],
                "kernel": files["vmlinuz"],
                "initrd": files["initrd.img"],
                "cmdline": f"{CMDLINE} clock={clock_s}",
            }
        return {
            "uri": self.uri,
            "key_file": str(self.key_file),
            "user": "root",
            "storage": str(self.store),
            "cores": 1,
            "memory_bytes": MEMORY,
            "images": images,
            **more,
        }

    def emulators(self) -> dict[str, int]:
        """Return the process of each VM whose emulator lives, by the VM's UUID."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if b"-uuid" in words and any(os.fsencode(self.folder) in word for word in words):
                    found[words[words.index(b"-uuid") + 1].decode()] = int(name)
        return found

    def daemon(self) -> int:
        """Return the process of the daemon itself."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if command == b"libvirtd\0" and b"HOME=" + os.fsencode(self.folder) in environment:
                    return int(name)
        raise AssertionError("no daemon lives")

    def start(self) -> None:
        """Start it and wait until it listens."""
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        keygen(self.key_file)
        for name in ("run", "config/libvirt", "cache", "data", "store"):
            (self.folder / name).mkdir(mode=0o700, parents=True)
        (self.folder / "config/libvirt/libvirtd.conf").write_text('log_outputs = "2:stderr"\n')
        (self.folder / "config/libvirt/qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\n'
        )
        blank = ["qemu-img", "create", "-q", "-f", "qcow2", str(self.folder / "blank.qcow2"), "16M"]
        subprocess.run(blank, check=True, stdin=subprocess.DEVNULL)
        if os.geteuid() == 0:
            self.folder.chmod(0o755)
            for path in self.folder.rglob("*"):
                if path != self.key_file:
                    os.chown(path, owner.pw_uid, owner.pw_gid)
            command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command += ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}"]
            command += ["--clear-groups", "--pdeathsig", "KILL", "--"]
        else:
            command = ["unshare", "--user", "--map-current-user", "--pid", "--fork"]
            command += ["--kill-child", "--mount-proc", "--"]
        command = ["setpriv", "--pdeathsig", "KILL", *command]  # should the tests be killed
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "sh", "-c", _AGAIN],
                cwd="/",
                env={
                    "PATH": _PATH,
                    "HOME": str(self.folder),
                    "XDG_RUNTIME_DIR": f"{self.folder}/run",
                    "XDG_CONFIG_HOME": f"{self.folder}/config",
                    "XDG_CACHE_HOME": f"{self.folder}/cache",
                    "XDG_DATA_HOME": f"{self.folder}/data",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        socket = self.folder / "run/libvirt/libvirt-sock"
        deadline = time.monotonic() + _DEADLINE_S
        while not socket.exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)  # between two looks at a condition with a deadline

    def stop(self) -> None:
        """Kill it and everything it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            deadline = time.monotonic() + _DEADLINE_S
            while self.emulators() and time.monotonic() < deadline:
                time.sleep(0.02)
        assert self.emulators() == {}

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _taken(self, path: Path) -> str:
        """Return where the daemon's user can read a file of the cache."""
        here = self.folder / path.name
        if not here.exists():
            try:
                os.link(path, here)
            except OSError:
                shutil.copy(path, here)
        return str(here)


def built_guest() -> Path:
    """Return the folder of the guest's files; built when it is not in the cache."""
    script = Path(__file__).with_name("guest") / "build"
    done = subprocess.run(
        [str(script)],
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running_libvirtd() -> Iterator[Libvirtd]:
    """Run a daemon; nothing of it is left afterwards."""
    missing = [name for name in ("libvirtd", "qemu-img") if not shutil.which(name, path=_PATH)]
    assert not missing, f"{missing} missing: tools/system-packages test installs them"
    daemon = Libvirtd(Path(tempfile.mkdtemp(prefix="remuda-libvirt-")))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        remove_tree(daemon.folder)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """A daemon of this module's tests."""
    with running_libvirtd() as daemon:
        yield daemon
