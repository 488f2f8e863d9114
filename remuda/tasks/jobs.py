"""The tasks that move jobs to machines and back; see the modules they call for their contracts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from remuda.errors import Unreachable
from remuda.models.watches import vm_for_channel
from remuda.tasks import attaching, cancelling, collecting, names, placing
from remuda.tasks.app import app
from remuda.tasks.runtime import get_runtime

log = logging.getLogger(__name__)


def _if_reachable(what: str, vm_id: int, step: Callable[[], Any]) -> str:
    """Run a step that needs a VM; an unreachable one is left to its heartbeats and the sweeps.

    Returns `what` was done, with the step's result for {} in it, and where.
    """
    name = get_runtime().vm_name(vm_id)
    try:
        return f"{what.format(step())} {name}"
    except Unreachable as error:
        log.info("VM %d must wait: %s", vm_id, error, extra={"vm_id": vm_id})
        return f"{name} is out of reach: {error}"


@app.task(name=names.SUBMIT_JOB)  # type: ignore[untyped-decorator]
def submit_job(vm_id: int, attempt_ids: list[int] | None = None) -> str:
    """Stage and start PLACED attempts of a VM (all, or those)."""
    return _if_reachable(
        "{} started on", vm_id, lambda: placing.submit_job(get_runtime(), vm_id, attempt_ids)
    )


@app.task(name=names.UPDATE_JOB_STATE)  # type: ignore[untyped-decorator]
def update_job_state(vm_id: int) -> str:
    """Bring rows and runner of a VM to agreement; exits reach the rows by its watcher's journal."""
    runtime = get_runtime()
    row = runtime.transact(lambda c: vm_for_channel(c, vm_id))
    if row is None:
        return f"{runtime.vm_name(vm_id)} is no more"
    return _if_reachable(
        "rows agree with", vm_id, lambda: attaching.agree(runtime, row, runtime.links.get(row))
    )


@app.task(name=names.GET_RESULTS)  # type: ignore[untyped-decorator]
def get_results(vm_id: int, attempt_ids: list[int] | None = None) -> str:
    """Fetch outputs of EXITED attempts of a VM (all, or those) and end their jobs."""
    return _if_reachable(
        "{} collected from",
        vm_id,
        lambda: collecting.get_results(get_runtime(), vm_id, attempt_ids),
    )


@app.task(name=names.CANCEL_JOB)  # type: ignore[untyped-decorator]
def cancel_job(vm_id: int, attempt_ids: list[int]) -> str:
    """Kill attempts on a VM."""
    return _if_reachable(
        f"{len(attempt_ids)} killed on",
        vm_id,
        lambda: cancelling.cancel_on_vm(get_runtime(), vm_id, attempt_ids),
    )


@app.task(name=names.FREE_JOB)  # type: ignore[untyped-decorator]
def free_job(vm_id: int, attempt_ids: list[int]) -> str:
    """Remove sandboxes of ended attempts."""
    return _if_reachable(
        f"{len(attempt_ids)} sandboxes removed on",
        vm_id,
        lambda: collecting.free(get_runtime(), vm_id, attempt_ids),
    )
