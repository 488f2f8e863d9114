"""The `ssh` backend: VMs one logs in to. Their address is a host's (see `remuda.hosts`) and `home`,
a path on it, or one in the user's home, where the runner is brought to by `install`.

The runner's file is copied there, one long-lived `runner attach` bridges a session to its socket,
and inputs go once per VM to `home/cache/<sha256>`, big outputs back in sessions of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from remuda.errors import (
    AuthError,
    BackendError,
    NoResources,
    OutputNotAvailable,
    RemudaError,
    VmUnreachable,
)
from remuda.hosts import Host, host_of
from remuda.stores import one_batch
from remuda.workers import remote, transfers
from remuda.workers.backends.base import (
    CHUNK,
    NO_SOURCE,
    Backend,
    InputFile,
    StartJob,
    VmAddress,
)
from remuda.workers.channel import Channel
from remuda.workers.content import Content

log = logging.getLogger(__name__)
FRESH_S = 300.0  # for so long a file that was seen in a cache is taken for being there
GRACE_S = 900.0  # for so long one that was asked for is not given up there
FAILED_S = 5.0  # for so long what could not be had is not tried again: a batch may want it often
SMALL = 1 << 20  # bytes
ROUNDS = 3  # of staging a batch so large that what was first may be given up when the last is there
REMEMBERED = 20_000

_Key = tuple[Host, str, str]


class SshBackend(Backend):
    """Runs jobs on hosts and VMs reached by SSH; connections are shared by the whole process."""

    kind = "ssh"
    over_network = True

    def __init__(self) -> None:
        """Know nothing of any VM's cache yet."""
        self._lock = threading.Lock()
        self._there: OrderedDict[_Key, tuple[str | None, float]] = OrderedDict()
        self._busy: dict[_Key, tuple[threading.Lock, int]] = {}

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
            channel.greet(watch=watch, since=since, timeout_s=timeout_s)
        except VmUnreachable as error:
            raise VmUnreachable(f"cannot reach VM {vm.name}: its runner does not answer") from error
        return channel

    def install(self, vm: VmAddress, arguments: Sequence[str], *, timeout_s: float = 60.0) -> None:
        """Copy the runner and start it, if the home is one in the user's, as new VMs have it."""
        host, home = _place(vm)
        if not home.startswith("/"):
            remote.install(host, home, arguments, timeout_s=timeout_s)

    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start the runner again, unless its home is gone or the VM was terminated."""
        host, home = _place(vm)
        try:
            remote.start_runner(host, home, timeout_s=timeout_s)
        except BackendError as error:
            raise _refused(vm, error) from error

    def submit_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> dict[int, str]:
        """Stage the inputs first: what took long is made sure of once more before it is relied on."""
        states: dict[int, str] = {}
        for i in range(0, len(jobs), CHUNK):
            batch = jobs[i : i + CHUNK]
            files = {file.url: file for job in batch for file in job.inputs}.values()
            with one_batch():
                for _ in range(ROUNDS if files else 0):
                    began = time.monotonic()
                    for file in files:
                        self.source(file, vm)
                    if time.monotonic() - began < FRESH_S:
                        break
                states |= super().submit_jobs(channel, vm, batch, floor=floor)
        return states

    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Have the content in the VM's cache and return its path there.

        For a file that cannot be had it is NO_SOURCE and why.
        """
        host, home = _place(vm)
        asked = (host, home, f"{file.url} {file.sha256}")
        refused = self._known(asked, FAILED_S)
        if refused is not None:
            return refused
        try:
            content = Content(file)
            key = (host, home, content.key)
            with self._one_at_a_time(key):
                path = self._known(key, FRESH_S)
                if path is None:
                    path = self._send(content, host, home)
                    self._remember(key, path)
                return path
        except VmUnreachable:
            raise
        except (AuthError, NoResources) as error:
            raise _refused(vm, error) from error
        except RemudaError as error:
            log.warning("cannot copy input %r to VM %s: %s", file.name, vm.name, error)
            refused = f"{NO_SOURCE}{file.name}: {error}"
        self._remember(asked, refused)
        return refused

    def _copy_out(
        self, channel: Channel, vm: VmAddress, attempt_id: int, name: str, file: BinaryIO
    ) -> int:
        """Copy what is big in a session of its own, as it is; what is small comes by the channel."""
        _, _, size = self.peek(channel, vm, attempt_id, name, size=1)
        if size > SMALL:
            host, home = _place(vm)
            try:
                return transfers.get(host, home, attempt_id, name, file)
            except OutputNotAvailable:
                log.debug("the runner alone has %r of attempt %d", name, attempt_id)
            except (AuthError, NoResources) as error:
                raise _refused(vm, error) from error
        return super()._copy_out(channel, vm, attempt_id, name, file)

    def _send(self, content: Content, host: Host, home: str) -> str:
        answer = transfers.put(
            host,
            f"{home}/cache/{content.key}",
            sha256=content.sha256,
            size=content.size,
            opened=content.opened,
            inside=home,
            sent=content.check,
            limit=host.cache_bytes,
            grace_s=GRACE_S,
        )
        if answer.get("gone"):
            raise VmUnreachable(f"{home} on host {host.name} is gone")
        return str(answer["path"])

    # ---- what is there

    @contextmanager
    def _one_at_a_time(self, key: _Key) -> Iterator[None]:
        """Let the others of this process wait who want the same file there."""
        with self._lock:
            lock, count = self._busy.get(key, (threading.Lock(), 0))
            self._busy[key] = (lock, count + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, count = self._busy.pop(key)
                if count > 1:
                    self._busy[key] = (lock, count - 1)

    def _known(self, key: _Key, lately_s: float) -> str | None:
        with self._lock:
            path, since = self._there.get(key, (None, 0.0))
            return path if time.monotonic() - since < lately_s else None

    def _remember(self, key: _Key, path: str) -> None:
        with self._lock:
            self._there[key] = (path, time.monotonic())
            self._there.move_to_end(key)
            while len(self._there) > REMEMBERED:
                self._there.popitem(last=False)


def _place(vm: VmAddress) -> tuple[Host, str]:
    host = host_of({key: value for key, value in vm.address.items() if key != "home"})
    return host, str(vm.address["home"])


def _refused(vm: VmAddress, error: BackendError) -> VmUnreachable:
    """Say it loudly: nobody but the operator can mend it."""
    log.error("VM %s is refused: %s", vm.name, error, extra={"vm_id": vm.vm_id})
    return VmUnreachable(f"cannot reach VM {vm.name}: {error.message}", hint=error.hint)
