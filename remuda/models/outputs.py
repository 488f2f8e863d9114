"""What ended jobs left: their final records, streams and files, and output while it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

INLINE_BYTES = 1024  # outputs up to this size come with the final record

_FINAL = f"""
    SELECT j.*, p.name AS pool, o.name AS owner, s.output_dir, s.overwrite,
           s.outputs AS declared,
           a.id AS attempt_id, a.vm_id, v.name AS vm, a.wall_s, a.user_s,
           a.system_s, a.max_rss_bytes, a.peak_memory_bytes,
           a.io_read_bytes, a.io_write_bytes,
           (SELECT jsonb_agg(jsonb_build_object('kind', r.kind, 'name', r.name, 'size', r.size,
                     'url', r.url, 'executable', r.executable, 'sha256', r.sha256,
                     'data', CASE WHEN length(r.data) <= {INLINE_BYTES}
                                                THEN encode(r.data, 'base64') END))
            FROM attempt_outputs r WHERE r.attempt_id = a.id) AS outputs
    FROM jobs j JOIN pools p ON p.id = j.pool_id JOIN job_specs s ON s.id = j.spec_id
    JOIN owners o ON o.id = j.owner_id
    LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
    LEFT JOIN vms v ON v.id = a.vm_id
    WHERE j.id = ANY(:ids) AND j.state = 'TERMINATED' ORDER BY j.ended_at, a.ended_at, j.id
"""


def final_records(connection: Connection, job_ids: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    """Return those of the jobs that have ended, in the order of their ends.

    `outputs` is None or a list of {kind, name, size, url, executable, sha256, data}; only small
    ones come with `data`, in base64.
    """
    return rows(connection, _FINAL, ids=list(job_ids))


def which_exist(connection: Connection, job_ids: Sequence[int]) -> set[int]:
    """Return those of the ids that are jobs."""
    found = rows(connection, "SELECT id FROM jobs WHERE id = ANY(:ids)", ids=list(job_ids))
    return {row["id"] for row in found}


def stored(connection: Connection, attempt_id: int) -> Sequence[Mapping[str, Any]]:
    """Return (kind, name, size, url, cut_from, cut_to, written_bytes) of what an attempt left."""
    return rows(
        connection,
        """SELECT kind, name, size, url, cut_from, cut_to, written_bytes
           FROM attempt_outputs WHERE attempt_id = :id
           ORDER BY kind, name""",
        id=attempt_id,
    )


def vm_of(connection: Connection, attempt_id: int) -> int:
    """Return the VM of an attempt."""
    return int(
        rows(connection, "SELECT vm_id FROM attempts WHERE id = :id", id=attempt_id)[0]["vm_id"]
    )


def inline_data(connection: Connection, attempt_id: int, *, kind: str, name: str) -> bytes:
    """Return the content of an output that is kept in the database; empty if there is none."""
    found = rows(
        connection,
        """SELECT data FROM attempt_outputs
           WHERE attempt_id = :id AND kind = :kind AND name = :name AND data IS NOT NULL""",
        id=attempt_id,
        kind=kind,
        name=name,
    )
    return bytes(found[0]["data"]) if found else b""


def attempts_from(
    connection: Connection, job_id: int, *, epoch: int
) -> Sequence[Mapping[str, Any]]:
    """Return the job's attempts (id, epoch, state) from `epoch` on, with the job's state."""
    return rows(
        connection,
        """SELECT a.id, a.epoch, a.state, j.state AS job_state, j.epoch AS job_epoch
           FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch >= :epoch
           WHERE j.id = :job ORDER BY a.epoch""",
        job=job_id,
        epoch=epoch,
    )


def chunks_from(
    connection: Connection, attempt_id: int, *, offsets: Mapping[str, int], limit: int = 256
) -> Sequence[Mapping[str, Any]]:
    """Return followed output (stream, at_byte, data, cut_from) past the offsets, in order."""
    return rows(
        connection,
        """SELECT stream, at_byte, data, cut_from FROM output_chunks
           WHERE attempt_id = :id AND at_byte + length(data) >
                 CASE stream WHEN 'stdout' THEN CAST(:stdout AS bigint) ELSE :stderr END
           ORDER BY stream DESC, at_byte LIMIT :limit""",
        id=attempt_id,
        limit=limit,
        stdout=offsets.get("stdout", 0),
        stderr=offsets.get("stderr", 0),
    )


def read_offset(connection: Connection, job_id: int, stream: str) -> tuple[int, int]:
    """Return how far the stream was read as "fresh": the number of the attempt, and a byte of it."""
    found = connection.scalar(
        text("SELECT read_offsets -> CAST(:stream AS text) FROM jobs WHERE id = :id"),
        {"id": job_id, "stream": stream},
    )
    return (int(found[0]), int(found[1])) if found else (0, 0)


def move_offset(
    connection: Connection, job_id: int, stream: str, *, old: tuple[int, int], new: tuple[int, int]
) -> bool:
    """Take what is between the two for read; False if somebody else has read meanwhile."""
    found = connection.execute(
        text(
            """UPDATE jobs SET read_offsets = coalesce(read_offsets, '{}')
                 || jsonb_build_object(CAST(:stream AS text), CAST(:new AS jsonb))
               WHERE id = :id
                 AND coalesce(read_offsets -> CAST(:stream AS text), '[0, 0]') = CAST(:old AS jsonb)"""
        ),
        {"id": job_id, "stream": stream, "old": json.dumps(old), "new": json.dumps(new)},
    )
    return bool(found.rowcount)
