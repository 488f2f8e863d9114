"""Bring VMs what their pools say that each has: before they take jobs, and whenever there is more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from remuda.errors import BackendError, DataStagingError, VmUnreachable
from remuda.models import pool_resources as models
from remuda.models.watches import vm_for_channel
from remuda.stores import one_batch
from remuda.tasks import messages
from remuda.tasks.links import vm_address
from remuda.tasks.runtime import Runtime
from remuda.workers.backends.base import Backend, InputFile
from remuda.workers.channel import Channel

log = logging.getLogger(__name__)
BATCH = 20  # files in one request: the runner does nothing else meanwhile
_TIMEOUT_S = 300.0


def synchronize(runtime: Runtime, vm_id: int) -> bool:
    """Bring a running VM the resources it lacks; True if it lacked any.

    Raises VmUnreachable, DataStagingError naming a file that cannot be had. Repeating it does no
    harm; a VM whose runner keeps no resources lacks none.
    """
    vm = runtime.transact(lambda c: vm_for_channel(c, vm_id))
    if vm is None:
        return False
    channel = runtime.links.get(vm)
    return bring(runtime, vm, channel, runtime.links.backend(vm["backend"]))


def bring(runtime: Runtime, vm: Mapping[str, Any], channel: Channel, backend: Backend) -> bool:
    """Do what `synchronize` does, by a channel there is."""
    vm_id = int(vm["id"])
    version, files = runtime.transact(lambda c: models.wanted_by(c, vm_id))
    if not version:
        return False
    if "resources" in channel.hello.get("features", ()):
        _send(vm, channel, backend, files)
    runtime.transact(lambda c: models.note_synchronized(c, vm_id, version))
    return True


def synchronize_all(runtime: Runtime) -> int:
    """Have every running VM brought what it lacks, each by a task of its own; return how many."""
    vm_ids = runtime.transact(models.outdated)
    for vm_id in vm_ids:
        messages.synchronize(vm_id)
    return len(vm_ids)


def tried(runtime: Runtime, vm_id: int) -> bool:
    """Do what `synchronize` does; what fails is logged, and the sweep has it tried again."""
    try:
        return synchronize(runtime, vm_id)
    except BackendError as error:
        log.warning("VM %d does not get its resources: %s", vm_id, error, extra={"vm_id": vm_id})
    except VmUnreachable as error:
        log.info("VM %d does not answer: %s", vm_id, error)
    return False


def _send(
    vm: Mapping[str, Any], channel: Channel, backend: Backend, files: Sequence[Mapping[str, Any]]
) -> None:
    address = vm_address(vm)
    inputs = [
        InputFile(name=f["name"], url=f["url"], sha256=f["sha256"], size=f["size"], mode=f["mode"])
        for f in files
    ]
    for start in range(0, len(inputs), BATCH):
        with one_batch():
            batch = [(f.name, backend.source(f, address), f.mode) for f in inputs[start:][:BATCH]]
        failed = channel.request("resources", files=batch, timeout_s=_TIMEOUT_S)["failed"]
        for name, why in failed.items():
            raise DataStagingError(f"resource {name!r:.200} cannot be put on {vm['name']}: {why}")
