"""remuda.enqueue: jobs from a producer that can reach only the broker, as plain JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Connection

from remuda.deferring import best_delay_s, read_hours
from remuda.dependencies import Plan
from remuda.errors import BadInput, Refused
from remuda.models.database import database_time
from remuda.models.dependencies import insert_dependencies, resolve
from remuda.models.pool_life import find_pool
from remuda.models.states import OPEN_POOL, PoolState
from remuda.models.submit import NewSpec, insert_jobs, new_job, owner_id, put_off
from remuda.spec import JobSpec
from remuda.spec_files import output_row
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)
_KEYS = {f.name for f in fields(JobSpec)} - {"inputs", "output_dir", "idempotency_key"}


def enqueue(
    runtime: Runtime, specs: Sequence[Mapping[str, Any]], *, pool: str, owner: str, key: str
) -> list[int]:
    """Submit the specs (keys of JobSpec, without files of the producer's) and return the job ids.

    `key` with a spec's place in the list is its idempotency key, so a repeated message submits
    nothing twice. `after`: ids, or names of others among the specs, or mappings of After's fields.
    Raises BadInput for a wrong spec and Refused for a pool that is not open.
    """
    if not 0 < len(key) <= 200:
        raise BadInput("enqueue needs an idempotency key of 1 to 200 characters")
    parsed = [_parse(spec) for spec in specs]

    plan = Plan()
    for spec in parsed:
        plan.note(spec)
        plan.add(spec)
    edges = plan.edges()

    def work(connection: Connection) -> list[int]:
        found = find_pool(connection, pool)
        if found["state"] not in (*OPEN_POOL, PoolState.UNSUBMITTED, PoolState.FAILURE):
            raise Refused(f"pool {pool} is {found['state']}", hint="choose an open pool")
        who = owner_id(connection, owner)
        waits = resolve(connection, edges, owner=who, indices=plan.indices)
        ids = insert_jobs(
            connection,
            [_new_spec(spec, runtime.settings.output_limit_bytes) for spec in parsed],
            [
                replace(new_job(spec, place), idempotency_key=f"{key}:{place}")
                for place, spec in enumerate(parsed)
            ],
            pool_id=found["id"],
            owner=who,
        )
        if any(spec.deferrable for spec in parsed):
            hours, now = read_hours(runtime.settings.hours_file), database_time(connection)
            put_off(
                connection,
                ids,
                [new_job(spec, place) for place, spec in enumerate(parsed)],
                delay_of=lambda within_s, run_s: best_delay_s(
                    hours, now, within_s=within_s, run_s=run_s
                ),
            )
        if waits:
            insert_dependencies(connection, waits, ids, lock=True)
        return ids

    ids = runtime.transact(work)
    log.info("enqueued %d jobs", len(ids), extra={"pool": pool})
    return ids


def _parse(spec: Mapping[str, Any]) -> JobSpec:
    unknown = sorted(set(spec) - _KEYS)
    if unknown:
        raise BadInput(
            f"enqueue does not take {', '.join(map(str, unknown))}",
            hint=f"keys: {', '.join(sorted(_KEYS))}",
        )
    return JobSpec(**spec)


def _new_spec(spec: JobSpec, limit: int) -> NewSpec:
    return NewSpec(
        command=list(spec.words),
        environment=dict(spec.environment or {}),
        outputs=[output_row(file) for file in spec.output_files],
        workdir=spec.workdir,
        prologue=None if spec.prologue is None else list(map(str, spec.prologue)),
        epilogue=None if spec.epilogue is None else list(map(str, spec.epilogue)),
        join_output=spec.join_output,
        output_limit_bytes=spec.output_limit_bytes or limit,
    )
