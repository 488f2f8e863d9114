"""Dispatch: from waiting jobs to attempts handed to their VMs' runners."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from remuda.config import Settings
from remuda.errors import (
    BackendError,
    ConfigError,
    DataStagingError,
    SecretUnreadable,
    VmUnreachable,
)
from remuda.models import dispatch as models
from remuda.models import starting, usage
from remuda.models.exits import lock_journal, record_ends
from remuda.models.watches import vm_for_channel
from remuda.tasks import decisions, logs, messages, resources
from remuda.tasks.links import vm_address
from remuda.tasks.runtime import Runtime
from remuda.tasks.secret_delivery import secrets_for
from remuda.tasks.start_jobs import start_job
from remuda.workers import placement
from remuda.workers.backends.base import StartJob

log = logging.getLogger(__name__)
T = TypeVar("T")
_ROUNDS = 20
_POOLS_AT_ONCE = 4
_FOLD_EVERY_S = 1.0


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


class Transact(Protocol):
    """Runs some work in a transaction of its own, and returns its result."""

    def __call__(self, work: Callable[[Connection], T], /) -> T:
        """See `remuda.models.database.transact`."""


def placements(transact: Transact, settings: Settings) -> Iterator[list[models.Placed]]:
    """Place what can be placed, and yield what each transaction placed after its commit."""
    first = yield from _look(transact, settings, wait=False)
    if first.skipped:  # jobs under quotas that others held, who may have been done with their pools
        yield from _look(transact, settings, wait=True)
    if first.shared:
        half_life_s = settings.usage_half_life_s
        transact(lambda c: usage.fold(c, half_life_s=half_life_s, every_s=_FOLD_EVERY_S))


def _look(
    transact: Transact, settings: Settings, *, wait: bool
) -> Generator[list[models.Placed], None, _Once]:
    """Go through all pools that jobs wait for, a few at a time; return what holds of any of them."""
    whole = _Once([])
    rest: list[list[int]] | None = None
    while rest is None or rest:
        pools = rest[0] if rest else None
        for _ in range(_ROUNDS):
            once = transact(partial(_place_once, settings=settings, pools=pools, wait=wait))
            yield once.placed
            whole.shared = whole.shared or once.shared
            whole.skipped = whole.skipped or once.skipped
            pools = once.parts[0] if once.parts else None
            if rest is None:
                rest = once.parts
            if not once.again:
                break
        rest = rest[1:] if rest else []
    return whole


@dataclass(slots=True)
class _Once:
    """What was placed in the first of the `parts`; whether another look may place more.

    `shared`: several owners' jobs wait; `skipped`: some were left to another dispatcher.
    """

    parts: list[list[int]]
    placed: list[models.Placed] = field(default_factory=list)
    again: bool = False
    shared: bool = False
    skipped: bool = False


def _parts(connection: Connection) -> list[list[int]]:
    """Return which of the pools that jobs wait for to see together: few, to share the work.

    Each dispatcher begins somewhere else. While jobs wait for the first of several pools that has
    room, all are seen together.
    """
    pools = models.waiting_pools(connection)
    if len(pools) <= _POOLS_AT_ONCE or models.any_for_several(connection):
        return [pools] if pools else []
    first = random.randrange(len(pools))
    turned = [*pools[first:], *pools[:first]]
    return [turned[i : i + _POOLS_AT_ONCE] for i in range(0, len(turned), _POOLS_AT_ONCE)]


def _place_once(
    connection: Connection, settings: Settings, pools: list[int] | None, *, wait: bool
) -> _Once:
    """Place what is seen in one snapshot of the pools; None: of the first part of all of them."""
    once = _Once([pools] if pools is not None else _parts(connection))
    if not once.parts:
        return once
    snapshot = models.take_snapshot(
        connection,
        max_ahead=settings.placement_max_ahead,
        horizon_s=settings.placement_horizon_s,
        pools=once.parts[0],
        half_life_s=settings.usage_half_life_s,
        reserve_after_s=settings.placement_reserve_after_s,
        wait=wait,
    )
    decided = placement.place(
        _for_placement(snapshot, settings.placement_horizon_s, settings.placement_max_ahead),
        snapshot.now,
    )
    pairs = [(p.job_id, p.vm_id) for p in decided]
    once.placed = models.apply_placements(connection, snapshot, pairs)
    once.again = bool(once.placed and snapshot.cut) and _is_room_left(snapshot, decided)
    once.shared = bool(snapshot.shares.owners)
    once.skipped = snapshot.quota.skipped
    return once


def _is_room_left(snapshot: models.Snapshot, decided: Sequence[placement.Placement]) -> bool:
    """Return whether a VM has free slots that none of the jobs seen could use."""
    left = {vm.id: vm.slots - vm.used_slots for vm in snapshot.vms}
    cores = {job.id: job.cores for job in snapshot.jobs}
    for placed in decided:
        left[placed.vm_id] -= left[placed.vm_id] if placed.ahead else cores[placed.job_id]
    return any(slots > 0 for slots in left.values())


def _for_placement(
    snapshot: models.Snapshot, horizon_s: float, max_ahead: int
) -> placement.PlacementSnapshot:
    return placement.PlacementSnapshot(
        jobs=tuple(
            placement.PendingJob(
                id=job.id,
                pool_id=job.pool_id,
                owner_id=job.owner_id,
                priority=job.priority,
                submitted_at=job.submitted_at,
                cores=job.cores,
                memory_bytes=job.memory_bytes,
                expected_wall_s=job.expected_wall_s,
                gpus=job.gpus,
                architecture=job.architecture,
                constraints=job.constraints,
                sandbox=job.sandbox,
                array_id=job.array_id,
                pool_ids=job.pool_ids or (),
                displaced=job.displaced,
                reserves=job.reserves,
            )
            for job in snapshot.jobs
        ),
        vms=tuple(
            placement.VmCapacity(
                id=vm.id,
                pool_id=vm.pool_id,
                slots=vm.slots,
                memory_bytes=vm.memory_bytes,
                free_slots=max(0, vm.slots - vm.used_slots),
                free_memory_bytes=None
                if vm.memory_bytes is None
                else max(0, vm.memory_bytes - vm.used_memory_bytes),
                backlog_s=vm.backlog_s,
                backlog_count=vm.backlog_count,
                free_gpus=max(0, vm.gpus - vm.used_gpus),
                hardware=vm.hardware,
                isolation=vm.isolation,
                bound_owner_id=vm.bound_owner_id,
                bound_sandbox=vm.bound_sandbox,
                ahead_slots=vm.ahead_slots,
                ahead_memory_bytes=vm.ahead_memory_bytes,
                releases=tuple(
                    placement.Release(*release) for release in snapshot.releases.get(vm.id, ())
                ),
            )
            for vm in snapshot.vms
        ),
        horizon_s=horizon_s,
        max_ahead=max_ahead,
        array_room=snapshot.array_room,
        shares=snapshot.shares,
        quota_room=snapshot.quota.left,
        group_of=snapshot.quota.group_of,
        cut=snapshot.cut,
    )


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
