"""The life of VMs after their launch: terminate, and watch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BadInput, IllegalTransition, PermanentProviderError, ProviderError
from remuda.models import machines as models
from remuda.models import vm_life, watches
from remuda.models.states import VmState
from remuda.tasks import logs, recording
from remuda.tasks.providing import alone, vm_pool
from remuda.tasks.runtime import Runtime
from remuda.tasks.watching import this_watcher
from remuda.workers.vmpool import VMPool

log = logging.getLogger(__name__)


def terminate_vm(runtime: Runtime, vm_id: int) -> bool:
    """Remove the machine of a STOPPING (or STALLED, ERROR) VM; True when it is confirmed gone.

    What still lived on it is LOST first. Repeating is harmless; the sweep repeats until confirmed.
    Raises a ProviderError when the provider does not do it, or does not tell; the VM's row tells it too.
    """
    with alone("terminate", vm_id) as mine:
        try:
            return mine and _terminate(runtime, vm_id)
        except ProviderError as error:
            said = str(error)
            runtime.transact(lambda c: models.note_unended(c, vm_id, said))
            raise


def _terminate(runtime: Runtime, vm_id: int) -> bool:

    def begin(connection: Connection) -> Mapping[str, Any] | None:
        state = vm_life.lock_vms(connection, [vm_id]).get(vm_id)
        if state in (VmState.STALLED, VmState.ERROR):
            vm_life.move_vm(connection, vm_id, VmState.STOPPING)
        elif state != VmState.STOPPING:
            return None
        recording.lose_attempts(connection, vm_id, "its VM was terminated")
        return models.vm_with_pool(connection, vm_id)

    row = runtime.transact(begin)
    if row is None:
        return False
    runtime.links.drop(vm_id)
    pool = None if row["never_was"] else _pool_of(runtime, row)
    if pool is not None and not pool.terminate(row["provider_id"], token=str(row["token"])):
        log.info("VM %d is still going", vm_id, extra={"vm_id": vm_id})
        return False
    try:
        runtime.transact(lambda c: vm_life.move_vm(c, vm_id, VmState.HALTED))
    except IllegalTransition as error:
        log.debug("VM %d: %s", vm_id, error)
        return False
    logs.transition("vm", vm_id, "HALTED")
    return True


def _pool_of(runtime: Runtime, row: Mapping[str, Any]) -> VMPool | None:
    """Return the VM's pool; None if there is no provider of its kind, and so never was a machine.

    Raises PermanentProviderError if there was one, and its kind is no longer known here.
    """
    try:
        return vm_pool(runtime, row)
    except BadInput as error:
        if row["provider_id"] is None:
            return None
        raise PermanentProviderError(f"VM {row['name']} cannot be ended: {error}") from error


def check_vms(runtime: Runtime, vm_ids: list[int] | None = None) -> int:
    """Have VMs that nobody watches (of `vm_ids`, if given) taken up: here, or by any watcher.

    Returns how many are taken up here.
    """
    watcher = this_watcher()
    if watcher is not None:
        return watcher.attacher.claim(vm_ids)
    runtime.transact(watches.call_watchers)  # a pool child has none; its parent hears this
    return 0
