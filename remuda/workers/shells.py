"""A shell, or one command, in a job's sandbox on its VM: here, or by SSH.

The way there is the worker's: the same key, port, user, jump hosts, and only the host key that is
pinned. OpenSSH's client is used where there is one. No secret stands in an argument list.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remuda.errors import BackendError, VmUnreachable
from remuda.hosts import Host, host_of
from remuda.workers import terminals
from remuda.workers.remote import runner_name

__all__ = ["open_machine", "open_shell", "remote_command", "ssh_command"]

CONNECT_S = 10
_PYTHON = ("-I", "-S", "-X", "utf8")
_ALIAS = "remuda-pinned"


def open_shell(
    address: Mapping[str, Any], attempt_id: int, words: Sequence[str] = (), *, terminal: bool
) -> int:
    """Run a shell (or the command `words`) in an attempt's sandbox; return its exit code.

    It has this process's standard input and output; `terminal`: a terminal of its own on the VM.
    Raises BackendError when that VM's backend has no shells, VmUnreachable, AuthError.
    """
    home = address.get("home")
    if not isinstance(home, str):
        raise BackendError("on a VM of this backend no shell can be opened")
    way = {key: value for key, value in address.items() if key != "home"}
    if not way.get("address"):
        return _here(home, attempt_id, words)
    host = host_of({key: way[key] for key in way if key in Host.__dataclass_fields__})
    return _by_ssh(host, remote_command(home, attempt_id, words), terminal=terminal)


def open_machine(address: Mapping[str, Any], words: Sequence[str] = (), *, terminal: bool) -> int:
    """Run a login shell (or the command `words`) on a VM; return its exit code.

    A VM that is a part of this machine has a shell in its home. Standard input, output and errors
    are as of `open_shell`.
    """
    home = str(address.get("home") or "")
    if not address.get("address"):
        if not os.path.isdir(home):
            raise VmUnreachable(f"its VM is not on this machine: there is no {home or 'home'}")
        return _waited(list(words) or [os.environ.get("SHELL") or "/bin/sh"], folder=home)
    host = host_of({key: address[key] for key in address if key in Host.__dataclass_fields__})
    return _by_ssh(host, shlex.join(words), terminal=terminal)


def _by_ssh(host: Host, command: str, *, terminal: bool) -> int:
    program = shutil.which("ssh")
    if program is None:
        return terminals.run(host, command, terminal=terminal, timeout_s=CONNECT_S)
    with _pinned(host) as known_hosts:
        line = ssh_command(host, command, known_hosts=known_hosts, terminal=terminal)
        return _waited([program, *line[1:]])


def remote_command(home: str, attempt_id: int, words: Sequence[str] = ()) -> str:
    """Return what the host's login shell is to run."""
    script = (
        f"cd -- {shlex.quote(home)} 2>/dev/null || "
        f"{{ echo 'the VM is gone: it has no '{shlex.quote(home)} >&2; exit 1; }}; "
        f"p={runner_name()}; [ -f $p ] || for p in runner-*.pyz; do :; done; "
        f'exec python3 {shlex.join(_PYTHON)} "$p" '
        f"{shlex.join(_arguments(home, attempt_id, words))}"
    )
    return f"exec /bin/sh -c {shlex.quote(script)}"


def ssh_command(host: Host, command: str, *, known_hosts: str, terminal: bool) -> list[str]:
    """Return the words that run a command (empty: a login shell) on a host by OpenSSH's client.

    `known_hosts`: a file with the host's pinned key under an alias; empty: as the host says.
    """
    line = ["ssh", "-tt" if terminal else "-T", *_options(host, known_hosts)]
    if known_hosts:
        line += ["-o", "GlobalKnownHostsFile=/dev/null", "-o", f"HostKeyAlias={_ALIAS}"]
    if not terminal:
        line += ["-o", "BatchMode=yes"]
    if host.port:
        line += ["-p", str(host.port)]
    if host.user:
        line += ["-l", host.user]
    hops = [hop.strip() for hop in host.jump.split(",") if hop.strip()]
    if hops:
        line += ["-o", f"ProxyCommand={_through(host, hops)}"]
    return [*line, "--", host.address, *([command] if command else [])]


def _options(host: Host, known_hosts: str) -> list[str]:
    line = ["-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no"]
    line += ["-o", "ControlPath=none", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "LogLevel=ERROR"]
    file = known_hosts or (host.known_hosts and str(Path(host.known_hosts).expanduser()))
    if file:
        line += ["-o", f'UserKnownHostsFile="{_percent(file)}"']
    if host.key_file:
        key_file = str(Path(host.key_file).expanduser())
        line += ["-o", "IdentitiesOnly=yes", "-i", _percent(key_file)]
    return line


def _through(host: Host, hops: Sequence[str]) -> str:
    """Return the ProxyCommand that goes through the hops, the last one next to the host."""
    *before, hop = hops
    place, user, port = hop.removeprefix("ssh://").rstrip("/"), "", ""
    if "@" in place:
        user, _, place = place.rpartition("@")
    name, colon, digits = place.rpartition(":")
    if colon and digits.isdigit() and (":" not in name or name.endswith("]")):
        place, port = name, digits
    line = ["ssh", *_options(host, "")]
    line += ["-p", port] if port else []
    line += ["-l", user] if user else []
    line += ["-o", f"ProxyCommand={_through(host, before)}"] if before else []
    return (
        f"{_percent(shlex.join(line))} -W '[%h]:%p' -- {_percent(shlex.quote(place.strip('[]')))}"
    )


def _percent(text: str) -> str:
    """Keep ssh from taking anything in a text for one of its tokens."""
    return text.replace("%", "%%")


@contextlib.contextmanager
def _pinned(host: Host) -> Iterator[str]:
    """Give a file with the pinned key, if there is one, else an empty name."""
    if not host.host_key:
        yield ""
        return
    with tempfile.NamedTemporaryFile("w", prefix="remuda-known-") as file:
        file.write(f"{_ALIAS} {' '.join(host.host_key.split()[:2])}\n")
        file.flush()
        yield file.name


def _arguments(home: str, attempt_id: int, words: Sequence[str]) -> list[str]:
    line = ["shell", "--home", home, "--attempt", str(attempt_id)]
    return [*line, "--words", json.dumps(list(words))] if words else line


def _here(home: str, attempt_id: int, words: Sequence[str]) -> int:
    program = Path(home) / "runner.pyz"
    if not program.is_file():
        raise VmUnreachable(f"its VM is not on this machine: there is no {home}")
    python = sys.executable or "python3"
    return _waited([python, *_PYTHON, str(program), *_arguments(home, attempt_id, words)])


def _waited(line: Sequence[str], *, folder: str | None = None) -> int:
    """Run a program on our terminal (in a folder); return its exit code, 128 + N for a signal."""
    sys.stdout.flush()
    # Ctrl-C is for the program alone; a handler, unlike SIG_IGN, is not inherited by it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(line, check=False, env=dict(os.environ), cwd=folder).returncode
    except OSError as error:
        raise BackendError(f"cannot run {line[0]}: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
