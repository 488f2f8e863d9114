"""The `local` backend: VMs that are folders of this machine, their runners' sockets inside."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from remuda.errors import DataStagingError, RemudaError, VmUnreachable
from remuda.files import copy_file, sha256_of
from remuda.stores import one_batch, pull
from remuda.workers.backends.base import (
    NO_SOURCE,
    Backend,
    InputFile,
    StartJob,
    VmAddress,
    empty,
)
from remuda.workers.bundle import install
from remuda.workers.cache import Cache
from remuda.workers.channel import Channel
from remuda.workers.content import Content
from remuda.workers.onvm.bridge import at_socket
from remuda.workers.onvm.commands import STOPPED
from remuda.workers.onvm.sandbox import find_file

log = logging.getLogger(__name__)

# What jobs get of the environment of the process that happened to start their VM.
KEPT = {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH"}
KEPT |= {"SHELL", "TMPDIR", "TZ", "USER"}


def start_runner(home: Path, arguments: Sequence[str] = (), *, timeout_s: float = 30.0) -> None:
    """Have a runner serve the home, detached from this process; harmless if one does.

    `arguments` are those of `runner serve`; left out, they are the last time's. Returns when it
    listens; VmUnreachable, saying why, if it does not.
    """
    env = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith("LC_")}
    program = home / "runner.pyz"
    flags = ("-I", "-S", "-X", "utf8")  # a fast start, and file names as they are
    command = [sys.executable or "python3", *flags, str(program), "serve", "--home", str(home)]
    try:
        install(program)
        done = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=env,
            timeout=timeout_s,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise VmUnreachable(f"the runner of {home} did not start in {timeout_s:g} s") from None
    except OSError as error:
        raise VmUnreachable(f"the runner of {home} cannot start: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-1000:]
        raise VmUnreachable(f"the runner of {home} did not start: {said or done.returncode}")


class LocalBackend(Backend):
    """Runs jobs in VMs of the `local` provider; their address is {"home": folder}."""

    kind = "local"

    def connect(
        self,
        vm: VmAddress,
        *,
        watch: bool = False,
        since: int = 0,
        on_push: Callable[[Channel, dict[str, Any]], None] | None = None,
        on_close: Callable[[Channel], None] | None = None,
        timeout_s: float = 10.0,
    ) -> Channel:
        """Connect to the runner's socket."""
        try:
            sock = at_socket(str(self._home(vm)), "connect", timeout_s)
        except OSError as error:
            what = "its runner does not answer" if self._home(vm).is_dir() else "it is gone"
            raise VmUnreachable(f"cannot reach VM {vm.name}: {what}") from error
        channel = Channel(sock, f"VM {vm.name}", on_push=on_push, on_close=on_close)
        channel.greet(watch=watch, since=since, timeout_s=timeout_s)
        return channel

    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start the runner again, unless the folder is gone or the VM was terminated."""
        home = self._home(vm)
        if not (home / "runner.json").is_file() or (home / STOPPED).exists():
            raise VmUnreachable(f"VM {vm.name} is gone")
        start_runner(home, timeout_s=timeout_s)

    def submit_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> dict[int, str]:
        """Have attempts started; what is at a URL is looked at once for all of them."""
        with one_batch():
            return super().submit_jobs(channel, vm, jobs, floor=floor)

    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Return the path of a `file://` URL, or a path; of anything else a copy in the VM's cache."""
        if "://" not in file.url:
            return file.url
        parts = urlsplit(file.url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return unquote(file.url.partition("://")[2].removeprefix(parts.netloc))
        try:
            content = Content(file)
            cache = Cache(self._home(vm))
            return str(cache.link(content.key, lambda path: _fetch(content, file, path)))
        except RemudaError as error:
            log.warning("cannot have input %r on VM %s: %s", file.name, vm.name, error)
            return f"{NO_SOURCE}{file.name}: {error}"

    def _copy_out(
        self, channel: Channel, vm: VmAddress, attempt_id: int, name: str, file: BinaryIO
    ) -> int:
        """Copy straight from the VM's folder, unless the runner alone has it."""
        jobs = os.path.realpath(self._home(vm) / "jobs")
        if name in ("stdout", "stderr"):
            path = find_file(jobs, f"{attempt_id}.{name[3:]}")
        else:
            path = find_file(f"{jobs}/{attempt_id}", name.removeprefix("./"))
        if path is None:
            return super()._copy_out(channel, vm, attempt_id, name, file)
        try:
            with open(path, "rb") as source:
                size = os.fstat(source.fileno()).st_size
                empty(file)
                done = _copy(source, file)
            if done != size:
                raise DataStagingError(f"{name!r} of attempt {attempt_id} changes while it is read")
            return size
        except OSError as error:
            raise DataStagingError(
                f"cannot copy {name!r} of attempt {attempt_id}: {error}"
            ) from error

    @staticmethod
    def _home(vm: VmAddress) -> Path:
        return Path(vm.address["home"])


def _copy(source: BinaryIO, target: BinaryIO) -> int:
    """Copy the rest of a file, within the kernel if both are real ones; return how much."""
    begin = target.tell() if target.seekable() else -1
    try:
        real = begin == 0 and target.fileno() >= 0
    except OSError:  # a file in memory
        real = False
    if real:
        copy_file(source.fileno(), target.fileno())
        return target.seek(0, os.SEEK_END)
    shutil.copyfileobj(source, target, 1 << 20)
    return source.tell()


def _fetch(content: Content, file: InputFile, path: Path) -> None:
    """Copy a content from its URL, and see that it is the right one."""
    pull(file.url, path)
    content.check()
    if content.sha256:
        with path.open("rb") as copy:
            if sha256_of(copy.fileno()) != content.sha256:
                raise DataStagingError(
                    f"input {file.name!r}: what is at its URL is not what was stored"
                )
