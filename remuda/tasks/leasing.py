"""Leases: give what is free to those who wait, end what is over, make VMs ready for their next user."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from remuda.errors import BadInput, IllegalTransition, ProviderError, VmUnreachable
from remuda.models import lease_requests, leases, machines
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from remuda.tasks import logs, messages
from remuda.tasks.providing import provider_of
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)
_SLACK_S = 60.0  # of a release, after which it is begun anew


def serve(runtime: Runtime) -> tuple[int, bool]:
    """Give VMs to those who wait; return how many got one, and whether somebody still waits."""
    if not runtime.transact(lease_requests.anybody_waits):
        return 0, False
    served = runtime.transact(lease_requests.serve)
    if served:
        log.info("%d of those who waited got a lease", served)
    return served, runtime.transact(lease_requests.anybody_waits)


def sweep(runtime: Runtime) -> str | None:
    """Do what no wake-up brought: leases and requests past their time, VMs not to be leased again.

    Returns what it did in words; None: nothing.
    """
    ended = runtime.transact(leases.expire)
    if ended:
        log.warning("%d leases were not renewed in time and are over", ended)
    counts = {
        "leases expired": ended,
        "requests of dead clients": runtime.transact(lease_requests.forget_dead),
        "VMs not leased again": len(runtime.transact(leases.end_worn)),
        "VMs to be made ready": release_due(runtime),
        "requests served": serve(runtime)[0],
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or None


def release_due(runtime: Runtime) -> int:
    """Send for the VMs that are to be made ready, and return how many; sent twice, it is done once."""
    due = runtime.transact(leases.due_releases)
    messages.release_vm(due)
    return len(due)


def release_vm(runtime: Runtime, vm_id: int) -> bool:
    """Have the provider make a VM ready for its next user; one that it cannot is terminated.

    True when it is ready. Of many who are sent for it one does it.
    """
    row = runtime.transact(lambda c: machines.vm_with_pool(c, vm_id))
    if row is None or row["provider_id"] is None:
        return False
    try:
        provider = provider_of(runtime, row)
        most_s = provider.deadline_s("release") + _SLACK_S
        if not runtime.transact(lambda c: leases.begin_release(c, vm_id, most_s=most_s)):
            return False
        provider.release(row["provider_id"])
    except (ProviderError, BadInput, VmUnreachable) as error:
        _unready(runtime, vm_id, f"it could not be made ready for its next user: {error}")
        return False
    runtime.transact(lambda c: leases.end_release(c, vm_id))
    serve(runtime)
    return True


def _unready(runtime: Runtime, vm_id: int, why: str) -> None:
    def work(connection: Connection) -> None:
        move_vm(connection, vm_id, VmState.ERROR, allowed=[VmState.RUNNING], fields={"error": why})
        move_vm(connection, vm_id, VmState.STOPPING)

    try:
        runtime.transact(work)
    except IllegalTransition as error:
        log.info("VM %d is on its way out: %s", vm_id, error)
        return
    logs.transition("vm", vm_id, "ERROR", error=why)
    messages.terminate_vm([vm_id])
