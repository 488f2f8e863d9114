"""What a user sees of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class UnownedMachine:
    """A machine its provider has and no VM owns, as it was when asked.

    `pool` None: one of some other installation in the same account, which is never touched.
    `unowned_s`: for how long it has been so. `gone_at`: when it was confirmed gone, or owned.
    """

    provider: str
    provider_id: str
    pool: str | None
    tag: str
    token: str
    first_seen_at: datetime
    last_seen_at: datetime
    unowned_s: float
    terminate_calls: int
    error: str | None
    gone_at: datetime | None


@dataclass(frozen=True, slots=True)
class VmInfo:
    """One VM as it was when asked.

    `busy_slots`: of running jobs, `leased_slots`: of leases; `jobs`: all that it has not done with.
    `ready`: it runs and is well; `owner`, `bound_sandbox`: whom alone it serves; `task_id`,
    `build_id`: of its latest lease, while that is held. `transferred_*`: files put into and found in
    sandboxes since its runner began, and all bytes. `outdated`: its image is not its pool's any
    more. `facts`: as measured. `preparation`: how its pool's command went.
    """

    id: int
    name: str
    pool: str
    provider: str
    provider_id: str | None
    state: str
    draining: bool
    slots: int
    busy_slots: int
    leased_slots: int
    running_jobs: int
    jobs: int
    memory_bytes: int | None
    architecture: str | None
    address: Mapping[str, Any]
    private_ip: str | None
    public_ip: str | None
    load: float | None
    heartbeat_at: datetime | None
    heartbeat_age_s: float | None
    error: str | None
    created_at: datetime
    running_at: datetime | None
    halted_at: datetime | None
    image: str = ""
    cores: int | None = None
    uptime_s: float | None = None
    offer: str = ""
    price: float | None = None
    transferred_files: int = 0
    transferred_bytes: int = 0
    ready: bool = False
    owner: str | None = None
    bound_sandbox: str | None = None
    task_id: str | None = None
    build_id: str | None = None
    lease_count: int = 0
    outdated: bool = False
    checked_at: datetime | None = None
    check_failures: int = 0
    check_error: str | None = None
    interruption_at: datetime | None = None
    preempted_for: str | None = None
    reboot: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    preparation: Mapping[str, Any] | None = None


def vm_info(row: Mapping[str, Any]) -> VmInfo:
    """Return the VM of a row of `remuda.models.query.vms`."""
    return VmInfo(**{name: row[name] for name in VmInfo.__slots__})


def unowned_machine(row: Mapping[str, Any]) -> UnownedMachine:
    """Return the machine of a row of `remuda.models.ledger.leaks`."""
    return UnownedMachine(**{name: row[name] for name in UnownedMachine.__slots__})
