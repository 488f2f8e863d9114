"""The `ssh` backend: VMs one logs in to. Their address is a host's (see `remuda.hosts`) and `home`.

The runner's file is copied there, one long-lived `runner attach` bridges a session to its socket,
and inputs go once per VM to `home/cache/<sha256>`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from remuda.errors import (
    AuthError,
    BackendError,
    DataStagingError,
    NoResources,
    RemudaError,
    VmUnreachable,
)
from remuda.files import PIECE
from remuda.hosts import Host, host_of
from remuda.storage import Storage
from remuda.workers import remote
from remuda.workers.backends.base import Backend, InputFile, VmAddress
from remuda.workers.channel import Channel

log = logging.getLogger(__name__)
STAGE_TIMEOUT_S = 600.0  # for one file, however slow the line
REMEMBERED = 20_000


class SshBackend(Backend):
    """Runs jobs on hosts and VMs reached by SSH; connections are shared by the whole process."""

    kind = "ssh"

    def __init__(self) -> None:
        """Know nothing of any VM's cache yet."""
        self._lock = threading.Lock()
        self._there: OrderedDict[tuple[Host, str, str], str] = OrderedDict()

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
        """Log in, or use the connection there is, and attach to the runner's socket."""
        host, home = _place(vm)
        try:
            sock = remote.attach(host, home, timeout_s=timeout_s)
        except BackendError as error:
            raise _refused(vm, error) from error
        channel = Channel(sock, f"VM {vm.name}", on_push=on_push, on_close=on_close)
        try:
            channel.hello = channel.request("hello", timeout_s=timeout_s, watch=watch, since=since)
        except VmUnreachable as error:
            channel.close()
            raise VmUnreachable(f"cannot reach VM {vm.name}: its runner does not answer") from error
        except BackendError:
            channel.close()
            raise
        return channel

    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start the runner again, unless its home is gone or the VM was terminated."""
        host, home = _place(vm)
        try:
            remote.start_runner(host, home, timeout_s=timeout_s)
        except BackendError as error:
            raise _refused(vm, error) from error

    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Have the content in the VM's cache and return its path there.

        A file that cannot be had is logged, and the path is of nothing.
        """
        host, home = _place(vm)
        key = (host, home, file.sha256 or file.url)
        with self._lock:
            known = self._there.get(key) if file.sha256 else None
        if known:
            return known
        nothing = f"{home}/cache/{file.name.rpartition('/')[2] or 'input'}-is-missing"
        try:
            path = self._send(file, host, home)
        except VmUnreachable:
            raise
        except (AuthError, NoResources) as error:
            raise _refused(vm, error) from error
        except RemudaError as error:
            log.warning("cannot copy input %r to VM %s: %s", file.name, vm.name, error)
            return nothing
        with self._lock:
            self._there[key] = path
            while len(self._there) > REMEMBERED:
                self._there.popitem(last=False)
        return path

    def _send(self, file: InputFile, host: Host, home: str) -> str:
        url = file.url
        if "://" not in url:
            if not url.startswith("/"):
                raise DataStagingError(f"{url!r:.200} is no absolute path")
            url = Path(url).as_uri()
        storage = Storage(url.rpartition("/")[0] + "/")
        sha256, size = file.sha256, file.size
        if not sha256:
            with storage.open(url) as stream:
                sha256, size = _measured(stream, file.name)

        answer = remote.put(
            host,
            f"{home}/cache/{sha256}",
            sha256=sha256,
            size=size,
            opened=lambda: storage.open(url),
            inside=home,
            timeout_s=STAGE_TIMEOUT_S,
        )
        if answer.get("gone"):
            raise VmUnreachable(f"{home} on host {host.name} is gone")
        return str(answer["path"])


def _place(vm: VmAddress) -> tuple[Host, str]:
    host = host_of({key: value for key, value in vm.address.items() if key != "home"})
    return host, str(vm.address["home"])


def _measured(stream: BinaryIO, name: str) -> tuple[str, int]:
    sha256, size = hashlib.sha256(), 0
    try:
        while piece := stream.read(PIECE):
            sha256.update(piece)
            size += len(piece)
    except OSError as error:
        raise DataStagingError(f"cannot read input {name!r}: {error}") from error
    return sha256.hexdigest(), size


def _refused(vm: VmAddress, error: BackendError) -> VmUnreachable:
    """Say it loudly: nobody but the operator can mend it."""
    log.error("VM %s is refused: %s", vm.name, error, extra={"vm_id": vm.vm_id})
    return VmUnreachable(f"cannot reach VM {vm.name}: {error.message}", hint=error.hint)
