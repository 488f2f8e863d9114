"""Make room for work that is not flex: VMs of flex pools drain, their jobs are told to end and requeued."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.config import Settings
from remuda.errors import BadInput, Unreachable
from remuda.models import ceilings
from remuda.models import preempting as models
from remuda.shelves import serving, shelf_of
from remuda.tasks import messages, ruling
from remuda.tasks.runtime import Runtime
from remuda.workers.preemption import FlexVm, Wish, preempt

log = logging.getLogger(__name__)
_LATE_S = 10.0  # after the grace what is left ends with its VM


def make_room(runtime: Runtime) -> int:
    """Preempt what others' work needs, and take what is preempted further; return how many VMs."""
    settings = runtime.settings
    marked = runtime.transact(lambda c: _mark(c, settings))
    for vm_id, why in marked.items():
        log.info("VM %d is preempted: %s", vm_id, why, extra={"vm_id": vm_id})
    closed = runtime.transact(models.end_idle)
    messages.terminate_vm(closed)
    for row in runtime.transact(models.still_at_work):
        tell_to_end(runtime, row["vm_id"], row["attempt_ids"], grace_s=settings.preemption_grace_s)
    return len(marked)


def tell_to_end(
    runtime: Runtime, vm_id: int, attempt_ids: Sequence[int], *, grace_s: float
) -> None:
    """Have attempts end: TERM, KILL after the grace. Told again it is no later than at first."""
    channel = runtime.links.present(vm_id)
    try:
        if channel is None:
            raise Unreachable
        channel.send("cancel", a=list(attempt_ids), grace=grace_s)
    except Unreachable:
        messages.cancel_job(vm_id, attempt_ids)


def _mark(connection: Connection, settings: Settings) -> dict[int, str]:
    waiting = models.wishes(connection)
    if not waiting:
        return {}
    ceilings.lock(connection)  # who is sized meanwhile is seen, or waits
    waiting = models.wishes(connection)
    wishes = [wish for row in waiting if (wish := _wish(connection, row)) is not None]
    flex = [FlexVm(**{**row, "host": row["host"] or ""}) for row in models.flex_vms(connection)]
    uses = ruling.uses_of(ceilings.usage(connection))
    most, groups = settings.max_total_slots, settings.group_max_slots
    chosen = preempt(wishes, flex, uses, most=most, of_groups=groups)
    if not chosen:
        return {}
    names = {row["id"]: row["name"] for row in waiting}
    whys = {vm: f"preempted: pool {names[pool]} needs its place" for vm, pool in chosen.items()}
    grace_s = settings.preemption_grace_s + _LATE_S
    return {vm: whys[vm] for vm in models.mark(connection, whys, grace_s=grace_s)}


def _wish(connection: Connection, pool: Mapping[str, Any]) -> Wish | None:
    """Return what a pool waits for; None: a host is free by now, and it asks again."""
    vms = -(-pool["short_slots"] // pool["slots_per_vm"])
    if not pool["for_hosts"]:
        return Wish(pool["id"], vms, pool["slots_per_vm"])
    try:
        listed = shelf_of(pool["provider"], pool["settings"], pool["offers"])
    except BadInput as error:
        log.error("the hosts of pool %s are not known: %s", pool["name"], error)
        return None
    hosts = serving(
        listed,
        slots=pool["slots_per_vm"],
        memory_bytes=pool["memory_bytes_per_vm"],
        group=pool["reserved_group"],
    )
    leaving, free = models.hosts_coming(connection, pool["id"], sorted(hosts))
    if free:
        models.ask_again(connection, pool["id"])
    return Wish(pool["id"], vms, pool["slots_per_vm"], hosts, leaving + free) if hosts else None
