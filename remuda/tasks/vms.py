"""The tasks of VMs: spawn, terminate, check."""

from __future__ import annotations

import logging

from remuda.errors import ProviderError
from remuda.tasks import launching, machines, names
from remuda.tasks.app import app
from remuda.tasks.runtime import get_runtime

log = logging.getLogger(__name__)


@app.task(name=names.SPAWN_VM)  # type: ignore[untyped-decorator]
def spawn_vm(vm_id: int) -> None:
    """Make the machine of a VM and bring it to RUNNING."""
    launching.spawn_vm(get_runtime(), vm_id)


@app.task(name=names.TERMINATE_VM)  # type: ignore[untyped-decorator]
def terminate_vm(vm_id: int) -> None:
    """Remove the machine of a VM; the sweep sends again until the provider confirms."""
    try:
        machines.terminate_vm(get_runtime(), vm_id)
    except ProviderError as error:
        log.warning("VM %d is not terminated yet: %s", vm_id, error, extra={"vm_id": vm_id})


@app.task(name=names.CHECK_VMS)  # type: ignore[untyped-decorator]
def check_vms(vm_ids: list[int] | None = None) -> None:
    """Take up VMs that nobody watches."""
    machines.check_vms(get_runtime(), vm_ids)
