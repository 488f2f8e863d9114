"""The life of VMs, step by step: spawn, terminate, and watch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.errors import (
    BackendError,
    BadInput,
    IllegalTransition,
    PermanentProviderError,
    ProviderError,
    VmUnreachable,
)
from remuda.models import machines as models
from remuda.models import vm_life, watches
from remuda.models.sizing import note_launch
from remuda.models.states import VmState
from remuda.tasks import contextualizing, logs, messages, recording
from remuda.tasks.runtime import Runtime
from remuda.tasks.watching import this_watcher
from remuda.workers.providers import get_provider
from remuda.workers.providers.base import Provider, VmDescription, VmSpec

log = logging.getLogger(__name__)


def spawn_vm(runtime: Runtime, vm_id: int) -> bool:
    """Make the machine of a NEW VM and bring it to RUNNING; True when it got there.

    Each step is taken up where the last try left it: the provider knows the token, so repeating
    spawns nothing twice. A failed launch is recorded, its remains terminated, the pool backs off.
    """
    row = runtime.transact(lambda c: models.vm_with_pool(c, vm_id))
    if row is None or row["state"] not in (VmState.NEW, *contextualizing.STATES):
        return False
    try:
        provider = get_provider(row["provider"], runtime.settings, row["settings"])
        if row["state"] == VmState.NEW:
            if not runtime.transact(lambda c: models.note_spawn(c, vm_id)):
                return False
            provider_id = provider.spawn(_spec(row), str(row["token"]))
            found = provider.describe([provider_id]).get(provider_id)
            if found is None or found.state == "gone":
                raise VmUnreachable("the VM was gone as soon as it was made")
            runtime.transact(lambda c: _submitted(c, vm_id, provider_id, found))
            logs.transition("vm", vm_id, "SUBMITTED", provider_id=provider_id)
        if not contextualizing.contextualize(runtime, vm_id):
            return False
        check_vms(runtime, [vm_id])
    except IllegalTransition as error:
        log.info("VM %d was taken further by somebody else: %s", vm_id, error)
        return False
    except (ProviderError, BackendError, BadInput, VmUnreachable) as error:
        nothing = isinstance(error, ProviderError) and error.made_nothing
        _failed(runtime, row, f"{type(error).__name__}: {error}", made_nothing=nothing)
        return False
    return True


def _spec(row: Mapping[str, Any]) -> VmSpec:
    return VmSpec(
        name=row["name"],
        pool=row["pool"],
        slots=row["slots"],
        memory_bytes=row["memory_bytes"],
        heartbeat_s=row["heartbeat_s"],
        image=row["image"],
        settings=row["settings"],
    )


def _submitted(connection: Connection, vm_id: int, provider_id: str, found: VmDescription) -> None:
    vm_life.move_vm(
        connection,
        vm_id,
        VmState.SUBMITTED,
        fields={
            "provider_id": provider_id,
            "address": dict(found.address),
            "private_ip": found.private_ip,
            "public_ip": found.public_ip,
        },
    )


def _failed(
    runtime: Runtime, row: Mapping[str, Any], error: str, *, made_nothing: bool = False
) -> None:
    """Give up a VM that could not be launched; it is gone at once if there never was a machine."""

    def work(connection: Connection) -> bool:
        note_launch(connection, row["pool_id"], error=error)  # pool before VM, as sizing locks
        # Of two who launch it at once the first to fail tells why; the other finds it gone.
        launching = [VmState.NEW, *contextualizing.STATES]
        told = {"error": error[:2000]}
        vm_life.move_vm(connection, row["id"], VmState.ERROR, allowed=launching, fields=told)
        vm_life.move_vm(connection, row["id"], VmState.STOPPING)
        # Only if no other call of the same token can have made one.
        gone = made_nothing and models.spawned_once(connection, row["id"])
        if gone:
            vm_life.move_vm(connection, row["id"], VmState.HALTED)
        return gone

    try:
        gone = runtime.transact(work)
    except IllegalTransition as moved:
        log.info("VM %d failed to launch, but had moved on: %s", row["id"], moved)
        return
    log.error(
        "VM %s failed to launch: %s",
        row["name"],
        error,
        extra={"vm_id": row["id"], "pool_id": row["pool_id"]},
    )
    if not gone:
        messages.terminate_vm([row["id"]])


def terminate_vm(runtime: Runtime, vm_id: int) -> bool:
    """Remove the machine of a STOPPING (or STALLED, ERROR) VM; True when it is confirmed gone.

    What still lived on it is LOST first. Repeating is harmless; the sweep repeats until confirmed.
    """

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
    provider = _provider_of(runtime, row)
    provider_id = row["provider_id"]
    if provider is not None and provider_id is None:
        provider_id = _by_token(provider.list(row["pool"]), str(row["token"]))
    if provider is not None and provider_id is not None:
        provider.terminate(provider_id)
        left = provider.describe([provider_id]).get(provider_id)
        if left is not None and left.state != "gone":
            log.info("VM %d is still going", vm_id, extra={"vm_id": vm_id})
            return False
    try:
        runtime.transact(lambda c: vm_life.move_vm(c, vm_id, VmState.HALTED))
    except IllegalTransition as error:
        log.debug("VM %d: %s", vm_id, error)
        return False
    logs.transition("vm", vm_id, "HALTED")
    return True


def _provider_of(runtime: Runtime, row: Mapping[str, Any]) -> Provider | None:
    """Return the VM's provider; None if there is none of that kind, and so never was a machine.

    Raises PermanentProviderError if there was one, and its kind is no longer known here.
    """
    try:
        return get_provider(row["provider"], runtime.settings, row["settings"])
    except BadInput as error:
        if row["provider_id"] is None:
            return None
        raise PermanentProviderError(f"VM {row['name']} cannot be ended: {error}") from error


def _by_token(described: list[VmDescription], token: str) -> str | None:
    return next((vm.provider_id for vm in described if vm.token == token), None)


def check_vms(runtime: Runtime, vm_ids: list[int] | None = None) -> None:
    """Have VMs that nobody watches (of `vm_ids`, if given) taken up: here, or by any watcher."""
    watcher = this_watcher()
    if watcher is not None:
        watcher.attacher.claim(vm_ids)
    else:  # a pool child has none; its parent, like every worker, hears this
        runtime.transact(watches.call_watchers)
