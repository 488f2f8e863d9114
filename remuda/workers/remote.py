"""A runner on a host: its file there, started, attached to, over SSH. A home is a path from the root on,
or from where one is after the login.

What a login shell prints before does no harm: every answer is found by its mark.
"""

from __future__ import annotations

import hashlib
import shlex
import socket
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

from remuda.errors import VmUnreachable
from remuda.hosts import Host
from remuda.workers.asking import PYTHON, call, running
from remuda.workers.bundle import bundle
from remuda.workers.onvm.commands import READY, STOPPED
from remuda.workers.session import NO_PYTHON, Session
from remuda.workers.transfers import put
from remuda.workers.transport import bridge, connections

__all__ = ["attach", "call", "install", "put_runner", "runner_name", "start_runner"]

LOGIN_S = 8.0  # a sshd that runs lets us in sooner; one that does not yet is tried again

_FIND = f"command -v python3 >/dev/null 2>&1 || {{ echo; echo {NO_PYTHON}; exit 43; }}"


@lru_cache(maxsize=1)
def runner_name() -> str:
    """Return the name the runner's file has on hosts: another content, another name."""
    return f"runner-{hashlib.sha256(bundle()).hexdigest()[:16]}.pyz"


def put_runner(host: Host, home: str, *, new: bool = False, timeout_s: float) -> None:
    """Have the runner's file in a home; VmUnreachable if there is no such home, unless `new`."""
    data = bundle()
    answer = put(
        host,
        f"{home}/{runner_name()}",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opened=lambda at: BytesIO(data[at:]),
        inside="" if new else home,
        wait_s=timeout_s / 2,
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
    serve = f'exec {PYTHON} {runner_name()} serve --home "$PWD" {shlex.join(arguments)}'
    for _ in range(2):
        script = f"{_enter(home)}; {check} {{ echo; echo remuda-gone; exit 44; }}; {_have()}"
        with running(host, f"{script}; echo; {serve}", timeout_s) as session:
            said = session.until(READY, "remuda-gone", "remuda-no-runner")
        if said == READY:
            return
        if said == "remuda-gone":
            raise VmUnreachable(f"{home} on host {host.name} is gone")
        put_runner(host, home, timeout_s=timeout_s)
    raise VmUnreachable(f"the runner of {home} on host {host.name} did not start")


def install(host: Host, home: str, arguments: Sequence[str], *, timeout_s: float) -> None:
    """Have a runner serve a home of a VM that may still be booting: VmUnreachable soon if it is."""
    channel, release = connections().take(host, timeout_s=min(timeout_s, LOGIN_S))
    channel.close()
    release()
    start_runner(host, home, arguments, timeout_s=timeout_s)


def attach(host: Host, home: str, *, timeout_s: float) -> socket.socket:
    """Return a socket on which the home's runner speaks; VmUnreachable if the home is gone.

    If no runner lives there, the socket ends at once.
    """
    enter = (
        f"{_enter(home)}; [ ! -e {STOPPED} ] || {{ echo; echo remuda-gone; exit 44; }}; {_have()}"
    )
    run = f'exec {PYTHON} {runner_name()} attach --home "$PWD"'
    for _ in range(2):
        channel, release = connections().take(host, timeout_s=timeout_s)
        session = Session(host, channel)
        said = ""
        try:
            with session.limited(timeout_s):
                session.execute(f"{_FIND}; {enter}; echo; echo remuda-attached; {run}")
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
    """Return what goes there, from $HOME if it is relative: where files are put, too."""
    go = f"cd 2>/dev/null; cd -- {shlex.quote(home)} 2>/dev/null"
    return f"unset CDPATH; {go} || {{ echo; echo remuda-gone; exit 44; }}"


def _have() -> str:
    return f"[ -f {runner_name()} ] || {{ echo; echo remuda-no-runner; exit 45; }}"
