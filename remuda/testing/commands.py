"""What the jobs of a contract suite do, said once and written down for each kind of VM."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Act", "Commands", "NoopCommands", "ShellCommands"]


@dataclass(frozen=True, kw_only=True)
class Act:
    """What one process does, in this order.

    It ignores SIGTERM if `ignore_term`; prints `stdout`, `stderr`, the variables `print_env` as
    NAME=value, and the numbers from 1 to `lines`; writes files; joins files to new ones; makes some
    executable; sleeps; and ends with an exit code or by a signal.
    """

    stdout: str = ""
    stderr: str = ""
    print_env: Sequence[str] = ()
    lines: int = 0
    write: Mapping[str, str] = field(default_factory=dict)
    join: Mapping[str, Sequence[str]] = field(default_factory=dict)
    executable: Sequence[str] = ()
    sleep_s: float = 0
    exit_code: int = 0
    signal: int | None = None
    ignore_term: bool = False


class Commands(Protocol):
    """How an act is written as a command."""

    def write(self, act: Act) -> tuple[str, ...]:
        """Return the words of a command that does it."""


class ShellCommands:
    """For VMs that have /bin/sh."""

    def write(self, act: Act) -> tuple[str, ...]:
        """Return a short script."""
        quote = shlex.quote
        steps = ["trap '' TERM"] if act.ignore_term else []
        steps += [f"printf %s {quote(act.stdout)}"] if act.stdout else []
        steps += [f"printf %s {quote(act.stderr)} >&2"] if act.stderr else []
        steps += [f'printf "%s\\n" "{name}=${name}"' for name in act.print_env]
        steps += [f"seq {act.lines}"] if act.lines else []
        for name, text in act.write.items():
            steps += [f"mkdir -p {quote(name.rpartition('/')[0])}"] if "/" in name else []
            steps.append(f"printf %s {quote(text)} > {quote(name)}")
        for name, sources in act.join.items():
            steps += [f"mkdir -p {quote(name.rpartition('/')[0])}"] if "/" in name else []
            steps.append(f"cat {shlex.join(sources)} > {quote(name)}")
        steps += [f"chmod +x {quote(name)}" for name in act.executable]
        end = f"kill -{act.signal} $$" if act.signal else f"exit {act.exit_code}"
        if act.sleep_s and end == "exit 0":
            # A signal to all may reach the sleep first: no shell must be left to call that a success.
            end = f"exec sleep {act.sleep_s}"
        elif act.sleep_s:
            steps.append(f"sleep {act.sleep_s}")
        steps.append(end)
        return ("/bin/sh", "-c", "; ".join(steps))


class NoopCommands:
    """For the simulated VMs of the `noop` backend."""

    def write(self, act: Act) -> tuple[str, ...]:
        """Return the script of a simulated job."""
        words = ["noop", *(["--ignore-term"] if act.ignore_term else [])]
        for option, value in (("--stdout", act.stdout), ("--stderr", act.stderr)):
            words += [option, value] if value else []
        for name in act.print_env:
            words += ["--print-env", name]
        words += ["--lines", str(act.lines)] if act.lines else []
        for name, text in act.write.items():
            words += ["--write", f"{name}={text}"]
        for name, sources in act.join.items():
            words += ["--cat", f"{name}={','.join(sources)}"]
        for name in act.executable:
            words += ["--executable", name]
        words += ["--sleep", str(act.sleep_s)] if act.sleep_s else []
        words += ["--signal", str(act.signal)] if act.signal else ["--exit", str(act.exit_code)]
        return tuple(words)
