"""Where the metrics of `remuda.models.history` come from: the subqueries they are computed over.

Levels: pieces (key, began, ended, weight); the rest: points (key, at, ...). Each narrows itself to
what can matter between :start and :end, and to the pools :pools (NULL: all).
"""

from __future__ import annotations

from collections.abc import Callable

_OF_VM = {
    None: "''",
    "pool": "p.name",
    "image": "i.name",
    "provider": "coalesce(v.provider, p.provider)",
    "owner": "o.name",
}
_VMS = """vms v JOIN pools p ON p.id = v.pool_id JOIN images i ON i.id = v.image_id
    JOIN owners o ON o.id = p.owner_id"""
_CHOSEN = "(CAST(:pools AS bigint[]) IS NULL OR p.id = ANY(CAST(:pools AS bigint[])))"
_LIVED = f"""v.created_at < :end AND (v.halted_at IS NULL OR v.halted_at > :start)
    AND {_CHOSEN}"""

_OF_JOB = {None: "''", "pool": "p.name", "owner": "o.name", "reason": "j.reason"}
_JOBS = "jobs j JOIN pools p ON p.id = j.pool_id JOIN owners o ON o.id = j.owner_id"
_ATTEMPTS = """attempts a JOIN jobs j ON j.id = a.job_id JOIN vms v ON v.id = a.vm_id
    JOIN pools p ON p.id = v.pool_id JOIN images i ON i.id = v.image_id
    JOIN owners o ON o.id = j.owner_id"""
_LATEST = "(a.ended_at IS NULL OR a.ended_at > :start)"


def _stays(by: str | None, weight: str, states: str) -> str:
    """Return the stays of VMs in states, from their events.

    Where these are past their retention, the row still tells of the present one.
    """
    key = "s.state" if by == "state" else _OF_VM[by]
    return f"""
    SELECT {key} AS key, s.began, s.ended, {weight} AS weight
    FROM {_VMS} JOIN LATERAL (
      SELECT e.to_state AS state, e.at AS began, lead(e.at) OVER (ORDER BY e.id) AS ended
      FROM events e WHERE e.kind = 'vm' AND e.subject_id = v.id
      UNION ALL
      SELECT v.state, v.state_changed_at, NULL
      WHERE NOT EXISTS (SELECT FROM events e WHERE e.kind = 'vm' AND e.subject_id = v.id)
    ) AS s ON s.state {states} WHERE {_LIVED}"""


def _running_vms(by: str | None) -> str:
    return _stays(by, "1", "= 'RUNNING'")


def _vms(by: str | None) -> str:
    return _stays(by, "1", "<> 'HALTED'")


def _slots(by: str | None) -> str:
    return _stays(by, "v.slots", "= 'RUNNING'")


def _prices(by: str | None) -> str:
    return f"""
    SELECT {_OF_VM[by]} AS key, v.submitted_at AS began, v.halted_at AS ended, v.price AS weight
    FROM {_VMS} WHERE v.price > 0 AND v.submitted_at IS NOT NULL AND {_LIVED}"""


def _leased_slots(by: str | None) -> str:
    return f"""
    SELECT {_OF_VM[by]} AS key, l.acquired_at AS began, l.released_at AS ended, l.slots AS weight
    FROM {_VMS} JOIN leases l ON l.vm_id = v.id AND NOT l.for_jobs WHERE {_LIVED}"""


def _ran(by: str | None, weight: str) -> str:
    return f"""
    SELECT {_OF_VM[by]} AS key, a.started_at AS began, a.ended_at AS ended, {weight} AS weight
    FROM {_ATTEMPTS} WHERE a.started_at < :end AND {_LATEST} AND {_CHOSEN}"""


def _job_prices(by: str | None) -> str:
    return f"""
    SELECT {_OF_VM[by]} AS key, a.started_at AS began, a.ended_at AS ended,
           a.cores * v.price / v.slots AS weight
    FROM {_ATTEMPTS} WHERE a.started_at < :end AND {_LATEST} AND {_CHOSEN} AND v.price > 0"""


def _busy_slots(by: str | None) -> str:
    return _ran(by, "a.cores")


def _running_jobs(by: str | None) -> str:
    return _ran(by, "1")


def _waiting_jobs(by: str | None) -> str:
    # A job waits from its submission to its end, but for the time its attempts run and, of the
    # one that ended it, what it takes to bring its results home.
    there = "(j.ended_at IS NULL OR j.ended_at > :start)"
    return f"""
    SELECT {_OF_JOB[by]} AS key, j.submitted_at AS began, j.ended_at AS ended, 1 AS weight
    FROM {_JOBS} WHERE j.submitted_at < :end AND {there} AND {_CHOSEN}
    UNION ALL
    SELECT {_OF_JOB[by]}, a.started_at,
           CASE WHEN a.epoch = j.epoch AND j.state <> 'NEW' THEN j.ended_at ELSE a.ended_at END, -1
    FROM {_JOBS} JOIN attempts a ON a.job_id = j.id
    WHERE a.started_at < :end AND j.submitted_at < :end AND {there} AND {_CHOSEN}"""


def _submitted(by: str | None) -> str:
    return f"SELECT {_OF_JOB[by]} AS key, j.submitted_at AS at FROM {_JOBS} WHERE {_CHOSEN}"


def _started(by: str | None) -> str:
    return f"""SELECT {_OF_VM[by]} AS key, a.started_at AS at FROM {_ATTEMPTS}
    WHERE {_LATEST} AND {_CHOSEN}"""


def _ended(by: str | None) -> str:
    return f"SELECT {_OF_JOB[by]} AS key, j.ended_at AS at FROM {_JOBS} WHERE {_CHOSEN}"


def _waits(by: str | None) -> str:
    return f"""
    SELECT {_OF_VM[by]} AS key, a.started_at AS at,
           extract(epoch FROM a.started_at - j.submitted_at)::float8 AS seconds
    FROM {_ATTEMPTS} WHERE {_LATEST} AND {_CHOSEN} AND (a.epoch = 1 OR NOT EXISTS (
      SELECT FROM attempts b WHERE b.job_id = a.job_id AND b.epoch < a.epoch
        AND b.started_at IS NOT NULL))"""


def _runs(by: str | None) -> str:
    return f"""SELECT {_OF_VM[by]} AS key, a.ended_at AS at, a.wall_s AS seconds
    FROM {_ATTEMPTS} WHERE a.wall_s IS NOT NULL AND {_CHOSEN}"""


def _samples(by: str | None) -> str:
    return f"""SELECT {_OF_VM[by]} AS key, h.at, h.load, h.memory_free_bytes, h.disk_free_bytes
    FROM heartbeats h JOIN {_VMS.replace("vms v JOIN", "vms v ON v.id = h.vm_id JOIN", 1)}
    WHERE {_CHOSEN}"""


def _beats(by: str | None) -> str:
    # And of each VM the last beat before, which the first is compared with. Where there is none it
    # was the VM's first of all, unless those before are past their retention.
    columns = "h.id, h.at, h.transferred_files, h.transferred_bytes"
    return f"""
    SELECT {_OF_VM[by]} AS key, v.id AS vm_id, h.*, v.created_at >= :start
           OR EXISTS (SELECT FROM heartbeats WHERE at < :start) AS fresh
    FROM {_VMS} JOIN (
      SELECT h.vm_id AS of_vm, {columns} FROM heartbeats h WHERE h.at >= :start AND h.at < :end
      UNION ALL
      SELECT w.id, {columns} FROM vms w CROSS JOIN LATERAL (
        SELECT * FROM heartbeats b WHERE b.vm_id = w.id AND b.at < :start
        ORDER BY b.at DESC, b.id DESC LIMIT 1) AS h
      WHERE w.created_at < :start AND (w.halted_at IS NULL OR w.halted_at > :start)
    ) AS h ON h.of_vm = v.id WHERE {_CHOSEN}"""


SOURCES: dict[str, Callable[[str | None], str]] = {
    "running_vms": _running_vms,
    "vms": _vms,
    "slots": _slots,
    "prices": _prices,
    "job_prices": _job_prices,
    "leased_slots": _leased_slots,
    "busy_slots": _busy_slots,
    "running_jobs": _running_jobs,
    "waiting_jobs": _waiting_jobs,
    "submitted": _submitted,
    "started": _started,
    "ended": _ended,
    "waits": _waits,
    "runs": _runs,
    "samples": _samples,
    "beats": _beats,
}
