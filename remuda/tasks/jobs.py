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


def _if_reachable(what: str, vm_id: int, step: Callable[[], Any]) -> None:
    """Run a step that needs a VM; an unreachable one is left to its heartbeats and the sweeps."""
    try:
        step()
    except Unreachable as error:
        log.info("%s of VM %d must wait: %s", what, vm_id, error, extra={"vm_id": vm_id})


@app.task(name=names.SUBMIT_JOB)  # type: ignore[untyped-decorator]
def submit_job(vm_id: int, attempt_ids: list[int] | None = None) -> None:
    """Stage and start PLACED attempts of a VM (all, or those)."""
    _if_reachable("submit", vm_id, lambda: placing.submit_job(get_runtime(), vm_id, attempt_ids))


@app.task(name=names.UPDATE_JOB_STATE)  # type: ignore[untyped-decorator]
def update_job_state(vm_id: int) -> None:
    """Bring rows and runner of a VM to agreement; exits reach the rows by its watcher's journal."""
    runtime = get_runtime()
    row = runtime.transact(lambda c: vm_for_channel(c, vm_id))
    if row is not None:
        _if_reachable(
            "update", vm_id, lambda: attaching.agree(runtime, row, runtime.links.get(row))
        )


@app.task(name=names.GET_RESULTS)  # type: ignore[untyped-decorator]
def get_results(vm_id: int, attempt_ids: list[int] | None = None) -> None:
    """Fetch outputs of EXITED attempts of a VM (all, or those) and end their jobs."""
    _if_reachable(
        "results", vm_id, lambda: collecting.get_results(get_runtime(), vm_id, attempt_ids)
    )


@app.task(name=names.CANCEL_JOB)  # type: ignore[untyped-decorator]
def cancel_job(vm_id: int, attempt_ids: list[int]) -> None:
    """Kill attempts on a VM."""
    _if_reachable(
        "cancel", vm_id, lambda: cancelling.cancel_on_vm(get_runtime(), vm_id, attempt_ids)
    )


@app.task(name=names.FREE_JOB)  # type: ignore[untyped-decorator]
def free_job(vm_id: int, attempt_ids: list[int]) -> None:
    """Remove sandboxes of ended attempts."""
    _if_reachable("free", vm_id, lambda: collecting.free(get_runtime(), vm_id, attempt_ids))
