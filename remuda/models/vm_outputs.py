"""What VMs themselves say: the last of each one's stdout and stderr, and how far it was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

KEPT_BYTES = 128 << 10  # of each stream of a VM


@dataclass(frozen=True, slots=True)
class Said:
    """Bytes of a VM's stream from the offset `at` on."""

    vm_id: int
    stream: str
    at: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.at + len(self.data)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there of a VM's stream: `missing` bytes were dropped before `data`."""

    vm_id: int
    vm: str
    data: bytes
    missing: int = 0


# What was recorded before is left out; after a gap nothing from before it is kept.
_RECORD = text("""
    INSERT INTO vm_outputs AS o (vm_id, stream, data, written_bytes)
    SELECT id, :stream, substring(CAST(:data AS bytea) FROM greatest(1, :size - :kept + 1)), :end
    FROM vms WHERE id = :vm
    ON CONFLICT (vm_id, stream) DO UPDATE SET written_bytes = :end,
      data = CASE WHEN o.written_bytes < :at THEN excluded.data ELSE substring(
        o.data || substring(CAST(:data AS bytea) FROM (o.written_bytes - :at)::int + 1)
        FROM greatest(1, length(o.data) + (:end - o.written_bytes)::int - :kept + 1)) END
    WHERE o.written_bytes < :end
""")

_FRESH = """
    WITH old AS (
      -- Of two who read at once each gets what the other did not.
      SELECT o.*, v.name FROM vm_outputs o JOIN vms v ON v.id = o.vm_id
      WHERE v.pool_id = :pool AND o.stream = :stream
        AND (CAST(:vm AS bigint) IS NULL OR o.vm_id = :vm)
      ORDER BY o.vm_id FOR UPDATE OF o
    )
    UPDATE vm_outputs o SET read_bytes = o.written_bytes FROM old
    WHERE o.vm_id = old.vm_id AND o.stream = old.stream AND old.read_bytes < old.written_bytes
    RETURNING old.vm_id, old.name, old.data, old.written_bytes, old.read_bytes
"""


def record(connection: Connection, said: Sequence[Said]) -> None:
    """Record what VMs said; what is known already changes nothing."""
    for piece in sorted(said, key=lambda each: (each.vm_id, each.stream, each.at)):
        connection.execute(
            _RECORD,
            {
                "vm": piece.vm_id,
                "stream": piece.stream,
                "data": piece.data,
                "size": len(piece.data),
                "at": piece.at,
                "end": piece.end,
                "kept": KEPT_BYTES,
            },
        )


def recorded(connection: Connection, vm_id: int, stream: str) -> int:
    """Return how many bytes of a VM's stream are recorded, or were once."""
    found = rows(
        connection,
        "SELECT written_bytes FROM vm_outputs WHERE vm_id = :vm AND stream = :stream",
        vm=vm_id,
        stream=stream,
    )
    return int(found[0]["written_bytes"]) if found else 0


def kept(
    connection: Connection, pool_id: int, stream: str, *, vm_id: int | None = None
) -> list[Kept]:
    """Return what is kept of a stream of a pool's VMs, or of one of them; the oldest VM first."""
    found = rows(
        connection,
        """SELECT o.vm_id, v.name, o.data, o.written_bytes - length(o.data) AS missing
           FROM vm_outputs o JOIN vms v ON v.id = o.vm_id
           WHERE v.pool_id = :pool AND o.stream = :stream
             AND (CAST(:vm AS bigint) IS NULL OR o.vm_id = :vm) ORDER BY o.vm_id""",
        pool=pool_id,
        stream=stream,
        vm=vm_id,
    )
    return [Kept(row["vm_id"], row["name"], bytes(row["data"]), row["missing"]) for row in found]


def fresh(
    connection: Connection, pool_id: int, stream: str, *, vm_id: int | None = None
) -> list[Kept]:
    """Return what came since this was last asked, by anybody; each byte once."""
    found = rows(connection, _FRESH, pool=pool_id, stream=stream, vm=vm_id)
    return [_unread(row) for row in sorted(found, key=lambda row: row["vm_id"])]


def forget_old(connection: Connection, *, age_s: float) -> None:
    """Remove what VMs said that have been gone for so long."""
    connection.execute(
        text(
            """DELETE FROM vm_outputs o USING vms v
               WHERE v.id = o.vm_id AND v.halted_at < now() - make_interval(secs => :age)"""
        ),
        {"age": age_s},
    )


def _unread(row: Mapping[str, Any]) -> Kept:
    data = bytes(row["data"])
    unread = row["written_bytes"] - row["read_bytes"]
    return Kept(row["vm_id"], row["name"], data[-unread:], max(0, unread - len(data)))
