"""What is wrong with VMs: silence, and what their checks find."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BackendError, RemudaError, TransientProviderError
from remuda.models import health as models
from remuda.models import vm_life
from remuda.models.states import NO_BACKEND, VmState
from remuda.tasks import logs, messages, parallel, recording
from remuda.tasks.runtime import Runtime
from remuda.workers import health
from remuda.workers.channel import Channel
from remuda.workers.providers import get_provider
from remuda.workers.providers.base import Provider
from remuda.workers.providers.bounded import Bounded

log = logging.getLogger(__name__)
STALL_GAP_S = 15.0  # a longer pause between sweeps means that nobody was listening
MOST = 256  # VMs checked in one sweep of one worker
AT_ONCE = 16


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


def check_health(runtime: Runtime, vm_ids: Sequence[int] | None = None) -> dict[int, str | None]:
    """Check the running VMs that are due (of `vm_ids`, if given), idle or busy; return the errors.

    Each has its pool's `check_timeout_s`; one that hangs has failed by then. Those that failed more
    than `max_check_fails` times in a row are terminated if they are idle, else drained.
    """
    due = runtime.transact(lambda c: models.claim_due(c, most=MOST, vm_ids=vm_ids))
    if not due:
        return {}
    found = parallel.each(
        {("check", row["id"]): partial(_check, runtime, row) for row in due},
        at_once=AT_ONCE,
        deadline_s={("check", row["id"]): row["check_timeout_s"] for row in due},
    )
    errors = {row["id"]: _told(found[("check", row["id"])]) for row in due}
    for vm_id, error in errors.items():
        if error is not None:
            log.warning("VM %d failed its check: %s", vm_id, error, extra={"vm_id": vm_id})
    _act(runtime, runtime.transact(lambda c: models.record(c, errors)))
    return errors


def _told(result: str | Exception | None) -> str | None:
    if isinstance(result, Exception) and not isinstance(result, (RemudaError, TimeoutError)):
        log.error("a check broke", exc_info=result)
    return f"{type(result).__name__}: {result}" if isinstance(result, Exception) else result


def _check(runtime: Runtime, row: Mapping[str, Any]) -> str | None:
    """Look at one VM in every way its pool asks for; return what is wrong, or raise."""
    if row["backend"] == NO_BACKEND:  # there is no runner: its provider's word is all
        _look_closer(runtime, row)
        return None
    ends_at = time.monotonic() + row["check_timeout_s"]
    channel = runtime.links.get(row)
    status = channel.request("status", timeout_s=row["check_timeout_s"])
    command = None
    if row["health_command"]:
        forced = runtime.settings.forced_for(row["pool_name"])
        left_s = max(0.1, ends_at - time.monotonic())
        command = _run_command(channel, row, {**row["constants"], **forced}, timeout_s=left_s)
    wrong = health.problem(status, min_free_disk_bytes=row["min_free_disk_bytes"], command=command)
    if wrong is None:
        _look_closer(runtime, row)
    return wrong


def _run_command(
    channel: Channel, row: Mapping[str, Any], env: Mapping[str, str], *, timeout_s: float
) -> dict[str, Any]:
    try:
        return channel.request(
            "check",
            timeout_s=timeout_s,
            c=list(row["health_command"]),
            env={**env, "REMUDA_POOL": row["pool_name"]},
            timeout=timeout_s * 0.9,
        )
    except BackendError as error:
        return {"st": None, "out": str(error)}


def _look_closer(runtime: Runtime, row: Mapping[str, Any]) -> None:
    """Have the provider look, if it has a way of its own; not being told is no failure."""
    inner = get_provider(row["provider"], runtime.settings, row["settings"])
    if type(inner).livecheck is Provider.livecheck:
        return
    provider = Bounded(inner)
    try:
        described = provider.describe([row["provider_id"]]).get(row["provider_id"])
        if described is not None:  # one that is gone is for the ledger
            provider.livecheck(row["provider_id"], described)
    except TransientProviderError as error:
        log.info("VM %d cannot be looked at: %s", row["id"], error, extra={"vm_id": row["id"]})


def _act(runtime: Runtime, unfit: Sequence[Mapping[str, Any]]) -> None:
    by_pool: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in unfit:
        by_pool[row["pool_id"]].append(row)
    for pool_id, rows in by_pool.items():
        errors = {row["id"]: f"health checks fail: {row['error']}" for row in rows}

        def work(
            connection: Connection,
            pool_id: int = pool_id,
            rows: Sequence[Mapping[str, Any]] = rows,
            errors: Mapping[int, str] = errors,
        ) -> tuple[health.Condemned, list[int]]:
            running, draining = models.standing(connection, pool_id)
            decided = health.condemn(
                [health.Checked(row["id"], row["failures"], row["busy"]) for row in rows],
                running=running,
                draining=draining,
            )
            going = (*decided.terminate, *decided.drain)
            return decided, models.give_up(connection, {i: errors[i] for i in going})

        decided, closed = runtime.transact(work)
        for vm_id in (*decided.terminate, *decided.drain):
            what = "terminated" if vm_id in closed else "drained"
            log.error("VM %d is %s: %s", vm_id, what, errors[vm_id], extra={"vm_id": vm_id})
        if decided.spared:
            log.error(
                "%d more VMs of pool %d fail their checks; they go when others are there",
                decided.spared,
                pool_id,
                extra={"pool_id": pool_id},
            )
        messages.terminate_vm(closed)
