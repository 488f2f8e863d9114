"""Send the wake-ups: ids only, in chunks, from anywhere in a worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import current_app
from kombu.exceptions import OperationalError

from remuda.tasks import figures, names
from remuda.tasks.flower.wording import id_list

log = logging.getLogger(__name__)
_CHUNK = 500


def _send(task: str, vm_id: int | None = None, ids: Sequence[int] | None = None) -> None:
    """Send, or let it be: what a lost message would have done, a sweep does later."""
    args = () if vm_id is None else (vm_id,) if ids is None else (vm_id, list(ids))
    shown = "" if vm_id is None else f"VM {vm_id}"
    shown += "" if ids is None else f", attempts {id_list(ids)}"
    try:
        current_app.send_task(
            task, args=args, queue=names.QUEUE_OF[task], retry=False,
            argsrepr=shown, kwargsrepr="",
        )  # fmt: skip
    except (OperationalError, OSError) as error:
        log.warning("could not send %s: %s", task, type(error).__name__)
        kept = figures.figures()
        if kept is not None:
            kept.send_failures.labels(task).inc()


def _chunked(task: str, vm_id: int, ids: Sequence[int]) -> None:
    for start in range(0, len(ids), _CHUNK):
        _send(task, vm_id, ids[start : start + _CHUNK])


def submit_job(vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Have attempts staged and started on their VM."""
    for start in range(0, len(attempt_ids), 16):  # small, so that several workers stage at once
        _send(names.SUBMIT_JOB, vm_id, attempt_ids[start : start + 16])


def get_results(vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Have the outputs of attempts fetched from their VM."""
    for start in range(0, len(attempt_ids), 16):
        _send(names.GET_RESULTS, vm_id, attempt_ids[start : start + 16])


def cancel_job(vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Have attempts killed on their VM."""
    _chunked(names.CANCEL_JOB, vm_id, attempt_ids)


def free_job(vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Have the sandboxes of ended attempts removed."""
    _chunked(names.FREE_JOB, vm_id, attempt_ids)


def update_job_state(vm_id: int) -> None:
    """Have a VM's attempts compared with its runner's."""
    _send(names.UPDATE_JOB_STATE, vm_id)


def synchronize(vm_id: int) -> None:
    """Have a VM brought the resources of its pool."""
    _send(names.SYNCHRONIZE, vm_id)


def synchronize_all() -> None:
    """Have every VM brought the resources it lacks."""
    _send(names.SYNCHRONIZE_ALL)


def watch_budgets() -> None:
    """Have what was spent compared with the budgets now."""
    _send(names.WATCH_BUDGETS)


def reconcile_vms() -> None:
    """Have rows and providers compared now."""
    _send(names.RECONCILE_VMS)


def retire_vms() -> None:
    """Have VMs that are to go, or to restart, taken further."""
    _send(names.RETIRE_VMS)


def spawn_vm(vm_ids: Sequence[int]) -> None:
    """Have VMs made, one message each: they take their time."""
    for vm_id in vm_ids:
        _send(names.SPAWN_VM, vm_id)


def terminate_vm(vm_ids: Sequence[int]) -> None:
    """Have VMs removed, one message each."""
    for vm_id in vm_ids:
        _send(names.TERMINATE_VM, vm_id)


def release_vm(vm_ids: Sequence[int]) -> None:
    """Have VMs made ready for their next users, one message each."""
    for vm_id in vm_ids:
        _send(names.RELEASE_VM, vm_id)
