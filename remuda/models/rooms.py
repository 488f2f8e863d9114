"""What running VMs have to give: each by itself, and the kinds of room there are for one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from remuda.constraints import Hardware, unmet

UNLIMITED = 2**63 - 1  # the memory of a VM that tells no limit

# Of attempts: what will not give back its slots within the horizon, as far as anybody can tell. It is
# known to be long, or it runs for longer than was thought: suspended, say.
TAKES_LONG = """(
    state = 'STARTED' AND (expected_wall_s > :horizon
      OR extract(epoch FROM now() - started_at) > coalesce(expected_wall_s, 0) + :horizon))"""


@dataclass(frozen=True, slots=True)
class VmRoom:
    """What a VM, its row locked, has to give. `backlog_s`: expected core-seconds not started.

    `ahead_slots`, `ahead_memory_bytes`: what is free or soon will be: jobs are placed ahead of that.
    """

    id: int
    pool_id: int
    slots: int
    memory_bytes: int | None
    used_slots: int
    used_memory_bytes: int
    backlog_s: float
    backlog_count: int
    gpus: int
    used_gpus: int
    hardware: Hardware
    isolation: str
    bound_owner_id: int | None
    bound_sandbox: str | None
    ahead_slots: int
    ahead_memory_bytes: int | None
    ends_after_jobs: bool = False  # it has only so many jobs in its life


@dataclass(frozen=True, slots=True)
class Room:
    """What one VM, or several alike, has for one job. `owner_id`, `sandbox`: whom it serves alone.

    `ahead`: in its queue, not in free slots; `whole`: all it has, free or not.
    """

    pool_id: int
    slots: int
    memory_bytes: int
    gpus: int
    ahead: bool
    whole: bool
    owner_id: int | None
    sandbox: str | None
    hardware: Hardware


class Needs(Protocol):
    """What a job asks for, and whose it is."""

    @property
    def cores(self) -> int:
        """Slots."""

    @property
    def memory_bytes(self) -> int:
        """Memory; 0: none asked."""

    @property
    def gpus(self) -> int:
        """GPUs."""

    @property
    def owner_id(self) -> int:
        """Whose it is."""

    @property
    def sandbox(self) -> str:
        """Whom it shares VMs with."""

    @property
    def architecture(self) -> str | None:
        """Of the machine; None: any."""

    @property
    def constraints(self) -> Mapping[str, Any] | None:
        """What the machine must be."""


def fits(needs: Needs, room: Room) -> bool:
    """Return whether a job that needs so much, and is whose, may have this room."""
    return (
        needs.cores <= room.slots
        and needs.memory_bytes <= room.memory_bytes
        and needs.gpus <= room.gpus
        and (
            room.owner_id is None
            or (
                room.owner_id == needs.owner_id
                and (room.sandbox is None or room.sandbox == needs.sandbox)
            )
        )
        and (
            (needs.architecture is None and not needs.constraints)
            or not unmet(
                room.hardware,
                architecture=needs.architecture,
                constraints=needs.constraints,
            )
        )
    )


def rooms_of(vms: Sequence[VmRoom], max_ahead: int, horizon_s: float) -> list[Room]:
    """Return the rooms there are, the largest first: of those alike only that with most memory.

    A queue is one while it holds fewer than `max_ahead` attempts, worth less than `horizon_s` a slot.
    """
    most: dict[tuple[Any, ...], int] = {}
    for vm in vms:
        isolated = vm.isolation != "shared"
        if vm.isolation == "single_use" and vm.bound_owner_id is not None:
            continue
        sandbox = vm.bound_sandbox if vm.isolation == "sandbox" else None
        bound = (vm.bound_owner_id, sandbox) if isolated else (None, None)
        kinds = [
            (vm.slots - vm.used_slots, vm.used_memory_bytes, vm.gpus - vm.used_gpus, False, False),
            (vm.slots, 0, vm.gpus, False, True),
        ]
        is_open = vm.backlog_count < max_ahead and vm.backlog_s < horizon_s * vm.ahead_slots
        if is_open and (not isolated or bound[0] is not None):
            kept = (vm.memory_bytes or 0) - (vm.ahead_memory_bytes or 0)
            kinds.append((vm.ahead_slots, kept, 0, True, False))
        for slots, used, gpus, ahead, whole in kinds:
            memory = UNLIMITED if vm.memory_bytes is None else vm.memory_bytes - used
            if slots > 0 and memory >= 0:
                key = (vm.pool_id, slots, max(0, gpus), ahead, whole, *bound, vm.hardware)
                most[key] = max(memory, most.get(key, 0))
    found = [
        Room(pool, slots, memory, gpus, ahead, whole, owner, sandbox, hardware)
        for (pool, slots, gpus, ahead, whole, owner, sandbox, hardware), memory in most.items()
    ]
    return sorted(found, key=lambda room: room.slots, reverse=True)
