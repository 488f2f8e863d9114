"""Rows of attempts and VMs in the words of Celery's event protocol. Pure."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from remuda.spec_files import filler
from remuda.tasks.flower.ids import task_id

RECEIVED, STARTED, ENDED = 1, 2, 3

_ENDED = ("COLLECTED", "LOST", "CANCELLED", "FAILED")
_NAME_CHARACTERS = 80
_ARGS_CHARACTERS = 160
_MESSAGE_CHARACTERS = 1000


def hostname(vm: str, pool: str) -> str:
    """Return the worker name under which a VM is shown."""
    return f"{vm}@{pool}"


def attempt_events(row: Mapping[str, Any], *, said: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the events that tell how far an attempt is, and that stage, where `said` was told.

    `row` is of `remuda.models.observing.attempts_shown`.
    """
    common = {"uuid": task_id(row["attempt_id"]), "hostname": hostname(row["vm"], row["pool"])}
    events: list[dict[str, Any]] = []
    stage = said
    if said < RECEIVED:
        events.append(common | _received(row))
        stage = RECEIVED
    if said < STARTED and row["started_at"] is not None:
        events.append({**common, "type": "task-started", "timestamp": row["started_at"]})
        stage = STARTED
    if said < ENDED and row["state"] in _ENDED:
        events.append(common | _ended(row))
        stage = ENDED
    return events, stage


def _received(row: Mapping[str, Any]) -> dict[str, Any]:
    command = shlex.join(row["command"])  # as it was given: one name for all jobs of an array
    fill = filler(row["array_index"], row["params"])
    return {
        "type": "task-received",
        "timestamp": row["placed_at"],
        "name": _short(row["name"] or command, _NAME_CHARACTERS),
        "args": _short(shlex.join([fill(word) for word in row["command"]]), _ARGS_CHARACTERS),
        "kwargs": _origin(row),
        "retries": row["epoch"] - 1,
    }


def _origin(row: Mapping[str, Any]) -> str:
    """Return whose job this is: 'job 17, array 3[5], try 2, owner ann'."""
    parts = [f"job {row['job_id']}"]
    if row["array_id"] is not None:
        parts.append(f"array {row['array_id']}[{row['array_index']}]")
    if row["epoch"] > 1:
        parts.append(f"try {row['epoch']}")
    return ", ".join([*parts, f"owner {row['owner']}"])


def _ended(row: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"timestamp": row["ended_at"], "result": outcome(row)}
    if row["wall_s"] is not None:
        told["runtime"] = row["wall_s"]
    if row["state"] == "COLLECTED" and row["reason"] == "OK":
        return told | {"type": "task-succeeded"}
    cancelled = row["state"] == "CANCELLED" or row["reason"] == "CANCELLED"
    if cancelled and not row["again"]:
        return told | {
            "type": "task-revoked",
            "terminated": row["started_at"] is not None,
            "signum": row["signal"],
            "expired": False,
        }
    kind = "task-retried" if row["again"] else "task-failed"
    message = "recalled before it started" if cancelled else row["message"]
    return told | {
        "type": kind,
        "exception": outcome(row),
        "traceback": _short(message, _MESSAGE_CHARACTERS) if message else None,
    }


def outcome(row: Mapping[str, Any]) -> str:
    """Return how an attempt ended, in a few words: 'OK, exit code 0', 'SIGNALLED, SIGKILL'."""
    parts = [row["reason"] or row["state"]]
    if row["exit_code"] is not None:
        parts.append(f"exit code {row['exit_code']}")
    if row["signal"] is not None:
        parts.append(_signal_name(row["signal"]))
    return ", ".join(parts)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def vm_event(
    kind: str,
    name: str,
    *,
    now: float,
    freq_s: float,
    active: int = 0,
    processed: int = 0,
    version: str = "",
    load: Sequence[float] = (),
) -> dict[str, Any]:
    """Return a `worker-KIND` event (online, heartbeat, offline) of the VM shown as `name`.

    A monitor takes the VM for offline when two times `freq_s` pass without another.
    """
    return {
        "type": f"worker-{kind}",
        "hostname": name,
        "timestamp": now,
        "freq": freq_s,
        "active": active,
        "processed": processed,
        "loadavg": [round(value, 2) for value in load],
        "sw_ident": "remuda",
        "sw_ver": version,
        "sw_sys": "VM",
    }


def sampled_events(
    task: str, worker: str, *, now: float, shown: int, ended: int, rate: float
) -> list[dict[str, Any]]:
    """Return events of a task `remuda.sampled` whose result says how much is left out."""
    text = f"{shown:,} of {ended:,} ended attempts shown (limit {rate:g}/s)"
    common = {"uuid": task, "hostname": worker, "timestamp": now}
    return [
        {**common, "type": "task-received", "name": "remuda.sampled", "args": "", "kwargs": ""},
        {**common, "type": "task-succeeded", "result": text, "runtime": 0.0},
    ]


def sweep_events(
    task: str,
    name: str,
    worker: str,
    *,
    began: float,
    ended: float,
    found: str | None,
    failed: bool,
) -> list[dict[str, Any]]:
    """Return the events of a sweep that `found` something, or failed with it."""
    common = {"uuid": task, "hostname": worker}
    told = _short(found.split("\n", 1)[0], _ARGS_CHARACTERS) if found else "nothing to do"
    end = {"type": "task-failed", "exception": told} if failed else {"type": "task-succeeded"}
    return [
        {
            **common,
            "type": "task-received",
            "timestamp": began,
            "name": name,
            "args": "",
            "kwargs": "",
        },
        {**common, "type": "task-started", "timestamp": began},
        {**common, **end, "timestamp": ended, "result": told, "runtime": ended - began},
    ]


def counted(number: int, what: str) -> str:
    """Return '1 VM', '2 VMs'."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def id_list(ids: Sequence[int]) -> str:
    """Return a list of ids in a few characters: '5', '5, 7, 9', '5 … 90 (23)'."""
    if len(ids) <= 5:
        return ", ".join(map(str, ids))
    return f"{min(ids)} … {max(ids)} ({len(ids)})"


def _short(text: str, most: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
