"""After the database was set back in time: nothing it hands out may be known to anybody already.

Runners know attempts by their ids and producers jobs by theirs, also those made after the moment
the database now stands at. So ids go on far beyond, and what lives on machines is given up: the
machines may have gone on without us.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from remuda.errors import Refused
from remuda.models.database import rows
from remuda.models.sql import sql_list
from remuda.models.states import VM_EDGES, VmState
from remuda.models.tables import Base

GAP = 1_000_000  # more ids than are handed out between two backups
AT_WORK_S = 15.0  # beat has a sweep done every three seconds


@dataclass(frozen=True, slots=True)
class Fenced:
    """What was done: VMs that are now stopped, live attempts on them, the gap left in the ids."""

    vms: int
    attempts: int
    gap: int


def workers_at_work(connection: Connection) -> bool:
    """Return whether a worker has done a sweep just now, or holds a watch."""
    found = connection.scalar(
        text(
            """SELECT EXISTS (SELECT FROM sweeps
                              WHERE last_run_at > now() - make_interval(secs => :late))
                   OR EXISTS (SELECT FROM vms WHERE watch_expires_at > now())"""
        ),
        {"late": AT_WORK_S},
    )
    return bool(found)


def refuse_at_work(connection: Connection) -> None:
    """Raise Refused while workers are at work on this database."""
    if workers_at_work(connection):
        raise Refused(
            "workers are at work on this database",
            hint=f"stop every worker and beat, wait {AT_WORK_S:.0f} s, and try again",
        )


def fence(connection: Connection, *, gap: int = GAP) -> Fenced:
    """Let every id go on `gap` further, and have every VM stopped.

    What ran on the VMs is LOST as they are terminated, and runs again. To be called once after the
    database was set back to an earlier time, before the first worker starts. Raises Refused while
    workers are at work.
    """
    refuse_at_work(connection)
    sequences = rows(
        connection,
        """SELECT pg_get_serial_sequence(quote_ident(c.relname), 'id') AS name
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id'
           WHERE c.relname = ANY(:tables) AND c.relnamespace = 'public'::regnamespace
             AND a.attidentity <> ''""",
        tables=list(Base.metadata.tables),
    )
    for name in [*(row["name"] for row in sequences), "vm_names"]:
        connection.execute(
            text("SELECT setval(:name, nextval(CAST(:name AS regclass)) + :gap)"),
            {"name": name, "gap": gap},
        )
    stoppable = [state for state, targets in VM_EDGES.items() if VmState.STOPPING in targets]
    stopped = list(
        connection.scalars(
            text(
                f"""UPDATE vms SET state = 'STOPPING', state_changed_at = now(), replaced = true,
                      watcher = NULL, watch_expires_at = NULL,
                      error = coalesce(error, 'the database was restored from a backup')
                    WHERE state IN ({sql_list(stoppable)}) RETURNING id"""
            )
        )
    )
    connection.execute(text("DELETE FROM calls"))
    live = connection.scalar(
        text("SELECT count(*) FROM attempts WHERE state IN ('PLACED', 'STARTED', 'EXITED')")
    )
    return Fenced(vms=len(stopped), attempts=int(live or 0), gap=gap)


def move_storage(connection: Connection, old: str, new: str) -> int:
    """Have what is at URLs under `old` be at the same place under `new`; return how many rows."""
    moved = connection.execute(
        text(
            """UPDATE attempt_outputs SET url = :new || substr(url, length(:old) + 1)
               WHERE starts_with(url, :old || '/')"""
        ),
        {"old": old, "new": new},
    ).rowcount
    moved += connection.execute(
        text(
            """UPDATE pool_resources SET url = :new || substr(url, length(:old) + 1)
               WHERE starts_with(url, :old || '/')"""
        ),
        {"old": old, "new": new},
    ).rowcount
    moved += connection.execute(
        text(
            """UPDATE job_specs SET inputs = (
                 SELECT jsonb_agg(CASE WHEN starts_with(i->>'url', :old || '/')
                   THEN jsonb_set(i, '{url}', to_jsonb(:new || substr(i->>'url', length(:old) + 1)))
                   ELSE i END ORDER BY n)
                 FROM jsonb_array_elements(inputs) WITH ORDINALITY AS e(i, n))
               WHERE EXISTS (SELECT FROM jsonb_array_elements(inputs) AS i
                             WHERE starts_with(i->>'url', :old || '/'))"""
        ),
        {"old": old, "new": new},
    ).rowcount
    return int(moved)
