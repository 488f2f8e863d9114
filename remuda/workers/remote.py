"""What is done on a host over SSH before and beside the channel to its runner.

Nothing but a login shell, `/bin/sh` and python3 is relied on. Every answer is found by its mark,
so whatever the login shell prints does no harm; nothing that is asked stands in an argument list
but paths.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from remuda.errors import BackendError, VmUnreachable
from remuda.hosts import Host
from remuda.workers.bundle import bundle
from remuda.workers.onvm import host as asked
from remuda.workers.onvm.commands import READY, STOPPED
from remuda.workers.session import NO_PYTHON, Session
from remuda.workers.transport import bridge, connections

__all__ = ["attach", "call", "put", "runner_name", "start_runner"]

PYTHON = "python3 -I -S -X utf8"  # a fast start, and file names as they are
PIECE = 1 << 18
_FIND = f"command -v python3 >/dev/null 2>&1 || {{ echo; echo {NO_PYTHON}; exit 43; }}"
_CHECK = "import sys; sys.version_info < (3, 7) and sys.exit(46)"
_UNFIT = f"{asked.MARK}{json.dumps({'claim': None, 'python': False})}"


@lru_cache(maxsize=1)
def runner_name() -> str:
    """Return the name the runner's file has on hosts: another content, another name."""
    return f"runner-{hashlib.sha256(bundle()).hexdigest()[:16]}.pyz"


def call(
    host: Host,
    do: str,
    *,
    place: str,
    timeout_s: float,
    send: Callable[[], BinaryIO] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Ask `remuda.workers.onvm.host` on the host; returns its answer.

    `send` opens what to stream if it is wanted there. Raises VmUnreachable or AuthError if the
    host cannot be asked, NoResources if it has no python3, BackendError if it cannot do it.
    """
    source = _source()
    code = f"{_CHECK}; exec(sys.stdin.buffer.read({len(source)}))"
    script = f"if command -v python3 >/dev/null 2>&1; then {PYTHON} -c {shlex.quote(code)}; "
    script += "[ $? = 46 ] || exit 0; fi; "
    if do == "look":  # a host without python3 that nobody has claimed is free, if unfit
        free = f"[ -e {shlex.quote(place)}/claim ]"
        script += f"{free} || {{ echo; echo {shlex.quote(_UNFIT)}; exit 43; }}; "
    with _running(host, f"{script} echo; echo {NO_PYTHON}", timeout_s) as session:
        session.write(source + json.dumps({"do": do, "place": place, **fields}).encode() + b"\n")
        answer = _answer(session)
        if answer.get("send") and send is not None:
            with send() as stream:
                while piece := stream.read(PIECE):
                    if not session.write(piece):
                        break
            answer = _answer(session)
    if "error" in answer:
        raise BackendError(f"host {host.name}: {answer['error']}")
    return answer


def put(
    host: Host,
    path: str,
    *,
    sha256: str,
    size: int,
    opened: Callable[[], BinaryIO],
    inside: str = "",
    timeout_s: float,
) -> dict[str, Any]:
    """Have a file there, whole or not at all, sent unless it is there already.

    `inside`: a folder that must exist, else the answer is {"gone"}.
    """
    fields = {"sha256": sha256, "size": size, "inside": inside, "wait_s": timeout_s / 2}
    return call(host, "put", place=path, timeout_s=timeout_s, send=opened, **fields)


def put_runner(host: Host, home: str, *, new: bool = False, timeout_s: float) -> None:
    """Have the runner's file in a home; VmUnreachable if there is no such home, unless `new`."""
    from io import BytesIO

    data = bundle()
    answer = put(
        host,
        f"{home}/{runner_name()}",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opened=lambda: BytesIO(data),
        inside="" if new else home,
        timeout_s=timeout_s,
    )
    if answer.get("gone"):
        raise VmUnreachable(f"{home} on host {host.name} is gone")


def start_runner(host: Host, home: str, arguments: Sequence[str] = (), *, timeout_s: float) -> None:
    """Have a runner serve a home, detached from us; harmless if one does.

    Without `arguments` those of last time are used, and the home must have been served before and
    not been stopped: else it is gone, VmUnreachable.
    """
    check = f"[ -f runner.json ] && [ ! -e {STOPPED} ] ||"
    if arguments:
        put_runner(host, home, new=True, timeout_s=timeout_s)
        check = "true ||"
    serve = (
        f"exec {PYTHON} {runner_name()} serve --home {shlex.quote(home)} {shlex.join(arguments)}"
    )
    for _ in range(2):
        script = f"{_enter(home)}; {check} {{ echo; echo remuda-gone; exit 44; }}; {_have()}"
        with _running(host, f"{script}; echo; {serve}", timeout_s) as session:
            said = session.until(READY, "remuda-gone", "remuda-no-runner")
        if said == READY:
            return
        if said == "remuda-gone":
            raise VmUnreachable(f"{home} on host {host.name} is gone")
        put_runner(host, home, timeout_s=timeout_s)
    raise VmUnreachable(f"the runner of {home} on host {host.name} did not start")


def attach(host: Host, home: str, *, timeout_s: float) -> socket.socket:
    """Return a socket on which the home's runner speaks; VmUnreachable if the home is gone.

    If no runner lives there, the socket ends at once.
    """
    enter = (
        f"{_enter(home)}; [ ! -e {STOPPED} ] || {{ echo; echo remuda-gone; exit 44; }}; {_have()}"
    )
    script = f"{enter}; echo; echo remuda-attached; exec {PYTHON} {runner_name()} attach --home "
    for _ in range(2):
        channel, release = connections().take(host, timeout_s=timeout_s)
        session = Session(host, channel)
        said = ""
        try:
            with session.limited(timeout_s):
                session.execute(f"{_FIND}; {script}{shlex.quote(home)}")
                said = session.until("remuda-attached", "remuda-gone", "remuda-no-runner")
        finally:
            if said != "remuda-attached":
                channel.close()
                release()
        if said == "remuda-attached":
            return bridge(channel, bytes(session.rest), release, f"ssh {host.name}")
        if said == "remuda-gone":
            raise VmUnreachable(f"{home} on host {host.name} is gone")
        put_runner(host, home, timeout_s=timeout_s)
    raise VmUnreachable(f"the runner's file on host {host.name} does not stay")


def _enter(home: str) -> str:
    return f"cd -- {shlex.quote(home)} 2>/dev/null || {{ echo; echo remuda-gone; exit 44; }}"


def _have() -> str:
    return f"[ -f {runner_name()} ] || {{ echo; echo remuda-no-runner; exit 45; }}"


@lru_cache(maxsize=1)
def _source() -> bytes:
    return Path(asked.__file__).read_bytes()


def _answer(session: Session) -> dict[str, Any]:
    line = session.until(asked.MARK)
    answer = json.loads(line[len(asked.MARK) :])
    if not isinstance(answer, dict):
        raise BackendError(f"host {session.host.name} gave no answer")
    return answer


@contextmanager
def _running(host: Host, script: str, timeout_s: float) -> Iterator[Session]:
    with connections().session(host, timeout_s=timeout_s) as channel:
        session = Session(host, channel)
        with session.limited(timeout_s):
            session.execute(script)
            yield session
