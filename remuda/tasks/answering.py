"""What a runner is asked for each kind of call, and what of its answer is to be recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.errors import (
    BackendError,
    OutputNotAvailable,
    Refused,
    RemudaError,
    ResourceNotReady,
    VmUnreachable,
)
from remuda.models import calls as models
from remuda.models.exits import lock_journal
from remuda.models.starting import take_back
from remuda.models.watches import vm_for_channel
from remuda.tasks.runtime import Runtime
from remuda.workers.channel import Channel

_REQUEST_S = 3.0  # for one answer of a runner
_ON_ITS_WAY_S = 2.0  # until a placed attempt is known to its runner
_RECORDED_S = 1.0  # until what a runner knows of an end is recorded
MOST_S = _REQUEST_S + _ON_ITS_WAY_S
_PAUSE_S = 0.02

Call = Mapping[str, Any]
Work = Callable[[Connection], Any]


def ask(runtime: Runtime, vm_id: int | None, call: Call, works: list[Work]) -> dict[str, Any]:
    """Do what the call wants and return the answer; `works` are to be recorded with it."""
    verb, job_id = call["verb"], call["job_id"]
    if verb == "signal" and call["again"]:
        raise VmUnreachable(f"it is unknown whether job {job_id} got the signal: a worker died")
    no = models.refusal(verb, job_id, call["state"], call["attempt_state"])
    if no is not None or vm_id is None:
        raise no or Refused(f"job {job_id} is on no machine")
    try:
        return _VERBS[verb](_channel(runtime, vm_id), call, works)
    except OutputNotAvailable:
        name = call["arguments"].get("name", "")
        what = f"has no file {name!r:.200}" if name else "has no files any more"
        raise OutputNotAvailable(f"job {job_id} {what}") from None
    except VmUnreachable as error:
        if verb == "signal":
            error.message += "; it is unknown whether the signal came"
        raise
    except BackendError as error:
        if isinstance(error, ResourceNotReady):
            raise
        raise _over(runtime, call) or error from error


def _over(runtime: Runtime, call: Call) -> RemudaError | None:
    """Return why a call on an attempt that is over is refused; its end may just be on its way here."""
    deadline = time.monotonic() + _RECORDED_S
    while True:
        (now,) = runtime.transact(lambda c: models.standing(c, [call["job_id"]]))
        moved = now["attempt_id"] != call["attempt_id"]
        state = None if moved else now["attempt_state"]
        why = models.refusal(call["verb"], call["job_id"], now["state"], state)
        if why is not None or time.monotonic() > deadline:
            return why
        time.sleep(_PAUSE_S)  # between two looks at a condition with a deadline


def _channel(runtime: Runtime, vm_id: int) -> Channel:
    channel = runtime.links.present(vm_id)
    if channel is None:
        row = runtime.transact(lambda c: vm_for_channel(c, vm_id))
        if row is None:
            raise VmUnreachable("its VM is gone")
        channel = runtime.links.get(row)
    return channel


def _peek(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    asked = call["arguments"]
    found = channel.request(
        "peek",
        a=call["attempt_id"],
        file=asked["name"],
        offset=asked["offset"],
        size=asked["size"],
        written=bool(asked.get("written")),
        timeout_s=_REQUEST_S,
    )
    place = {"attempt_id": call["attempt_id"]}
    return {"data": found["data"], "at": found["at"], "size": found["size"], **place}


def _files(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    found = channel.request("files", a=call["attempt_id"], timeout_s=_REQUEST_S)
    files = [
        [name.encode(errors="surrogateescape").decode(errors="backslashreplace"), *rest]
        for name, *rest in found["files"]
    ]
    return {"files": files, "more": bool(found.get("more"))}


def _signal(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    number = call["arguments"]["signal"]
    channel.request("signal", a=call["attempt_id"], signal=number, timeout_s=_REQUEST_S)
    return {}


def _suspend(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    """Suspend it; what has not begun is taken back and held instead."""
    job_id, attempt_id = call["job_id"], call["attempt_id"]

    def held(connection: Connection) -> None:
        if lock_journal(connection, call["vm_id"]) is not None:
            take_back(connection, call["vm_id"], [attempt_id])
            models.hold(connection, [job_id])

    def attempted() -> dict[str, Any]:
        recalled = call["attempt_state"] == "PLACED" and channel.request(
            "recall", a=[attempt_id], timeout_s=_REQUEST_S
        )
        if recalled and attempt_id in recalled["recalled"]:
            works.append(held)
            return {"suspended": True, "held": True}
        found = channel.request("suspend", a=attempt_id, timeout_s=_REQUEST_S)
        works.append(
            lambda c: models.record_suspended(
                c, call["vm_id"], {attempt_id: bool(found["suspended"])}
            )
        )
        return {"suspended": bool(found["suspended"]), "held": False}

    return _once_known(call, attempted)


def _resume(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    attempt_id = call["attempt_id"]
    found = channel.request("resume", a=attempt_id, timeout_s=_REQUEST_S)
    suspended = bool(found["suspended"])
    works.append(lambda c: models.record_suspended(c, call["vm_id"], {attempt_id: suspended}))
    return {"suspended": suspended}


def _extend(channel: Channel, call: Call, works: list[Work]) -> dict[str, Any]:
    job_id, attempt_id = call["job_id"], call["attempt_id"]
    wall = float(call["arguments"]["walltime_s"])
    _once_known(
        call, lambda: channel.request("extend", a=attempt_id, wall=wall, timeout_s=_REQUEST_S)
    )
    works.append(lambda c: models.set_walltime(c, job_id, wall, attempt_id=attempt_id))
    return {"walltime_s": wall}


def _once_known(call: Call, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Try until the runner knows an attempt that is still on its way to it; not for long."""
    deadline = time.monotonic() + _ON_ITS_WAY_S
    while True:
        try:
            return attempt()
        except BackendError as error:
            if call["attempt_state"] != "PLACED":
                raise
            if time.monotonic() > deadline:
                raise ResourceNotReady(
                    f"job {call['job_id']} is on its way to its VM", hint="try again in a moment"
                ) from error
        time.sleep(_PAUSE_S)  # between two tries with a deadline


_VERBS: dict[str, Callable[[Channel, Call, list[Work]], dict[str, Any]]] = {
    "peek": _peek,
    "files": _files,
    "signal": _signal,
    "suspend": _suspend,
    "resume": _resume,
    "extend": _extend,
}
