"""get_results: fetch what attempts left on their VM, store it, and end their jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BackendError, DataStagingError, OutputNotAvailable
from remuda.models import collect
from remuda.models.exits import lock_journal
from remuda.models.watches import vm_for_channel
from remuda.storage import Storage
from remuda.tasks import decisions, recording
from remuda.tasks.links import vm_address
from remuda.tasks.retrying import known_of
from remuda.tasks.runtime import Runtime
from remuda.workers.channel import Channel

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
    outputs: list[dict[str, Any]] = []
    failures: dict[int, str] = {}
    for row in rows:
        try:
            outputs += _fetch(runtime, vm, channel, row)
        except (DataStagingError, OutputNotAvailable) as error:
            failures[row["attempt_id"]] = str(error)
            log.warning("outputs are missing: %s", error, extra={"attempt_id": row["attempt_id"]})

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

    done = runtime.transact(work)
    channel.send("free", a=[row["attempt_id"] for row in rows])
    return len(done)


def _fetch(
    runtime: Runtime, vm: Mapping[str, Any], channel: Channel, row: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Copy one attempt's pending files and streams to the storage; return their rows."""
    storage = Storage(runtime.settings.storage)
    backend = runtime.links.backend(vm["backend"])
    pending = row["pending"] or {}
    wanted = [("file", name) for name in pending.get("files", {})]
    wanted += [("stream", name) for name in pending.get("streams", [])]
    found = []
    for kind, name in wanted:
        key = f"jobs/{row['job_id']}/{row['attempt_id']}/{kind}/{name}"
        # A file of the sandbox may be called stdout, too.
        source = name if kind == "stream" else f"./{name}"
        with storage.writing(key) as target:
            size = backend.fetch(channel, vm_address(vm), row["attempt_id"], source, target)
        found.append(
            {
                "attempt_id": row["attempt_id"],
                "kind": kind,
                "name": name,
                "size": size,
                "data": None,
                "url": storage.url(key),
            }
        )
    return found


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
