"""Dispatch with the real decider, inside a transaction of the test's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from remuda.models.dispatch import Placed, apply_placements, take_snapshot
from remuda.tasks import placements
from remuda.workers import placement


def place(connection: Connection, *, max_ahead: int = 0, **more: Any) -> list[Placed]:
    """Place as dispatch does; return the new attempts."""
    snapshot = take_snapshot(connection, max_ahead=max_ahead, horizon_s=0.5, **more)
    decided = placement.place(placements.for_placement(snapshot, 0.5, max_ahead), snapshot.now)
    return apply_placements(connection, snapshot, [(p.job_id, p.vm_id) for p in decided])
