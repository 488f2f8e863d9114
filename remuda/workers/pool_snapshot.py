"""A pool at one moment, as its size is decided from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from remuda.constraints import Hardware
from remuda.policies import ElasticSettings
from remuda.workers.packing import Demand, Key

__all__ = ["Ceiling", "PoolSnapshot", "VmSlots"]


@dataclass(frozen=True, slots=True)
class VmSlots:
    """A VM that works or will: its state is requested, booting (restarting, too) or running.

    `idle_since` is set while a running one has nothing to do. `key`: whom it is bound to.
    """

    id: int
    state: str
    slots: int
    busy_slots: int
    idle_since: datetime | None
    draining: bool
    free_memory_bytes: int | None = None
    free_gpus: int = 0
    hardware: Hardware | None = None
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A limit of slots over several pools, and how many a pool may have more before it is reached.

    `kept`: from it, for others whose work goes first. `why`: what to say of it instead, if anything.
    """

    name: str
    limit: int
    room: int
    kept: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one moment. VMs that are stopping, stalled or gone are not among `vms`.

    `elastic` None: a static pool of `instance_count` VMs; `policy`: whose it is, "" for the pool's
    own, and `policy_changed` when it was not yet the one of the last decision. `queued_slots`: the
    runnable work that has no slots yet; `demands`: its shapes. `provider_known` False: the provider
    did not answer, or not credibly. `stopped`: why nothing is to be placed or launched, in words.
    `shelf_full`: it pauses because others have the hosts it shares with them. `short_slots`: what it
    could not have of its last step because of others, and may have as soon as there is room.
    """

    pool_id: int
    state: str
    elastic: ElasticSettings | None
    instance_count: int
    slots_per_vm: int
    vms: tuple[VmSlots, ...]
    queued_slots: int
    last_resize_at: datetime | None
    provider_known: bool = True
    launch_failures: int = 0
    paused_until: datetime | None = None
    demands: tuple[Demand, ...] = ()
    isolation: str = "shared"
    memory_bytes_per_vm: int | None = None
    gpus_per_vm: int = 0
    policy: str = ""
    policy_changed: bool = False
    ceiling: Ceiling | None = None
    stopped: str = ""
    shelf_full: bool = False
    short_slots: int = 0
