"""VMs that have to go or to restart: interrupted, too old, of another image; reboots."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BackendError, IllegalTransition, RemudaError, VmUnreachable
from remuda.models import retiring as models
from remuda.models import starting, vm_life, watches
from remuda.models.exits import lock_journal
from remuda.models.states import VmState
from remuda.tasks import logs, messages, recording
from remuda.tasks.links import CONNECT_TIMEOUT_S, vm_address
from remuda.tasks.providing import provider_of
from remuda.tasks.runtime import Runtime
from remuda.workers import retiring
from remuda.workers.backends import get_backend

log = logging.getLogger(__name__)


def retire_vms(runtime: Runtime) -> int:
    """Do what is due with each pool's VMs and with reboots; return how many VMs it was about."""
    count = 0
    for pool in runtime.transact(models.concerned_pools):
        count += _retire(runtime, pool)
    for vm in runtime.transact(models.reboots):
        count += _reboot(runtime, vm["id"])
    return count


def _retire(runtime: Runtime, pool: Mapping[str, Any]) -> int:
    rules = retiring.Rules(
        max_vm_age_s=pool["max_vm_age_s"],
        max_unavailable=pool["rollout_max_unavailable"],
        wanted=None if pool["is_elastic"] else pool["instance_count"],
    )

    def work(connection: Connection) -> tuple[retiring.Retirement, list[int]]:
        if not models.lock_pool(connection, pool["id"]):
            return retiring.Retirement(), []
        vms = [retiring.VmAge(**row) for row in models.ages(connection, pool["id"])]
        decided = retiring.retire(vms, rules, pool["now"])
        closed = models.drain(connection, list(decided.drain)) if decided.drain else []
        if decided.rolled_out:
            models.end_rollout(connection, pool["id"])
        return decided, closed

    decided, closed = runtime.transact(work)
    for vm_id, why in decided.drain.items():
        what = "terminated" if vm_id in closed else "drained"
        log.info("VM %d is %s: %s", vm_id, what, why, extra={"vm_id": vm_id})
        if vm_id not in closed:
            _take_back(runtime, vm_id)
    if decided.rolled_out:
        log.info("all VMs of pool %s are of its image", pool["name"], extra={"pool_id": pool["id"]})
    messages.terminate_vm(closed)
    for vm_id in decided.over:
        _end_interrupted(runtime, vm_id)
    return len(decided.drain) + len(decided.over)


def _take_back(runtime: Runtime, vm_id: int) -> None:
    """Recall what has not started on a VM that drains, so that it goes elsewhere, first of all.

    If the VM does not answer, what it has not started is lost with it later.
    """
    row = runtime.transact(lambda c: watches.vm_for_channel(c, vm_id))
    waiting = runtime.transact(lambda c: models.placed_on(c, vm_id))
    if row is None or not waiting:
        return
    try:
        channel = runtime.links.get(row)
        backend = runtime.links.backend(row["backend"])
        recalled = backend.recall_jobs(channel, vm_address(row), waiting)
    except (VmUnreachable, BackendError) as error:
        log.info("VM %d gives nothing back: %s", vm_id, error, extra={"vm_id": vm_id})
        return

    def work(connection: Connection) -> None:
        if lock_journal(connection, vm_id) is not None:
            models.displace(connection, starting.take_back(connection, vm_id, recalled))

    runtime.transact(work)


def _end_interrupted(runtime: Runtime, vm_id: int) -> None:
    """Give up a VM whose time is over: what still runs there is LOST, and goes first elsewhere."""

    def work(connection: Connection) -> tuple[int, str]:
        vm_life.lock_vms(connection, [vm_id])
        why = models.preempted_for(connection, vm_id) or "its provider took it away"
        lost = recording.lose_attempts(connection, vm_id, why)
        vm_life.move_vm(connection, vm_id, VmState.STOPPING, fields={"error": why})
        return lost, why

    try:
        lost, why = runtime.transact(work)
    except IllegalTransition as moved:
        log.info("VM %d had gone on: %s", vm_id, moved)
        return
    logs.transition("vm", vm_id, "STOPPING", error=why, attempts_lost=lost)
    runtime.links.drop(vm_id)
    messages.terminate_vm([vm_id])


def _reboot(runtime: Runtime, vm_id: int) -> bool:
    """Take a reboot further: first the rows, then the machine, then who meets it anew."""

    def begin(connection: Connection) -> str | None:
        state = models.begin_reboot(connection, vm_id)
        if state in (VmState.RUNNING, VmState.STALLED):
            recording.lose_attempts(connection, vm_id, "its VM was rebooted")
            vm_life.move_vm(connection, vm_id, VmState.WAIT_SSH_CONTEXT)
        return state

    state = runtime.transact(begin)
    if state is None:
        return False
    if state != VmState.WAIT_SSH_CONTEXT:
        logs.transition("vm", vm_id, "WAIT_SSH_CONTEXT", after=state)
    way = runtime.transact(lambda c: models.reboot_way(c, vm_id))
    if way is not None:
        try:
            _tell(runtime, way)
        except RemudaError as error:  # whether it restarts is seen, whatever came of this
            log.error("VM %d is not told to reboot: %s", vm_id, error, extra={"vm_id": vm_id})
    runtime.links.drop(vm_id)
    runtime.transact(lambda c: models.note_told(c, vm_id))
    messages.spawn_vm([vm_id])
    return True


def _tell(runtime: Runtime, way: Mapping[str, Any]) -> None:
    provider = provider_of(runtime, way)
    if way["reboot_command"] is None and provider.reboot(way["provider_id"]):
        return
    whole = get_backend(way["backend"]).over_network
    command = way["reboot_command"] or (["/sbin/reboot"] if whole else [])
    channel = get_backend(way["backend"]).connect(vm_address(way), timeout_s=CONNECT_TIMEOUT_S)
    try:
        channel.request("reboot", c=command)
    finally:
        channel.close()
