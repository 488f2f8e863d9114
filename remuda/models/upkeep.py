"""What the sweeps look for: attempts that should have moved on, things past their time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from remuda.models import sizing_decisions
from remuda.models.cancel import cancel_stranded
from remuda.models.database import rows
from remuda.models.pool_deletion import delete_expired
from remuda.models.vm_outputs import forget_old


@dataclass(frozen=True, slots=True)
class Missed:
    """Attempts by VM that a message may have missed, and VMs to compare with their runners."""

    placed: dict[int, list[int]] = field(default_factory=dict)
    exited: dict[int, list[int]] = field(default_factory=dict)
    quiet: list[int] = field(default_factory=list)


# PLACED ones behind a queue are told again too; the runner answers that it knows them.
_WITHOUT_NEWS = """
    SELECT a.vm_id, a.state, a.id FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE v.state = 'RUNNING' AND (
      (a.state = 'PLACED' AND a.placed_at < now() - interval '5 seconds')
      OR (a.state = 'EXITED' AND a.ended_at < now() - interval '10 seconds'))
    ORDER BY a.vm_id, a.id LIMIT 5000
"""

# Compared once in a while even when all seems well: a VM whose attempt started long ago.
_QUIET = """
    SELECT DISTINCT a.vm_id FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE v.state = 'RUNNING' AND a.state = 'STARTED' AND a.started_at < now() - interval '30 seconds'
      AND v.id % 6 = (extract(epoch FROM now())::bigint / 5) % 6
"""


# And where something placed ahead does not come to its turn.
_STUCK = """
    UNION SELECT a.vm_id FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE v.state = 'RUNNING' AND a.state = 'PLACED' AND a.placed_at < now() - interval '2 seconds'
"""


def attempts_without_news(connection: Connection) -> Missed:
    """Return the attempts that have been in one state for longer than their messages take."""
    placed: dict[int, list[int]] = defaultdict(list)
    exited: dict[int, list[int]] = defaultdict(list)
    for row in rows(connection, _WITHOUT_NEWS):
        (placed if row["state"] == "PLACED" else exited)[row["vm_id"]].append(row["id"])
    quiet = {row["vm_id"] for row in rows(connection, _QUIET + _STUCK)}
    return Missed(dict(placed), dict(exited), sorted(quiet))


def expire(
    connection: Connection,
    *,
    heartbeat_retention_s: float,
    event_retention_s: float,
    decision_retention_s: float = 30 * 86400.0,
) -> None:
    """End what is over: jobs that came as their pool ended, pools past their time, calls, history."""
    cancel_stranded(connection)
    sizing_decisions.expire(connection, retention_s=decision_retention_s)
    delete_expired(connection)
    forget_old(connection, age_s=event_retention_s)
    connection.execute(text("DELETE FROM calls WHERE expires_at < now() - interval '10 seconds'"))
    connection.execute(
        text(
            # Of the oldest by id, as below.
            """DELETE FROM heartbeats WHERE id IN (
                 SELECT id FROM (SELECT id, at FROM heartbeats ORDER BY id LIMIT 20000) AS oldest
                 WHERE at < now() - make_interval(secs => :age))"""
        ),
        {"age": heartbeat_retention_s},
    )
    connection.execute(
        text(
            """DELETE FROM unowned_machines WHERE id IN (SELECT id FROM unowned_machines
                 WHERE gone_at < now() - make_interval(secs => :age) ORDER BY id LIMIT 20000)"""
        ),
        {"age": event_retention_s},
    )
    connection.execute(
        text(
            """DELETE FROM output_chunks c USING attempts a WHERE a.id = c.attempt_id
                 AND a.ended_at < now() - interval '1 minute'"""
        )
    )
    connection.execute(
        text(
            # Of the oldest by id: there is no index on `at`, and none is needed.
            """DELETE FROM events WHERE id IN (
                 SELECT id FROM (SELECT id, at FROM events ORDER BY id LIMIT 20000) AS oldest
                 WHERE at < now() - make_interval(secs => :age))"""
        ),
        {"age": event_retention_s},
    )
