"""How attempts ended, from what their runner or the fetching of their outputs says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from remuda.models.exits import Outcome
from remuda.models.states import Reason
from remuda.tasks.retrying import Known, known_of, settle


def of_entries(
    connection: Connection, entries: Sequence[tuple[Mapping[str, Any], float]]
) -> list[Outcome]:
    """Return the outcomes of a runner's exit entries, each with the time it is on that clock."""
    bad = [entry["a"] for entry, _ in entries if entry["why"] != "OK"]
    known = known_of(connection, bad, among=[e["a"] for e, _ in entries]) if bad else {}
    return [_of_entry(known.get(entry["a"]), entry, now_s) for entry, now_s in entries]


def _of_entry(known: Known | None, entry: Mapping[str, Any], now_s: float) -> Outcome:
    pending = _pending(entry)
    started = entry.get("s")
    ran = entry.get("st") is not None or entry.get("sig") is not None
    reason = entry["why"]
    outcome = Outcome(
        attempt_id=entry["a"],
        state="COLLECTED" if ran else "FAILED",
        job_state="TERMINATED",
        reason=reason,
        exit_code=entry.get("st"),
        signal=entry.get("sig"),
        message=_clean(entry.get("msg")),
        started_age_s=None if started is None else max(0.0, now_s - started),
        ended_age_s=max(0.0, now_s - entry.get("x", now_s)),
        user_s=entry.get("u"),
        system_s=entry.get("sy"),
        max_rss_bytes=entry.get("rss"),
        peak_memory_bytes=entry.get("peak"),
        io_read_bytes=entry.get("rd"),
        io_write_bytes=entry.get("wr"),
    )
    begun = ran or bool(entry.get("started"))
    if reason in (Reason.LOST, Reason.CANCELLED) and begun and pending and pending["streams"]:
        # What it wrote is kept as of any other; its files are not wanted any more.
        kept = {**pending, "files": {}, "executable": []}
        return replace(outcome, state="EXITED", job_state="TERMINATING", pending=kept)
    if reason in (Reason.LOST, Reason.CANCELLED):
        return settle(known, replace(outcome, state=reason, begun=begun))
    if ran and pending is not None:
        return replace(outcome, state="EXITED", job_state="TERMINATING", pending=pending)
    return outcome if reason == Reason.OK else settle(known, outcome)


def _pending(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    files = dict(entry.get("f") or {})
    streams = [name for name, key in (("stdout", "osp"), ("stderr", "esp")) if entry.get(key)]
    if not files and not streams:
        return None
    more = {
        name: entry[key] for name, key in (("executable", "fx"), ("cut", "cut")) if entry.get(key)
    }
    return {"files": files, "streams": streams, **more}


def inline_outputs(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the streams that came along in an exit entry."""
    return [
        {
            "attempt_id": entry["a"],
            "kind": "stream",
            "name": name,
            "size": entry.get(size) or 0,
            "data": entry[key],
            "url": None,
        }
        for name, key, size in (("stdout", "o", "os"), ("stderr", "er", "es"))
        if entry.get(key)
    ]


def lost(
    connection: Connection,
    attempts: Sequence[Mapping[str, Any]],
    message: str,
    *,
    displaced: bool = False,
) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes of losing live attempts: (those on their way, those EXITED).

    `displaced`: their VM was taken away by its provider, as it had said.
    """
    known = known_of(connection, [row["attempt_id"] for row in attempts])
    outcomes = [
        settle(
            known.get(row["attempt_id"]),
            Outcome(
                attempt_id=row["attempt_id"],
                state="LOST",
                job_state="TERMINATED",
                reason=str(Reason.LOST),
                message=message,
                displaced=displaced,
            ),
        )
        for row in attempts
    ]
    exited = {row["attempt_id"] for row in attempts if row["state"] == "EXITED"}
    return (
        [o for o in outcomes if o.attempt_id not in exited],
        [o for o in outcomes if o.attempt_id in exited],
    )


def failed_to_start(
    connection: Connection, attempt_ids: Sequence[int], message: str
) -> list[Outcome]:
    """Return the outcomes of attempts whose inputs could not be staged."""
    known = known_of(connection, attempt_ids)
    return [
        settle(
            known.get(attempt_id),
            Outcome(
                attempt_id=attempt_id,
                state="FAILED",
                job_state="TERMINATED",
                reason=str(Reason.STAGING),
                message=_clean(message),
            ),
        )
        for attempt_id in attempt_ids
    ]


def collected(
    known: Known | None, row: Mapping[str, Any], *, failure: str | None = None
) -> Outcome:
    """Return the outcome of an EXITED attempt whose outputs were fetched, or could not be."""
    kept_reason = failure is None or row["reason"] in (Reason.LOST, Reason.CANCELLED)
    state = "COLLECTED" if failure is None else "FAILED"
    outcome = Outcome(
        attempt_id=row["attempt_id"],
        state="LOST" if row["reason"] == Reason.LOST else state,
        job_state="TERMINATED",
        reason=row["reason"] if kept_reason else str(Reason.STAGING),
        message=row["message"] if failure is None else _clean(failure),
        started_age_s=0.0,
    )
    return outcome if outcome.reason == Reason.OK else settle(known, outcome)


def _clean(message: str | None) -> str | None:
    """Return a message PostgreSQL can hold: no NUL, no endless text."""
    return None if message is None else message.replace("\0", "")[:4000]
