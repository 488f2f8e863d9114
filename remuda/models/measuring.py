"""What the metrics say of the database: gauges as they are now, counters that only grow.

Counters are counted from rows, not kept by a process: any number of exporters agree, and a restart
begins where the last one was. The whole tables are counted once, when an exporter begins; from then
on only the transitions after a mark, found by their ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

#: Transitions younger than this are counted anew each time: their transactions may be under way, and
#: ids are given before a commit. All of Remuda's transactions are shorter.
SETTLED_S = 15.0

_LIVE_JOBS = """
    SELECT pool_id, owner_id,
           CASE WHEN state <> 'NEW' THEN lower(state) WHEN unmet > 0 THEN 'blocked'
                WHEN held THEN 'held' WHEN not_before > now() THEN 'delayed' ELSE 'waiting' END AS state,
           count(*) AS count, sum(cores) AS cores,
           extract(epoch FROM now() - min(submitted_at))::float8 AS oldest_s
    FROM jobs WHERE state <> 'TERMINATED' GROUP BY 1, 2, 3
"""
_LIVE_VMS = """
    SELECT pool_id, lower(state) AS state, draining, slots, check_failures > 0 AS failing,
           extract(epoch FROM now() - heartbeat_at)::float8 AS heartbeat_age_s
    FROM vms WHERE state <> 'HALTED'
"""
_USED = """
    SELECT v.pool_id, sum(a.cores) AS slots FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE a.state IN ('PLACED', 'STARTED', 'EXITED') GROUP BY 1
"""
_LEASES = """
    SELECT v.pool_id, CASE WHEN l.for_jobs THEN 'jobs' ELSE 'user' END AS kind,
           count(*) AS count, sum(l.slots) AS slots
    FROM leases l JOIN vms v ON v.id = l.vm_id WHERE l.released_at IS NULL GROUP BY 1, 2
"""
# Under the pool they prefer.
_REQUESTS = """
    SELECT pool_ids[1] AS pool_id, count(*) AS count,
           extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
    FROM lease_requests WHERE expires_at > now() AND lease_id IS NULL AND NOT refused GROUP BY 1
"""
# Of ours: those of other installations are only listed.
_UNOWNED = """
    SELECT pool_id, count(*) FILTER (WHERE gone_at IS NULL) AS count,
           sum(extract(epoch FROM coalesce(gone_at, now()) - first_seen_at))::float8 AS seconds
    FROM unowned_machines WHERE pool_id IS NOT NULL GROUP BY 1
"""
_SWEEPS = "SELECT name, extract(epoch FROM last_run_at)::float8 AS at FROM sweeps ORDER BY name"
_DATABASE = """
    SELECT pg_database_size(current_database()) AS size_bytes,
           (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections,
           current_setting('max_connections')::int AS max_connections
"""
_BUDGETS = """
    SELECT p.name AS pool, o.name AS owner, b.spent, b.warn, b.stop FROM budgets b
    LEFT JOIN pools p ON p.id = b.pool_id LEFT JOIN owners o ON o.id = b.owner_id
    ORDER BY b.id LIMIT :most
"""
_POOLS = """
    SELECT id, name, paused_until > now() AS paused, frozen_at IS NOT NULL AS frozen FROM pools
    ORDER BY state IN ('CLOSED', 'PENDING_DELETE'), id DESC LIMIT :most
"""

# (what, pool, by, bucket) and how many, how much; the same from whole tables and from transitions.
_ALL = """
    SELECT 'placement' AS what, v.pool_id, '' AS by, -1 AS bucket, count(*) AS count, 0.0 AS sum
    FROM attempts a JOIN vms v ON v.id = a.vm_id GROUP BY 2
    UNION ALL
    SELECT 'attempt', v.pool_id, lower(coalesce(a.reason, a.state)), -1, count(*), 0.0
    FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE a.state IN ('COLLECTED', 'LOST', 'CANCELLED', 'FAILED') GROUP BY 2, 3
    UNION ALL
    SELECT 'submitted', NULL, '', -1, count(*), 0.0 FROM jobs
    UNION ALL
    SELECT 'ended', NULL, lower(reason), -1, count(*), 0.0 FROM jobs WHERE state = 'TERMINATED' GROUP BY 3
    UNION ALL
    SELECT 'made', pool_id, '', -1, count(*), 0.0 FROM vms GROUP BY 2
    UNION ALL
    SELECT 'boot', pool_id, '', width_bucket(s, CAST(:buckets AS float8[])), count(*), sum(s)
    FROM (SELECT pool_id, extract(epoch FROM running_at - created_at)::float8 AS s
          FROM vms WHERE running_at IS NOT NULL) AS b GROUP BY 2, 4
"""
_SINCE = """
    WITH e AS (
      SELECT kind, subject_id, from_state, to_state FROM events WHERE id > :after AND id <= :upto
    )
    SELECT 'placement' AS what, v.pool_id, '' AS by, -1 AS bucket, count(*) AS count, 0.0 AS sum
    FROM e JOIN attempts a ON a.id = e.subject_id JOIN vms v ON v.id = a.vm_id
    WHERE e.kind = 'attempt' AND e.from_state IS NULL GROUP BY 2
    UNION ALL
    SELECT 'attempt', v.pool_id, lower(coalesce(a.reason, a.state)), -1, count(*), 0.0
    FROM e JOIN attempts a ON a.id = e.subject_id JOIN vms v ON v.id = a.vm_id
    WHERE e.kind = 'attempt' AND e.to_state IN ('COLLECTED', 'LOST', 'CANCELLED', 'FAILED')
    GROUP BY 2, 3
    UNION ALL
    SELECT 'submitted', NULL, '', -1, count(*), 0.0 FROM e WHERE e.kind = 'job' AND e.from_state IS NULL
    UNION ALL
    SELECT 'ended', NULL, lower(j.reason), -1, count(*), 0.0 FROM e JOIN jobs j ON j.id = e.subject_id
    WHERE e.kind = 'job' AND e.to_state = 'TERMINATED' GROUP BY 3
    UNION ALL
    SELECT 'made', v.pool_id, '', -1, count(*), 0.0 FROM e JOIN vms v ON v.id = e.subject_id
    WHERE e.kind = 'vm' AND e.from_state IS NULL GROUP BY 2
    UNION ALL
    SELECT 'boot', pool_id, '', width_bucket(s, CAST(:buckets AS float8[])), count(*), sum(s)
    FROM (SELECT v.pool_id, extract(epoch FROM v.running_at - v.created_at)::float8 AS s
          FROM vms v WHERE v.running_at IS NOT NULL AND v.id IN (
            SELECT subject_id FROM e WHERE e.kind = 'vm' AND e.to_state = 'RUNNING')
            -- Its first time up; later ones (after a stall, a reboot) leave the time as it is.
            AND NOT EXISTS (SELECT FROM events o WHERE o.kind = 'vm' AND o.to_state = 'RUNNING'
                            AND o.subject_id = v.id AND o.id <= :after)) AS b
    GROUP BY 2, 4
"""

Key = tuple[str, int | None, str, int]


@dataclass(slots=True)
class Counts:
    """Counters by (what, pool, by, bucket): all up to the transition `upto`, and their sums."""

    upto: int = -1
    settled: Counter[Key] = field(default_factory=Counter)
    sums: Counter[tuple[str, int | None]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured, row by row as the queries above return it."""

    jobs: Sequence[Mapping[str, Any]]
    vms: Sequence[Mapping[str, Any]]
    used: Sequence[Mapping[str, Any]]
    leases: Sequence[Mapping[str, Any]]
    requests: Sequence[Mapping[str, Any]]
    unowned: Sequence[Mapping[str, Any]]
    sweeps: Sequence[Mapping[str, Any]]
    database: Mapping[str, Any]
    pools: Sequence[Mapping[str, Any]]
    owners: Mapping[int, str]
    counts: Counter[Key]
    sums: Counter[tuple[str, int | None]]
    budgets: Sequence[Mapping[str, Any]] = ()


def measure(
    connection: Connection, counts: Counts, *, buckets: Sequence[float], most_pools: int
) -> Measures:
    """Read everything in one snapshot and move `counts` on to what is settled by now.

    `buckets`: upper bounds of boot times, in seconds. Begin a REPEATABLE READ transaction before.
    """
    jobs = rows(connection, _LIVE_JOBS)
    values, sums = _count(connection, counts, list(buckets))
    return Measures(
        jobs=jobs,
        vms=rows(connection, _LIVE_VMS),
        used=rows(connection, _USED),
        leases=rows(connection, _LEASES),
        requests=rows(connection, _REQUESTS),
        unowned=rows(connection, _UNOWNED),
        sweeps=rows(connection, _SWEEPS),
        database=rows(connection, _DATABASE)[0],
        pools=rows(connection, _POOLS, most=most_pools),
        owners=_owners(connection, {row["owner_id"] for row in jobs}),
        counts=values,
        sums=sums,
        budgets=rows(connection, _BUDGETS, most=most_pools),
    )


def _owners(connection: Connection, ids: Iterable[int]) -> dict[int, str]:
    found = rows(connection, "SELECT id, name FROM owners WHERE id = ANY(:ids)", ids=sorted(ids))
    return {row["id"]: row["name"] for row in found}


def _count(
    connection: Connection, counts: Counts, buckets: list[float]
) -> tuple[Counter[Key], Counter[tuple[str, int | None]]]:
    newest = int(connection.scalar(text("SELECT coalesce(max(id), 0) FROM events")) or 0)
    after = max(counts.upto, 0)
    settled = connection.scalar(
        # Of the transitions after the mark, the last before which all are old enough.
        text("""SELECT coalesce(min(id) - 1, CAST(:newest AS bigint)) FROM events
                WHERE id > :after AND at > now() - make_interval(secs => :settled)"""),
        {"after": after, "newest": newest, "settled": SETTLED_S},
    )
    upto = max(after, int(settled or 0))
    young = _tally(rows(connection, _SINCE, after=upto, upto=newest, buckets=buckets))
    if counts.upto < 0:
        everything = _tally(rows(connection, _ALL, buckets=buckets))
        counts.settled, counts.sums = everything[0].copy(), everything[1].copy()
        counts.settled.subtract(young[0])
        counts.sums.subtract(young[1])
        counts.upto = upto
        return everything
    if upto > after:
        more = _tally(rows(connection, _SINCE, after=after, upto=upto, buckets=buckets))
        counts.settled.update(more[0])
        counts.sums.update(more[1])
        counts.upto = upto
    return counts.settled + young[0], counts.sums + young[1]


def _tally(
    found: Iterable[Mapping[str, Any]],
) -> tuple[Counter[Key], Counter[tuple[str, int | None]]]:
    values: Counter[Key] = Counter()
    sums: Counter[tuple[str, int | None]] = Counter()
    for row in found:
        values[row["what"], row["pool_id"], row["by"], row["bucket"]] += row["count"]
        if row["sum"]:
            sums[row["what"], row["pool_id"]] += row["sum"]
    return values, sums
