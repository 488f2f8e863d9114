"""Whether a VM is well, and what becomes of one that is not. Pure; the checks are in tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAIL = 300  # bytes of a health command's output that an error tells


def problem(
    status: Mapping[str, Any],
    *,
    min_free_disk_bytes: int = 0,
    command: Mapping[str, Any] | None = None,
) -> str | None:
    """Return what is wrong with a VM that answered; None if it is well.

    `status`: of its runner; `command`: how the pool's health command ended there.
    """
    free = int(status["disk_free"])
    if free < min_free_disk_bytes:
        return f"{free} bytes of disk are free, at least {min_free_disk_bytes} must be"
    if command is None or (command.get("st") == 0 and not command.get("timed_out")):
        return None
    if command.get("timed_out"):
        how = "took too long"
    elif command.get("sig"):
        how = f"was ended by signal {command['sig']}"
    else:
        how = f"ended with exit code {command.get('st')}"
    lines = str(command.get("out") or "").replace("\0", "").strip().splitlines()
    said = f": {lines[-1][:TAIL]}" if lines else ""
    return f"the health command {how}{said}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A VM of a pool that failed more checks in a row than it may; `busy`: it has work."""

    id: int
    failures: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Condemned:
    """What to do: idle VMs to terminate, busy ones to drain; the others are `spared` for now."""

    terminate: tuple[int, ...] = ()
    drain: tuple[int, ...] = ()
    spared: int = 0


def condemn(unfit: Sequence[Checked], *, running: int, draining: int) -> Condemned:
    """Return which unfit VMs of a pool go now, given how many run and how many drain already.

    At most half of those that run, and at least one, are away at a time: a check that is itself
    wrong must not empty the pool. Those that failed most often go first.
    """
    room = max(1, running // 2) - draining
    ordered = sorted(unfit, key=lambda vm: (-vm.failures, vm.busy, vm.id))
    going = ordered[: max(0, room)]
    return Condemned(
        terminate=tuple(vm.id for vm in going if not vm.busy),
        drain=tuple(vm.id for vm in going if vm.busy),
        spared=len(ordered) - len(going),
    )
