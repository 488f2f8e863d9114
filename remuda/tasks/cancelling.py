"""Bring users' wishes to where they are granted: cancel and follow jobs, stop VMs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from sqlalchemy import Connection

from remuda.errors import Unreachable
from remuda.models import cancel as models
from remuda.models import machines
from remuda.models.states import VmState
from remuda.models.vm_life import lock_vms
from remuda.models.watches import Order, vm_for_channel
from remuda.tasks import messages, recording
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)
GRACE_S = 5.0


def cancel(runtime: Runtime, job_ids: Sequence[int] | None = None) -> int:
    """Have the live attempts of jobs to be cancelled killed; return how many there are.

    On a channel open here at once, else by a task. The runner's push tells how each really ended.
    """
    runtime.transact(models.cancel_requeued)
    by_vm: dict[int, list[int]] = defaultdict(list)
    for row in runtime.transact(lambda c: models.to_cancel(c, job_ids=job_ids)):
        by_vm[row["vm_id"]].append(row["attempt_id"])
    for vm_id, attempt_ids in by_vm.items():
        channel = runtime.links.present(vm_id)
        try:
            if channel is None:
                raise Unreachable
            channel.send("cancel", a=attempt_ids, grace=GRACE_S)
        except Unreachable:
            messages.cancel_job(vm_id, attempt_ids)
    return sum(map(len, by_vm.values()))


def cancel_on_vm(runtime: Runtime, vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Kill attempts on their VM, TERM first, KILL after a grace; repeated it is harmless."""
    row = runtime.transact(lambda c: vm_for_channel(c, vm_id))
    if row is not None:
        runtime.links.get(row).request("cancel", a=list(attempt_ids), grace=GRACE_S)


def follow(runtime: Runtime) -> None:
    """Have the runners this worker watches push the output of followed attempts."""
    watched: Mapping[int, object] = runtime.links.watched()
    for row in runtime.transact(lambda c: models.followed(c, list(watched))) if watched else ():
        channel = runtime.links.present(row["vm_id"])
        if channel is not None:
            channel.send("follow", a=row["attempt_id"])


def stop_vms(runtime: Runtime) -> None:
    """Send for the VMs that users had stopped; sent for twice, a VM is terminated once."""
    messages.terminate_vm(runtime.transact(machines.stopping_vms))


def end_vm(runtime: Runtime, vm_id: int, order: Order) -> None:
    """Tell a VM that lives although it should not: its runner kills what runs there and ends.

    "stop": it is being terminated; what it still ran is LOST first, so that no later word of it
    counts, and the termination is sent for again. "halt": its end was confirmed already.
    """

    def lose(connection: Connection) -> None:
        if lock_vms(connection, [vm_id]).get(vm_id) == VmState.STOPPING:
            recording.lose_attempts(connection, vm_id, "its VM is being terminated")

    if order == "stop":
        runtime.transact(lose)
        messages.terminate_vm([vm_id])
    log.warning("VM %d lives on and is told to %s", vm_id, order, extra={"vm_id": vm_id})
    channel = runtime.links.present(vm_id)
    if channel is not None:
        with suppress(Unreachable):
            channel.send("stop")
