"""Dispatch: from waiting jobs to attempts handed to their VMs' runners."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.errors import (
    BackendError,
    ConfigError,
    DataStagingError,
    SecretUnreadable,
    VmUnreachable,
)
from remuda.models import starting
from remuda.models.exits import lock_journal, record_ends
from remuda.models.watches import vm_for_channel
from remuda.tasks import decisions, logs, messages, resources
from remuda.tasks.links import vm_address
from remuda.tasks.placements import placements
from remuda.tasks.runtime import Runtime
from remuda.tasks.secret_delivery import secrets_for
from remuda.tasks.start_jobs import start_job
from remuda.workers.backends.base import StartJob

log = logging.getLogger(__name__)


def dispatch(runtime: Runtime) -> dict[int, int]:
    """Place what can be placed and hand it to the runners; return the new attempts by VM."""
    total: Counter[int] = Counter()
    for placed in placements(runtime.transact, runtime.settings):
        by_vm: dict[int, list[int]] = defaultdict(list)
        for attempt in placed:
            by_vm[attempt.vm_id].append(attempt.attempt_id)
            logs.transition(
                "job",
                attempt.job_id,
                "SUBMITTED",
                attempt_id=attempt.attempt_id,
                vm_id=attempt.vm_id,
            )
        for vm_id, attempt_ids in by_vm.items():
            total[vm_id] += len(attempt_ids)
            hand_over(runtime, vm_id, attempt_ids)
    return dict(total)


def hand_over(runtime: Runtime, vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Give new attempts to the VM's runner: here if it is one line on an open channel, else by task.

    Nothing is lost when this fails: `reconcile_jobs` finds attempts that stay PLACED.
    """
    channel = runtime.links.present(vm_id)
    if channel is None:
        messages.submit_job(vm_id, attempt_ids)
        return
    vm, rows, floor = runtime.transact(
        lambda c: (
            vm_for_channel(c, vm_id),
            starting.to_start(c, vm_id, attempt_ids=attempt_ids),
            starting.floor(c, vm_id),
        )
    )
    if vm is None:
        return
    rows, secrets = _with_secrets(runtime, vm_id, rows)
    here = [row for row in rows if not _takes_long(row)]
    there = [row["attempt_id"] for row in rows if _takes_long(row)]
    if there:
        messages.submit_job(vm_id, there)
    if here:
        backend = runtime.links.backend(vm["backend"])
        jobs = [_start(runtime, row, secrets) for row in here]
        try:
            backend.post_jobs(channel, vm_address(vm), jobs, floor=floor)
        except VmUnreachable as error:
            log.info("VM %d left before its jobs were handed over: %s", vm_id, error)
            messages.submit_job(vm_id, [row["attempt_id"] for row in here])


def _start(
    runtime: Runtime, row: Mapping[str, Any], secrets: Mapping[int, Mapping[str, str]]
) -> StartJob:
    return start_job(row, secrets, forced=runtime.settings.forced_for(row["pool_name"]))


def _with_secrets(
    runtime: Runtime, vm_id: int, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[int, dict[str, str]]]:
    """Return what can be started, and the secrets by pool; who cannot be given theirs has failed."""
    try:
        return rows, secrets_for(runtime, rows)
    except (ConfigError, SecretUnreadable) as error:
        log.error("jobs of VM %d cannot be given their secrets: %s", vm_id, error)
        for row in rows:
            if row["gets_secrets"]:
                _fail(runtime, vm_id, row["attempt_id"], f"its secrets cannot be had: {error}")
        return [row for row in rows if not row["gets_secrets"]], {}


def _takes_long(row: Mapping[str, Any]) -> bool:
    return bool(row["inputs"]) or row["lacks_resources"]


def submit_job(runtime: Runtime, vm_id: int, attempt_ids: Sequence[int] | None = None) -> int:
    """Stage the inputs of PLACED attempts and have the runner start them; return how many it took.

    Repeating it starts nothing twice. A VM that doesn't answer leaves everything as it is; inputs
    that cannot be staged end their attempts.
    """
    found = runtime.transact(
        lambda c: (
            vm_for_channel(c, vm_id),
            starting.to_start(c, vm_id, attempt_ids=attempt_ids),
            starting.floor(c, vm_id),
        )
    )
    vm, rows, floor = found
    if vm is None or not rows:
        return 0
    rows, secrets = _with_secrets(runtime, vm_id, rows)
    channel = runtime.links.get(vm)
    backend = runtime.links.backend(vm["backend"])
    jobs = [_start(runtime, row, secrets) for row in rows]
    if any(row["lacks_resources"] for row in rows):
        try:
            resources.bring(runtime, vm, channel, backend)
        except DataStagingError as error:
            waiting = [row["attempt_id"] for row in rows if row["lacks_resources"]]
            for attempt_id in waiting:
                _fail(runtime, vm_id, attempt_id, str(error))
            jobs = [job for job in jobs if job.attempt_id not in waiting]
    try:
        states = backend.submit_jobs(channel, vm_address(vm), jobs, floor=floor)
    except DataStagingError as error:
        states = _one_by_one(runtime, vm, jobs, floor=floor, first=error)
    stale = [attempt_id for attempt_id, state in states.items() if state == "stale"]
    if stale:
        taken_back = runtime.transact(lambda c: _take_back(c, vm_id, stale))
        log.warning(
            "the runner refused stale attempts; %d are placed anew",
            len(taken_back),
            extra={"vm_id": vm_id, "attempt_ids": taken_back},
        )
    return len(states) - len(stale)


def _take_back(connection: Connection, vm_id: int, stale: Sequence[int]) -> list[int]:
    if lock_journal(connection, vm_id) is None:
        return []
    return starting.take_back(connection, vm_id, stale)


def _one_by_one(
    runtime: Runtime,
    vm: Mapping[str, Any],
    jobs: Sequence[StartJob],
    *,
    floor: int,
    first: DataStagingError,
) -> dict[int, str]:
    """Submit a batch of which some inputs cannot be staged; end just those attempts."""
    states: dict[int, str] = {}
    channel = runtime.links.get(vm)
    backend = runtime.links.backend(vm["backend"])
    log.warning("an input cannot be staged: %s", first, extra={"vm_id": vm["id"]})
    for job in jobs:
        try:
            states |= backend.submit_jobs(channel, vm_address(vm), [job], floor=floor)
        except VmUnreachable:
            raise
        except BackendError as error:
            _fail(runtime, vm["id"], job.attempt_id, str(error))
    return states


def _fail(runtime: Runtime, vm_id: int, attempt_id: int, message: str) -> None:
    def work(connection: Connection) -> None:
        if lock_journal(connection, vm_id) is not None:
            outcomes = decisions.failed_to_start(connection, [attempt_id], message)
            record_ends(connection, vm_id, outcomes)

    runtime.transact(work)
