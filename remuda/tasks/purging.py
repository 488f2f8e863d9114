"""Purge: what was to go with deleted pools is removed from the storage, then from the rows."""

from __future__ import annotations

import logging
import time
from functools import partial

from remuda.errors import RemudaError
from remuda.models import pool_deletion as models
from remuda.storage import Storage
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)
BATCH = 200  # jobs between two transactions
TURN_S = 10.0  # after which a sweep leaves the rest to the next


def purge_pools(runtime: Runtime) -> int:
    """Purge deleted pools, for a while; return of how many jobs the results went.

    A storage that does not answer leaves everything as it is. Removing twice does no harm.
    """
    pools = runtime.transact(models.to_purge)
    if not pools:
        return 0
    storage, until, count = Storage(runtime.settings.storage), time.monotonic() + TURN_S, 0
    for pool in pools:
        try:
            while pool["purge_results"] and time.monotonic() < until:
                done = _some_results(runtime, storage, pool["id"])
                count += done
                if not done:
                    break
            if time.monotonic() >= until:
                return count
            if pool["purge_resources"]:
                storage.remove(f"pools/{pool['uuid']}")
        except RemudaError as error:
            log.warning("what pool %s leaves cannot be removed: %s", pool["uuid"], error)
            continue
        runtime.transact(partial(models.note_purged, pool=pool))
    return count


def _some_results(runtime: Runtime, storage: Storage, pool_id: int) -> int:
    jobs = runtime.transact(lambda c: models.jobs_with_results(c, pool_id, limit=BATCH))
    for job_id in jobs:
        storage.remove(f"jobs/{job_id}")
    if jobs:
        runtime.transact(lambda c: models.forget_results(c, jobs))
    return len(jobs)
