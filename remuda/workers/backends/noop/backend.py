"""The backend's side of simulated VMs.

No process is started and no file written; commands are read by `script`, faults are in `faults`,
and `world.world()` reaches into the VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from remuda.errors import MaximumCapacityReached, ResourceNotReady
from remuda.workers.backends.base import Backend, InputFile, StartJob, VmAddress
from remuda.workers.backends.noop.world import world
from remuda.workers.channel import Channel

__all__ = ["NoopBackend"]


class NoopBackend(Backend):
    """Runs jobs nowhere, on VMs of the `noop` provider; their address is {"noop": id}."""

    kind = "noop"

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
        """Connect to the simulated runner by a pair of sockets."""
        sock = world().connect(_id(vm), name=vm.name)
        channel = Channel(sock, f"VM {vm.name}", on_push=on_push, on_close=on_close)
        channel.greet(watch=watch, since=since, timeout_s=timeout_s)
        return channel

    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start a killed runner again; one that lives is left alone."""
        world().revive(_id(vm), name=vm.name)

    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Return the path of a `file://` URL; the simulated VM reads it itself."""
        parts = urlsplit(file.url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return unquote(file.url.partition("://")[2].removeprefix(parts.netloc))
        return file.url

    def submit_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> dict[int, str]:
        """Start as every backend does, unless the faults say that the VM is full or not ready."""
        _admit(vm)
        return super().submit_jobs(channel, vm, jobs, floor=floor)

    def post_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> None:
        """Start without waiting for the answer; refused like `submit_jobs`."""
        _admit(vm)
        super().post_jobs(channel, vm, jobs, floor=floor)


def _id(vm: VmAddress) -> str:
    return str(vm.address.get("noop", ""))


def _admit(vm: VmAddress) -> None:
    with world().loop.lock:
        machine = {m.vm_id: m for m in world().all()}.get(_id(vm))
        if machine and machine.faults.use_up("not_ready"):
            raise ResourceNotReady(f"VM {vm.name} is still warming up")
        if machine and machine.faults.full:
            raise MaximumCapacityReached(f"VM {vm.name} takes no more jobs")
