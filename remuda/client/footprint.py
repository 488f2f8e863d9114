"""Energy and CO2 of pools and jobs, estimated from what ran: see docs/carbon.md."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from remuda.carbon import DEFAULT, CarbonFacts, CarbonTable, Work, carbon_facts
from remuda.carbon_table import read_table
from remuda.checks import text_of
from remuda.client.history import time_of
from remuda.errors import BadInput
from remuda.models import work_done
from remuda.models.database import database_time

if TYPE_CHECKING:
    from remuda.client.context import Context

LONG_AGO = timedelta(days=3650)


def table(context: Context) -> CarbonTable:
    """Return what estimates are made from, as the settings have it; raises BadInput."""
    return read_table(context.settings.carbon_file)


def of_pool(
    context: Context,
    pool_id: int,
    *,
    here: str | None,
    datacenter: str | None,
    since: datetime | timedelta,
    until: datetime | timedelta,
) -> CarbonFacts:
    """Return the estimate for all VMs of a pool in a time."""
    now = context.read(database_time)
    start, end = time_of("since", since, now), time_of("until", until, now)
    if not start < end:
        raise BadInput(f"until, {end.isoformat()}, is not after since, {start.isoformat()}")
    found = context.read(lambda c: work_done.of_pool(c, pool_id, since=start, until=end))
    busy = found["busy_slot_hours"]
    work = Work(busy, max(0.0, found["on_slot_hours"] - busy), found["gib_hours"])
    return _facts(context, work, here=here, datacenter=datacenter)


def of_job(context: Context, job_id: int, *, datacenter: str | None) -> CarbonFacts:
    """Return the estimate for all attempts of a job."""
    found = context.read(lambda c: work_done.of_job(c, job_id))
    here = context.read(lambda c: work_done.datacenter_of_job(c, job_id))
    work = Work(found["busy_slot_hours"], 0.0, found["gib_hours"])
    return _facts(context, work, here=here, datacenter=datacenter)


def _facts(
    context: Context, work: Work, *, here: str | None, datacenter: str | None
) -> CarbonFacts:
    known = table(context)
    other = DEFAULT if datacenter is None else text_of("datacenter", datacenter, least=1)
    return carbon_facts(
        work, known, here=known.datacenter(here or DEFAULT), equivalent=known.datacenter(other)
    )
