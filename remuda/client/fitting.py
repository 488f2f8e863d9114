"""Whether a pool can ever run a job, and by how much it cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remuda.constraints import Hardware, architecture_of, unmet
from remuda.models.states import NO_BACKEND

if TYPE_CHECKING:
    from remuda.client.context import Context


def never_fits(
    job: Mapping[str, Any],
    pool: Mapping[str, Any],
    *,
    memory_bytes: int | None,
    kinds: Sequence[Hardware] = (),
    here: str | None = None,
) -> str | None:
    """Return which limits of the pool the job can never meet; None if it fits.

    `memory_bytes`: what a VM has when the pool doesn't say. `kinds`: the hardware of the pool's VMs;
    none: none was measured yet, and nothing is held against it but `here`: the architecture of this
    machine, if the VMs are this machine.
    """
    cores, memory, gpus = job["cores"], job["memory_bytes"], job.get("gpus") or 0
    name, slots = pool["name"], pool["slots_per_vm"]
    if pool.get("backend") == NO_BACKEND:
        return f"the VMs of pool {name} run no jobs, they can only be leased (backend {NO_BACKEND})"
    lacks = []
    if cores > slots:
        lacks.append(
            f"it asks for {cores} cores, a VM of pool {name} has {slots} (slots_per_vm),"
            f" {cores - slots} too few"
        )
    limit, told = pool["memory_bytes_per_vm"] or memory_bytes, "memory_bytes_per_vm"
    if limit is None and kinds and all(kind.memory_bytes for kind in kinds):
        limit, told = max(kind.memory_bytes or 0 for kind in kinds), "as measured"
    if memory is not None and limit is not None and memory > limit:
        lacks.append(
            f"it asks for {memory} bytes of memory, a VM of pool {name} has {limit} "
            f"({told}), {memory - limit} too few"
        )
    if pool["is_elastic"]:
        most, which = pool["elastic_maximum_slots"], "maximum_total_slots"
    else:
        most, which = pool["instance_count"] * slots, "instance_count"
    if cores > most and not lacks:
        lacks.append(
            f"it asks for {cores} cores, pool {name} may have at most {most} slots ({which})"
        )
    if gpus:
        most = gpus_of(pool, kinds)
        if gpus > most:
            has = f"has {most}, {gpus - most} too few" if most else "has no GPU"
            wanted = f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"
            lacks.append(f"it asks for {wanted}, a VM of pool {name} {has} (gpus_per_vm)")
    architecture, constraints = job.get("architecture"), job.get("constraints")
    if not kinds and architecture is not None and architecture != (here or architecture):
        lacks.append(f"it asks for the architecture {architecture}, this machine is {here}")
    if kinds and (architecture is not None or constraints):
        of_kinds = [unmet(k, architecture=architecture, constraints=constraints) for k in kinds]
        least = min(of_kinds, key=len)  # those of the machine that comes closest
        lacks += [f"{lack} (the VMs of pool {name})" for lack in least]
    return "; ".join(lacks) or None


def gpus_of(pool: Mapping[str, Any], kinds: Sequence[Hardware]) -> int:
    """Return how many GPUs a VM of the pool can have at most.

    VMs of the local provider are all alike: once one was measured, that holds against what the
    pool says.
    """
    measured = [kind.gpus for kind in kinds]
    if measured and pool.get("provider") == "local":
        return max(measured)
    return max([pool["gpus_per_vm"] or 0, *measured])


def machine_memory(context: Context, pool: Mapping[str, Any]) -> int | None:
    """Return the memory of this machine if the pool's VMs are this machine, else None."""
    if not _is_here(context, pool):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def architecture_here(context: Context, pool: Mapping[str, Any]) -> str | None:
    """Return the architecture of this machine if the pool's VMs are this machine, else None."""
    return architecture_of(os.uname().machine) if _is_here(context, pool) else None


def _is_here(context: Context, pool: Mapping[str, Any]) -> bool:
    return context.settings.embedded and pool["provider"] == "local"
