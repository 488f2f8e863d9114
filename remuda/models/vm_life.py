"""The life of VMs: guarded transitions, each one statement; zero rows raise and change nothing."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.checks import shown
from remuda.errors import BadInput, IllegalTransition, InstanceNotFound
from remuda.models.database import LEASE_CHANNEL, rows
from remuda.models.sql import sql_list
from remuda.models.states import VM_EDGES, VmState

_SILENT = (
    VmState.SUBMITTED,
    VmState.WAIT_SSH_CONTEXT,
    VmState.CONTEXTUALIZING,
    VmState.RUNNING,
    VmState.STOPPING,
)

UNENDED = "not terminated yet: "  # before what its provider said; gone with the machine
OWN_ERROR = f"nullif(rtrim(split_part(error, '{UNENDED}', 1), '; '), '')"

# Those for jobs are over when the machine is; the holders of others are told at once.
_LEASES_OVER = text(f"""
    WITH over AS (
      UPDATE leases SET released_at = now(), ended = CASE WHEN NOT for_jobs THEN 'gone' END
      WHERE vm_id = :vm AND released_at IS NULL AND (:halted OR NOT for_jobs) RETURNING id, for_jobs
    ) SELECT pg_notify('{LEASE_CHANNEL}', 'over ' || id) FROM over WHERE NOT for_jobs
""")


def _sources(target: VmState) -> tuple[VmState, ...]:
    return tuple(old for old, targets in VM_EDGES.items() if target in targets)


def move_vm(
    connection: Connection,
    vm_id: int,
    target: VmState,
    *,
    allowed: Iterable[VmState] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Bring the VM to `target` from one of `allowed` (default: every edge into it).

    `fields` are columns set with it. A STALLED VM that was replaced, or never ran before, does
    not come to RUNNING; a HALTED one's leases are over. Raises InstanceNotFound, BadInput for an
    IP that is none, or IllegalTransition telling the state found; nothing is changed then.
    """
    fields = dict(fields or {})
    for name in ("private_ip", "public_ip"):
        if fields.get(name) is not None:
            fields[name] = ip_of(name, fields[name])
    assignments = "".join(
        f", {name} = {'CAST(:' + name + ' AS jsonb)' if isinstance(value, dict) else ':' + name}"
        for name, value in fields.items()
    )
    if target is VmState.HALTED:
        assignments += ", halted_at = now(), watcher = NULL, watch_expires_at = NULL"
        if "error" not in fields:
            assignments += f", error = {OWN_ERROR}"
    elif target is VmState.RUNNING:
        assignments += ", running_at = coalesce(running_at, now()), heartbeat_at = now()"
    elif target is VmState.SUBMITTED:
        assignments += ", submitted_at = now()"
    elif target is VmState.STALLED:
        # One that was being stopped is never taken up again, though it may still answer.
        assignments += ", replaced = replaced OR state = 'STOPPING'"
    guard = ""
    if target is VmState.RUNNING:  # what never ran is not known to be fit
        guard = " AND NOT (state = 'STALLED' AND (replaced OR running_at IS NULL))"
    states = [str(s) for s in (allowed if allowed is not None else _sources(target))]
    done = connection.execute(
        text(
            f"""UPDATE vms SET state = :target, state_changed_at = now(){assignments}
                WHERE id = :vm AND state = ANY(:allowed){guard}"""
        ),
        {
            "vm": vm_id,
            "target": target,
            "allowed": states,
            **{k: json.dumps(v) if isinstance(v, dict) else v for k, v in fields.items()},
        },
    )
    if done.rowcount == 0:
        found = connection.scalar(text("SELECT state FROM vms WHERE id = :vm"), {"vm": vm_id})
        if found is None:
            raise InstanceNotFound(f"there is no VM {vm_id}")
        raise IllegalTransition(
            f"VM {vm_id} is {found} and cannot become {target}",
            hint=f"it must be one of {', '.join(states) or 'none'}",
        )
    if target in (VmState.STOPPING, VmState.HALTED):
        connection.execute(_LEASES_OVER, {"vm": vm_id, "halted": target is VmState.HALTED})


def ip_of(what: str, value: object) -> str:
    """Return an IP address as it is written best; one of IPv4 in IPv6 (`::ffff:`) as IPv4.

    Raises BadInput naming `what`.
    """
    try:
        found = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise BadInput(f"{what} is not an IP address: {shown(value)}") from None
    plain = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(plain or found)


def insert_vms(connection: Connection, pool_id: int, count: int) -> list[int]:
    """Insert `count` VMs in NEW, the intent to make them, and return their ids."""
    statement = text("""
        INSERT INTO vms (pool_id, image_id, name, slots, memory_bytes, gpus)
        SELECT p.id, p.image_id, p.name || '-' || nextval('vm_names'), p.slots_per_vm,
               p.memory_bytes_per_vm, p.gpus_per_vm
        FROM pools p, generate_series(1, :count) WHERE p.id = :pool RETURNING id""")
    return list(connection.scalars(statement, {"pool": pool_id, "count": count}))


def lock_vms(connection: Connection, vm_ids: Sequence[int]) -> dict[int, str]:
    """Lock the VMs' rows in order and return their states."""
    found = rows(
        connection,
        "SELECT id, state FROM vms WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE",
        ids=list(vm_ids),
    )
    return {row["id"]: row["state"] for row in found}


def close_idle(connection: Connection, vm_ids: Sequence[int]) -> list[int]:
    """Bring those of the VMs that hold no attempt and no lease to STOPPING; return them.

    Two statements: the locks first, so that the second sees what a dispatcher placed meanwhile.
    """
    lock_vms(connection, vm_ids)
    statement = text("""
        UPDATE vms SET state = 'STOPPING', state_changed_at = now()
        WHERE id = ANY(:ids) AND state IN ('NEW', 'SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING',
                                           'RUNNING', 'STALLED', 'ERROR')
          AND NOT EXISTS (SELECT FROM attempts a WHERE a.vm_id = vms.id
                          AND a.state IN ('PLACED', 'STARTED', 'EXITED'))
          AND NOT EXISTS (SELECT FROM leases l WHERE l.vm_id = vms.id AND NOT l.for_jobs
                          AND l.released_at IS NULL)
        RETURNING id""")
    return list(connection.scalars(statement, {"ids": list(vm_ids)}))


def silent_vms(connection: Connection, *, most: int | None = None) -> list[int]:
    """Lock and return the VMs (up to `most`) without a sign of life for their stalling interval.

    The time counts only while somebody listened: since the sweeps have run without a gap, and for a
    running VM up to its watch's last renewal, anew when the watch went to another worker. A VM
    still booting gets what its pool gives launches, what else is on its way at least a minute; one
    stopped before the provider named it has nothing to be heard of.
    """
    found = rows(
        connection,
        f"""SELECT v.id FROM vms v JOIN pools p ON p.id = v.pool_id, sweeps s
            WHERE s.name = 'declare_stalled' AND v.state IN ({sql_list(_SILENT)})
              AND v.provider_id IS NOT NULL
              AND greatest(v.heartbeat_at, v.state_changed_at, v.listening_since, s.since)
                  < CASE WHEN v.state = 'RUNNING' THEN v.watch_renewed_at ELSE now() END
                  - make_interval(
                      secs => CASE WHEN v.state = 'RUNNING' THEN p.stalling_interval_s
                                   WHEN v.state IN ('SUBMITTED', 'WAIT_SSH_CONTEXT')
                                   THEN greatest(p.stalling_interval_s, p.launch_timeout_s)
                                   ELSE greatest(p.stalling_interval_s, 60) END)
            ORDER BY v.id LIMIT :most FOR NO KEY UPDATE OF v SKIP LOCKED""",
        most=most,
    )
    return [row["id"] for row in found]


def stalled_for_good(connection: Connection) -> list[int]:
    """Lock and return the STALLED VMs that were replaced or silent for another interval."""
    found = rows(
        connection,
        """SELECT v.id FROM vms v JOIN pools p ON p.id = v.pool_id
           WHERE v.state = 'STALLED' AND (v.replaced OR v.state_changed_at <
                 now() - make_interval(secs => p.stalling_interval_s))
           ORDER BY v.id FOR NO KEY UPDATE OF v SKIP LOCKED""",
    )
    return [row["id"] for row in found]


def due_sweep(connection: Connection, name: str, *, every_s: float) -> bool:
    """Return whether sweep `name` is due, and note that it runs: of two who ask, one is told so."""
    ran = connection.scalar(
        text(
            """INSERT INTO sweeps AS s (name, last_run_at, since) VALUES (:name, now(), now())
               ON CONFLICT (name) DO UPDATE SET last_run_at = now()
                 WHERE s.last_run_at < now() - make_interval(secs => :every) RETURNING true"""
        ),
        {"name": name, "every": every_s},
    )
    return bool(ran)


def note_sweep(connection: Connection, name: str, *, gap_s: float) -> None:
    """Record that sweep `name` runs; a pause longer than `gap_s` seconds starts its time anew."""
    connection.execute(
        text(
            """INSERT INTO sweeps AS s (name, last_run_at, since) VALUES (:name, now(), now())
               ON CONFLICT (name) DO UPDATE SET last_run_at = now(), since = CASE
                 WHEN s.last_run_at < now() - make_interval(secs => :gap) THEN now()
                 ELSE s.since END"""
        ),
        {"name": name, "gap": gap_s},
    )
