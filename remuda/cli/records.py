"""Jobs, pools and VMs as the commands show them; the keys of the records are those of `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from remuda.errors import InstanceNotFound, UnknownJob

if TYPE_CHECKING:
    from remuda.client import Client, Job, Lease, Pool, VmInfo

# The record's keys, and the columns they come from where those are called otherwise.
_JOB = {
    "id": "id",
    "name": "name",
    "pool": "pool",
    "owner": "owner",
    "array": "array_id",
    "index": "array_index",
    "state": "state",
    "reason": "reason",
    "exit_code": "exit_code",
    "signal": "signal",
    "message": "message",
    "attempts": "epoch",
    "vm": "vm",
    "cores": "cores",
    "memory_bytes": "memory_bytes",
    "walltime_s": "walltime_s",
    "priority": "priority",
    "gpus": "gpus",
    "architecture": "architecture",
    "constraints": "constraints",
    "sandbox": "sandbox",
    "tags": "tags",
    "max_queue_s": "max_queue_s",
    "submitted_at": "submitted_at",
    "started_at": "started_at",
    "ended_at": "ended_at",
    "wall_s": "wall_s",
    "user_s": "user_s",
    "system_s": "system_s",
    "max_rss_bytes": "max_rss_bytes",
    "peak_memory_bytes": "peak_memory_bytes",
    "io_read_bytes": "io_read_bytes",
    "io_write_bytes": "io_write_bytes",
}
_POOL = (
    "id",
    "uuid",
    "name",
    "shortname",
    "profile",
    "state",
    "owner",
    "provider",
    "backend",
    "image",
    "isolation",
    "tags",
    "labels",
    "constraints",
    "completion_ttl_s",
    "auto_delete",
    "resources_version",
    "secrets",
    "wait_for_resources",
    "slots_per_vm",
    "memory_bytes_per_vm",
    "gpus_per_vm",
    "constants",
    "preparation",
    "preparation_timeout_s",
    "retry",
    "instance_count",
    "policies",
    "policy_name",
    "sizing_group",
    "datacenter",
    "scheduling_type",
    "reserved_group",
    "short_slots",
    "vms",
    "running_vms",
    "slots",
    "busy_slots",
    "waiting_jobs",
    "live_jobs",
    "heartbeat_s",
    "stalling_interval_s",
    "tag_priorities",
    "max_vms_per_owner",
    "reuse_opportunity_s",
    "reuse_max_count",
    "reuse_max_s",
    "architecture",
    "check_interval_s",
    "check_timeout_s",
    "max_check_fails",
    "min_free_disk_bytes",
    "health_command",
    "max_vm_age_s",
    "max_jobs_per_vm",
    "dead_man_s",
    "dead_man_command",
    "reboot_command",
    "rollout_max_unavailable",
    "frozen_at",
    "frozen_reason",
    "offers",
    "offer_order",
    "launch_timeout_s",
    "launch_retries",
    "max_starting",
    "spawn_interval_s",
    "launch_failures",
    "refusals",
    "paused_until",
    "paused_at",
    "message",
    "created_at",
    "updated_at",
    "state_changed_at",
    "previous_state_changed_at",
    "ended_at",
)
_ELASTIC = {
    "minimum_total_slots": "elastic_minimum_slots",
    "maximum_total_slots": "elastic_maximum_slots",
    "minimum_idle_slots": "elastic_minimum_idle_slots",
    "minimum_idle_time_s": "elastic_minimum_idle_time_s",
    "resize_factor": "elastic_resize_factor",
    "resize_period_s": "elastic_resize_period_s",
}


def job_record(job: Job) -> dict[str, Any]:
    """Return what is shown of a job."""
    info = job.info()
    return {key: info.get(column) for key, column in _JOB.items()}


def pool_record(pool: Pool) -> dict[str, Any]:
    """Return what is shown of a pool; `elastic` is None for one of a fixed size."""
    info = pool.info()
    record = {key: info.get(key) for key in _POOL}
    elastic = {key: info.get(column) for key, column in _ELASTIC.items()}
    return {**record, "elastic": elastic if info["is_elastic"] else None}


def vm_record(vm: VmInfo) -> dict[str, Any]:
    """Return what is shown of a VM."""
    return asdict(vm)


def lease_record(lease: Lease) -> dict[str, Any]:
    """Return what is shown of a lease that was just taken, its token with it."""
    vm = asdict(lease.vm)
    return {
        "id": lease.id,
        "token": lease.token,
        "slots": lease.slots,
        "expires_at": lease.expires_at,
        "vm": {**vm, "details": dict(lease.vm.details)},
    }


def pool_size(record: Mapping[str, Any]) -> str:
    """Return how large the pool may be: `0..8 slots`, or `2 VMs`."""
    elastic = record["elastic"]
    if elastic:
        return f"{elastic['minimum_total_slots']}..{elastic['maximum_total_slots']} slots"
    number = record["instance_count"]
    return f"{number} VM" if number == 1 else f"{number} VMs"


def find_jobs(
    client: Client,
    *,
    ids: Sequence[int] = (),
    pool: str | None = None,
    array: int | None = None,
    states: Sequence[str] | None = None,
) -> list[Job]:
    """Return the jobs of these ids, in their order, or all of the pool and array.

    Raises UnknownJob naming the ids there is no job of, and when an array has no job at all.
    """
    if not ids:
        found = client.jobs(pool=pool, array=array, state=states, limit=None)
        if array is not None and not found and not client.jobs(array=array, limit=1):
            raise UnknownJob(f"there is no array {array}", hint="`remuda job list` shows them")
        return found
    by_id = {job.id: job for job in client.jobs(ids=list(ids), limit=None)}
    missing = [job_id for job_id in ids if job_id not in by_id]
    if missing:
        from remuda.cli.output import ranges

        shown = ranges(missing)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise UnknownJob(f"there is no job {shown}", hint="`remuda job list` shows them")
    return [by_id[job_id] for job_id in dict.fromkeys(ids)]


def find_vms(client: Client, wanted: Iterable[str]) -> list[VmInfo]:
    """Return the VMs of these ids or names; each once; raises InstanceNotFound."""
    found: dict[int, VmInfo] = {}
    for text in wanted:
        if text.isascii() and text.isdigit():
            vm = client.vm(int(text))
        else:
            named = [vm for vm in client.vms(all=True) if vm.name == text]
            if not named:
                raise InstanceNotFound(f"there is no VM {text[:100]!r}", hint="`remuda vm list`")
            vm = named[0]
        found[vm.id] = vm
    return list(found.values())
