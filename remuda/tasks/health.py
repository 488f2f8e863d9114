"""What is wrong with VMs: silence."""

from __future__ import annotations

from sqlalchemy import Connection

from remuda.models import vm_life
from remuda.models.states import VmState
from remuda.tasks import logs, messages, recording
from remuda.tasks.runtime import Runtime

STALL_GAP_S = 15.0  # a longer pause between sweeps means that nobody was listening


def declare_stalled(runtime: Runtime) -> list[int]:
    """Declare silent VMs STALLED, their attempts LOST and their jobs placed anew, in one go.

    Those replaced, or silent for another interval, are terminated. Returns the newly stalled.
    """

    def begin(connection: Connection) -> list[int]:
        vm_life.note_sweep(connection, "declare_stalled", gap_s=STALL_GAP_S)
        over = vm_life.stalled_for_good(connection)
        for vm_id in over:
            vm_life.move_vm(connection, vm_id, VmState.STOPPING, allowed=[VmState.STALLED])
        return over

    def stall_one(connection: Connection) -> tuple[int, int] | None:
        for vm_id in vm_life.silent_vms(connection, most=1):
            vm_life.move_vm(connection, vm_id, VmState.STALLED)
            return vm_id, recording.lose_attempts(connection, vm_id, "its VM sent no heartbeats")
        return None

    messages.terminate_vm(runtime.transact(begin))
    silent = []
    while (found := runtime.transact(stall_one)) is not None:  # each on its own: few locks at once
        vm_id, lost = found
        logs.transition("vm", vm_id, "STALLED", attempts_lost=lost)
        silent.append(vm_id)
    return silent
