"""Contextualization: bring a new VM its runner, note what the machine is, run the preparation."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.constraints import architecture_of, hardware_of, unmet
from remuda.errors import NoResources, PreparationFailed, VmUnreachable
from remuda.models import images, launches, vm_life, watches
from remuda.models import machines as models
from remuda.models.sizing import note_launch
from remuda.models.states import NO_BACKEND, VmState
from remuda.tasks import logs, recording, resources
from remuda.tasks.links import CONNECT_TIMEOUT_S, vm_address
from remuda.tasks.runtime import Runtime
from remuda.workers import fitness
from remuda.workers.backends import get_backend
from remuda.workers.backends.base import Backend
from remuda.workers.backends.slurm import serve_arguments
from remuda.workers.channel import Channel, OnPush

log = logging.getLogger(__name__)
WAIT_S = 2.0  # for a preparation to end; one that takes longer is told of by the watch
OUTPUT_BYTES = 64 << 10
REVIVE_TIMEOUT_S = 30.0
_NEVER_OFF = ("local", "noop", "static")  # whose machines are not ours to power off unless told
_FACTS = (
    "cores",
    "machine_memory_bytes",
    "disk_bytes",
    "cpu_model",
    "cgroup",
    "gpus",
    "ssd",
    "python",
    "features",
)
STATES = (VmState.SUBMITTED, VmState.WAIT_SSH_CONTEXT, VmState.CONTEXTUALIZING)


class NotAsPromised(NoResources):
    """The VM is less than its image and pool say."""


def contextualize(runtime: Runtime, vm_id: int) -> bool:
    """Bring a SUBMITTED or rebooted VM on its way to RUNNING; True when it got there.

    Each step is taken up where the last call left it. Raises VmUnreachable while it does not answer,
    NotAsPromised if it is less than it should be, PreparationFailed if the pool's command failed.
    """
    row = runtime.transact(lambda c: models.vm_with_pool(c, vm_id))
    vm = runtime.transact(lambda c: watches.vm_for_channel(c, vm_id))
    if row is None or vm is None or vm["state"] not in STATES or row["reboot"] == "NOW":
        return False
    if vm["backend"] == NO_BACKEND:  # it has no runner to meet
        _arrive(runtime, row, {}, None)
        return True
    prepared = threading.Event()

    def heard(_channel: Channel, push: dict[str, Any]) -> None:
        if push.get("push") == "prepared":
            prepared.set()

    channel = _meet(runtime, row, vm, heard)
    try:
        hello = channel.request("hello", watch=False, since=0)
        if row["reboot"] and not rebooted(row["boot"], boot_of(hello), whole=_is_whole(row)):
            raise VmUnreachable("it has not gone down to reboot")
        measured = _measured(hello, row)
        _compare(runtime, row, hello, measured)
        configure(channel, hello, row)
        resources.bring(runtime, vm, channel, runtime.links.backend(vm["backend"]))
        result = None
        if row["preparation"]:
            _begin(runtime, vm_id, measured)
            result = _prepare(
                channel, row, prepared, forced=runtime.settings.forced_for(row["pool_name"])
            )
            if result is None:
                return False
            if "said" in hello.get("features", ()):
                recording.take_said(runtime, vm_id, channel)
    finally:
        channel.close()
    if result is not None:
        _judge(runtime, row, result)
    _arrive(runtime, row, measured, result)
    return True


def _arguments(row: Mapping[str, Any]) -> list[str]:
    return serve_arguments(
        name=row["name"],
        slots=row["slots"],
        memory_bytes=row["memory_bytes_per_vm"],
        heartbeat_s=row["heartbeat_s"],
        settings=row["settings"],
    )


def _meet(
    runtime: Runtime, row: Mapping[str, Any], vm: Mapping[str, Any], heard: OnPush
) -> Channel:
    """Return a channel to the VM's runner, put there if need be; VmUnreachable: not yet."""
    backend = runtime.links.backend(vm["backend"])
    if backend.over_network and vm["state"] == VmState.SUBMITTED:
        _wait_for_ssh(runtime, row["id"])
    if row["reboot"] is None and vm["state"] != VmState.CONTEXTUALIZING:
        backend.install(vm_address(vm), _arguments(row))
    try:
        return _connect(backend, vm, heard)
    except VmUnreachable:
        if row["reboot"] is None:
            raise
    backend.revive(vm_address(vm), timeout_s=REVIVE_TIMEOUT_S)  # as it served before
    return _connect(backend, vm, heard)


def _connect(backend: Backend, vm: Mapping[str, Any], heard: OnPush) -> Channel:
    return backend.connect(
        vm_address(vm), watch=False, since=0, on_push=heard, timeout_s=CONNECT_TIMEOUT_S
    )


def _wait_for_ssh(runtime: Runtime, vm_id: int) -> None:
    def work(connection: Connection) -> None:
        allowed = [VmState.SUBMITTED]
        vm_life.move_vm(connection, vm_id, VmState.WAIT_SSH_CONTEXT, allowed=allowed)

    runtime.transact(work)
    logs.transition("vm", vm_id, "WAIT_SSH_CONTEXT")


def boot_of(hello: Mapping[str, Any]) -> str:
    """Return what is another one after a reboot: the kernel's boot, and the runner's process."""
    return f"{hello.get('boot_id')}:{hello.get('pid')}"


def rebooted(before: str | None, after: str, *, whole: bool) -> bool:
    """Return whether it is another boot; of a part of a machine its runner's is enough."""
    if before is None:
        return True
    return before.split(":")[0] != after.split(":")[0] if whole else before != after


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Return whether the VM is a machine, and its jobs run on it."""
    return get_backend(row["backend"]).over_network


def _compare(
    runtime: Runtime,
    row: Mapping[str, Any],
    hello: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> None:
    """Raise NotAsPromised, with what was measured kept, if the machine is less than it should be."""
    said = row["facts"].get("promised") or {}
    wrong = fitness.shortfall(
        fitness.Promised(
            cores=said.get("cores"),
            memory_bytes=said.get("memory_bytes"),
            least_memory_bytes=row["memory_bytes_per_vm"],
            architecture=row["architecture"],
            whole=_is_whole(row),
        ),
        fitness.Measured(
            cores=hello.get("cores"),
            memory_bytes=hello.get("machine_memory_bytes"),
            architecture=str(measured["architecture"]),
        ),
    )
    if wrong is None:
        wrong = _unmet(row, measured)
    if wrong is not None:
        runtime.transact(lambda c: models.set_facts(c, row["id"], measured["facts"]))
        raise NotAsPromised(f"VM {row['name']} is less than was promised: {wrong}")


def _unmet(row: Mapping[str, Any], measured: Mapping[str, Any]) -> str | None:
    """Return which of its pool's hardware constraints the machine does not meet."""
    if not row["constraints"]:
        return None
    hardware = hardware_of({"slots": row["slots"], "memory_bytes": None, **measured})
    lacks = unmet(hardware, architecture=None, constraints=row["constraints"])
    return "; ".join(lack.replace("it asks", "its pool asks", 1) for lack in lacks) or None


def configure(channel: Channel, hello: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Tell the runner the pool's dead-man timer; `row` has the pool's columns of it."""
    if "dead_man" not in hello.get("features", ()):
        return
    command = row["dead_man_command"]
    if command is None and row["provider"] not in _NEVER_OFF:
        command = ["/sbin/poweroff"]
    channel.send("configure", dead_man=row["dead_man_s"] or 0, command=command or [])


def _measured(hello: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that say what the machine really is.

    The pool may say that its disks are SSDs, if the machine cannot tell.
    """
    facts = {name: hello[name] for name in _FACTS if hello.get(name) is not None}
    if isinstance(row["settings"].get("ssd"), bool):
        facts.setdefault("ssd", row["settings"]["ssd"])
    if row["facts"].get("promised"):
        facts["promised"] = row["facts"]["promised"]
    fields: dict[str, Any] = {
        "architecture": architecture_of(hello["architecture"]),
        "gpus": _gpus(hello.get("gpus"), row),
        "facts": facts,
        "boot": boot_of(hello),
    }
    if hello.get("memory_bytes"):
        fields["memory_bytes"] = hello["memory_bytes"]
    return fields


def _gpus(measured: int | None, row: Mapping[str, Any]) -> int:
    """Return how many GPUs jobs may have: those there are, at most what the pool gives a VM.

    VMs of the local provider are parts of one machine: they have what the pool says, or none.
    """
    given = int(row["gpus_per_vm"])
    if measured is None:
        return given
    return min(measured, given) if given or row["provider"] == "local" else int(measured)


def _begin(runtime: Runtime, vm_id: int, measured: Mapping[str, Any]) -> None:
    """Record that the VM answered and is being prepared; from here on it is watched."""

    def work(connection: Connection) -> bool:
        state = vm_life.lock_vms(connection, [vm_id]).get(vm_id)
        if state == VmState.CONTEXTUALIZING:
            return False
        if state == VmState.SUBMITTED:
            vm_life.move_vm(connection, vm_id, VmState.WAIT_SSH_CONTEXT)
        vm_life.move_vm(connection, vm_id, VmState.CONTEXTUALIZING, fields=measured)
        return True

    if runtime.transact(work):
        logs.transition("vm", vm_id, "CONTEXTUALIZING")
        runtime.transact(watches.call_watchers)


def _prepare(
    channel: Channel,
    row: Mapping[str, Any],
    prepared: threading.Event,
    *,
    forced: Mapping[str, str],
) -> dict[str, Any] | None:
    """Have the command run, once however often it is asked for; None while it runs."""
    command = list(row["preparation"])
    fields = {
        "c": command,
        "env": {**row["constants"], **forced, "REMUDA_POOL": row["pool_name"]},
        "timeout": row["preparation_timeout_s"],
        "key": hashlib.sha256(json.dumps(command).encode()).hexdigest()[:32],
    }
    answer = channel.request("prepare", **fields)
    if answer["state"] == "running" and prepared.wait(WAIT_S):
        answer = channel.request("prepare", **fields)
    return None if answer["state"] == "running" else answer


def _judge(runtime: Runtime, row: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Raise PreparationFailed, its output kept, unless the command succeeded."""
    if result.get("st") == 0 and not result.get("timed_out"):
        return
    kept = _kept(result)
    runtime.transact(lambda c: models.set_preparation(c, row["id"], kept))
    if result.get("timed_out"):
        how = f"took longer than {row['preparation_timeout_s']:g} s"
    elif result.get("sig"):
        how = f"was ended by signal {result['sig']}"
    else:
        how = f"ended with exit code {result.get('st')}"
    lines = kept["output"].strip().splitlines()
    said = f": {lines[-1][:300]}" if lines else ""
    raise PreparationFailed(f"the pool's preparation command {how}{said}")


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    output = str(result.get("out") or "").replace("\0", "")
    return {
        "exit_code": result.get("st"),
        "signal": result.get("sig"),
        "timed_out": bool(result.get("timed_out")),
        "output": output[-OUTPUT_BYTES:],
    }


def _arrive(
    runtime: Runtime,
    row: Mapping[str, Any],
    measured: Mapping[str, Any],
    result: Mapping[str, Any] | None,
) -> None:
    vm_id = row["id"]

    def work(connection: Connection) -> None:
        note_launch(connection, row["pool_id"], error=None)  # pool before VM, as sizing locks
        launches.forget_refusals(connection, row["pool_id"], row["offer"])
        fields = {**measured, "error": None, "next_try_at": None}
        if result is not None:
            fields["preparation"] = _kept(result)
        if vm_life.lock_vms(connection, [vm_id]).get(vm_id) == VmState.WAIT_SSH_CONTEXT:
            vm_life.move_vm(connection, vm_id, VmState.CONTEXTUALIZING)
        allowed = [VmState.SUBMITTED, VmState.CONTEXTUALIZING]
        vm_life.move_vm(connection, vm_id, VmState.RUNNING, allowed=allowed, fields=fields)
        if row["reboot"]:
            models.end_reboot(connection, vm_id)
        images.validate(connection, vm_id)

    runtime.transact(work)
    logs.transition("vm", vm_id, "RUNNING")
