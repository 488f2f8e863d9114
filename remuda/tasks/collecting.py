"""get_results: fetch what attempts left on their VM, store it, and end their jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BackendError, ConfigError, DataStagingError, OutputNotAvailable
from remuda.models import collect
from remuda.models.exits import lock_journal
from remuda.models.watches import vm_for_channel
from remuda.tasks import decisions, recording
from remuda.tasks.retrying import known_of
from remuda.tasks.runtime import Runtime
from remuda.tasks.saving import Saver

log = logging.getLogger(__name__)


def get_results(runtime: Runtime, vm_id: int, attempt_ids: Sequence[int] | None = None) -> int:
    """Fetch the outputs of the VM's EXITED attempts; return how many jobs came to an end by it.

    Repeating it is harmless. A VM that doesn't answer leaves everything as it is (raises
    VmUnreachable); an output that cannot be had ends its attempt as FAILED, reason STAGING.
    """
    vm, rows = runtime.transact(
        lambda c: (
            vm_for_channel(c, vm_id),
            collect.to_collect(c, vm_id=vm_id, attempt_ids=attempt_ids),
        )
    )
    if vm is None or not rows:
        return 0
    channel = runtime.links.get(vm)
    saver = Saver(runtime, vm, channel)
    outputs: list[dict[str, Any]] = []
    failures: dict[int, str] = {}
    rows = _under_way.take(rows)
    if not rows:
        return 0
    try:
        for row in rows:
            try:
                outputs += saver.save(row)
            except (ConfigError, DataStagingError, OutputNotAvailable) as error:
                failures[row["attempt_id"]] = str(error)
                log.warning("outputs are lost: %s", error, extra={"attempt_id": row["attempt_id"]})
        done = _finish(runtime, vm_id, rows, failures, outputs)
    finally:
        _under_way.leave(rows)
    channel.send("free", a=[row["attempt_id"] for row in rows])
    return len(done)


def _finish(
    runtime: Runtime,
    vm_id: int,
    rows: Sequence[Mapping[str, Any]],
    failures: Mapping[int, str],
    outputs: Sequence[Mapping[str, Any]],
) -> set[int]:
    """End the attempts and their jobs in one transaction."""

    def work(connection: Connection) -> set[int]:
        if lock_journal(connection, vm_id) is None:
            return set()
        known = known_of(connection, [row["attempt_id"] for row in rows])
        outcomes = [
            decisions.collected(
                known.get(row["attempt_id"]), row, failure=failures.get(row["attempt_id"])
            )
            for row in rows
        ]
        done = collect.finish(connection, vm_id, outcomes, outputs)
        recording.tell(connection, vm_id, sorted(done))
        return done

    return runtime.transact(work)


class _UnderWay:
    """The attempts this process is fetching from: what takes long is not begun twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[int] = set()

    def take(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those nobody has taken, taken now."""
        with self._lock:
            free = [row for row in rows if row["attempt_id"] not in self._ids]
            self._ids.update(row["attempt_id"] for row in free)
        return free

    def leave(self, rows: Sequence[dict[str, Any]]) -> None:
        """Give them up."""
        with self._lock:
            self._ids.difference_update(row["attempt_id"] for row in rows)


_under_way = _UnderWay()


def free(runtime: Runtime, vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Remove sandboxes of ended attempts on their VM; a second call is harmless."""
    row = runtime.transact(lambda c: vm_for_channel(c, vm_id))
    if row is None:
        return
    live = {a["attempt_id"] for a in runtime.transact(lambda c: collect.live_attempts(c, [vm_id]))}
    kept = sorted(live & set(attempt_ids))
    if kept:
        raise BackendError(f"attempts {kept} have not ended", hint="cancel their jobs first")
    runtime.links.get(row).request("free", a=list(attempt_ids))
