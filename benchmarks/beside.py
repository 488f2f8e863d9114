"""Dispatchers beside each other, each a process: how many jobs they place, and what they break."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event, text

from benchmarks.held import Share, shares
from remuda.config import Settings
from remuda.models.database import make_engine, rows, transact
from remuda.tasks import placements

UNSOUND = {
    "a VM with more slots given out than it has": """
        SELECT v.id FROM vms v JOIN attempts a ON a.vm_id = v.id AND a.state = 'PLACED'
        GROUP BY v.id HAVING sum(a.cores) > v.slots""",
    "a job with two live attempts": """
        SELECT job_id FROM attempts WHERE state = 'PLACED' GROUP BY 1 HAVING count(*) > 1""",
    "a job on a machine that is not SUBMITTED, or the other way round": """
        SELECT j.id FROM jobs j FULL JOIN attempts a ON a.job_id = j.id AND a.state = 'PLACED'
        WHERE (j.state = 'SUBMITTED') IS DISTINCT FROM (a.id IS NOT NULL)""",
    "a quota exceeded": """
        SELECT q.owner_id FROM quotas q JOIN leases l ON l.owner_id = q.owner_id
        JOIN attempts a ON a.lease_id = l.id AND a.state = 'PLACED'
        GROUP BY q.id HAVING sum(a.cores) > q.max_slots""",
}


@dataclass(frozen=True, slots=True)
class Placing:
    """What some dispatchers did together; `mb`: the memory of the largest; `broken`: invariants."""

    placed: int
    wall_s: float
    cpu_s: float
    mb: float
    broken: int

    @property
    def per_s(self) -> float:
        """Jobs placed a second."""
        return self.placed / self.wall_s


def side_by_side(
    url: str, settings: Settings, *, count: int, slots: int, of_a_core: float | None = None
) -> Placing | None:
    """Let `count` dispatchers fill all `slots` of a database of their own.

    `of_a_core`: each, with its connection's server process, has that part of a core and no more; None
    is returned where that cannot be had.
    """
    with ExitStack() as stack:
        held: list[Share | None] = [None] * count
        if of_a_core is not None:
            held = list(stack.enter_context(shares(count, of_a_core=of_a_core)))
            if not held:
                return None
        context = multiprocessing.get_context("spawn")
        start, told = context.Barrier(count), context.Queue()
        workers = [
            context.Process(target=_dispatcher, args=(url, settings, start, told, slots, share))
            for share in held
        ]
        for worker in workers:
            worker.start()
        found = [told.get(timeout=600) for _ in workers]
        for worker in workers:
            worker.join()
    engine = make_engine(url)
    with engine.connect() as connection:
        broken = [what for what, query in UNSOUND.items() if rows(connection, query)]
        placed = connection.scalar(text("SELECT count(*) FROM attempts")) or 0
    engine.dispose()
    for what in broken:
        print(f"BROKEN with {count} dispatchers: {what}", file=sys.stderr)
    wall_s = max(end for _, end, _, _ in found) - min(begin for begin, _, _, _ in found)
    return Placing(
        placed=placed,
        wall_s=wall_s,
        cpu_s=sum(cpu for _, _, cpu, _ in found),
        mb=max(mb for _, _, _, mb in found),
        broken=len(broken),
    )


def _dispatcher(
    url: str, settings: Settings, start: Any, told: Any, slots: int, share: Share | None
) -> None:
    """Place until all slots are taken; tell from when to when, the CPU seconds and the memory."""
    engine = make_engine(url)

    def hold(connection: Any, _record: Any) -> None:
        if share is not None:
            share.hold(connection.info.backend_pid)

    event.listen(engine, "connect", hold)
    _taken(engine)
    start.wait()
    if share is not None:
        share.hold(multiprocessing.current_process().pid or 0)
    began, cpu = time.monotonic(), time.process_time()
    empty = 0
    while empty < 2:
        placed = sum(map(len, placements.placements(lambda work: transact(engine, work), settings)))
        empty = 0 if placed else empty + 1
        if _taken(engine) >= slots:
            break
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told.put((began, time.monotonic(), time.process_time() - cpu, used))
    engine.dispose()


def _taken(engine: Engine) -> int:
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM attempts WHERE state IN ('PLACED', 'STARTED')")
        return connection.scalar(query) or 0
