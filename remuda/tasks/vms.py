"""The tasks that speak to VMs and their providers: spawn, terminate, watch, check, compare."""

from __future__ import annotations

import logging

from remuda.errors import ProviderError
from remuda.tasks import health, launching, leasing, ledger, machines, names, resources
from remuda.tasks.app import app
from remuda.tasks.flower.sweeps import Sweep
from remuda.tasks.flower.wording import counted
from remuda.tasks.runtime import get_runtime

log = logging.getLogger(__name__)


@app.task(name=names.SPAWN_VM)  # type: ignore[untyped-decorator]
def spawn_vm(vm_id: int) -> str:
    """Make the machine of a VM and bring it to RUNNING."""
    up = launching.spawn_vm(get_runtime(), vm_id)
    return f"{get_runtime().vm_name(vm_id)} is {'up' if up else 'not up by this'}"


@app.task(name=names.TERMINATE_VM)  # type: ignore[untyped-decorator]
def terminate_vm(vm_id: int) -> str:
    """Remove the machine of a VM; the sweep sends again until the provider confirms."""
    try:
        gone = machines.terminate_vm(get_runtime(), vm_id)
        return f"{get_runtime().vm_name(vm_id)} is {'gone' if gone else 'not gone by this'}"
    except ProviderError as error:
        log.warning("VM %d is not terminated yet: %s", vm_id, error, extra={"vm_id": vm_id})
        return f"{get_runtime().vm_name(vm_id)} is not terminated yet: {error}"


@app.task(name=names.SYNCHRONIZE)  # type: ignore[untyped-decorator]
def synchronize(vm_id: int) -> str:
    """Bring a VM the resources of its pool."""
    done = resources.tried(get_runtime(), vm_id)
    return f"{get_runtime().vm_name(vm_id)} {'has' if done else 'gets no'} new resources"


@app.task(name=names.CHECK_VMS, base=Sweep)  # type: ignore[untyped-decorator]
def check_vms(vm_ids: list[int] | None = None) -> str | None:
    """Take up VMs that nobody watches."""
    taken = machines.check_vms(get_runtime(), vm_ids)
    return f"{counted(taken, 'VM')} taken up" if taken else None


@app.task(name=names.RELEASE_VM)  # type: ignore[untyped-decorator]
def release_vm(vm_id: int) -> str:
    """Make a VM ready for its next user."""
    ready = leasing.release_vm(get_runtime(), vm_id)
    return f"{get_runtime().vm_name(vm_id)} is {'ready' if ready else 'not made ready by this'}"


@app.task(name=names.CHECK_HEALTH, base=Sweep)  # type: ignore[untyped-decorator]
def check_health() -> str | None:
    """Check the VMs that are due."""
    checked = health.check_health(get_runtime())
    bad = sum(error is not None for error in checked.values())
    return f"{counted(len(checked), 'VM')} checked, {bad} unwell" if checked else None


@app.task(name=names.RECONCILE_VMS, base=Sweep)  # type: ignore[untyped-decorator]
def reconcile_vms() -> str | None:
    """Compare rows and providers."""
    found = ledger.reconcile_vms(get_runtime())
    return f"{counted(found, 'VM')} looked after" if found else None
