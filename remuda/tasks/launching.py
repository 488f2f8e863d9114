"""The launch of a VM, step by step: which offer is asked, and what is done about each error."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from remuda.errors import (
    BackendError,
    BadInput,
    IllegalTransition,
    InstanceNotFound,
    ProviderError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.models import images, launches, vm_life
from remuda.models import machines as models
from remuda.models.sizing import note_launch
from remuda.models.states import NO_BACKEND, VmState
from remuda.offers import Offer
from remuda.tasks import contextualizing, logs, messages, pricing
from remuda.tasks.machines import check_vms
from remuda.tasks.providing import alone, vm_pool
from remuda.tasks.runtime import Runtime
from remuda.workers import launching, offers
from remuda.workers.providers.base import VmDescription, VmSpec
from remuda.workers.vmpool import VMPool

log = logging.getLogger(__name__)


def spawn_vm(runtime: Runtime, vm_id: int) -> bool:
    """Make the machine of a NEW VM and bring it to RUNNING; True when it got there.

    Each step is taken up where the last try left it: the provider knows the token, so repeating
    spawns nothing twice. What fails in passing is tried again, within the VM's budget and deadline;
    a VM that is given up is recorded, and its remains terminated.
    """
    with alone("spawn", vm_id) as mine:
        while mine:
            row = runtime.transact(lambda c: _begin(runtime, c, vm_id))
            if isinstance(row, pricing.Unasked):
                pricing.ask(runtime, row)
                continue
            if row is None:
                return False
            try:
                if _launch(runtime, row):
                    return True
            except IllegalTransition as error:
                log.info("VM %d was taken further by somebody else: %s", vm_id, error)
            except (
                ProviderError,
                BackendError,
                BadInput,
                VmUnreachable,
                InstanceNotFound,
            ) as error:
                if _went_wrong(runtime, row, error):
                    continue  # another offer is to be asked
            return False
    return False


def _begin(
    runtime: Runtime, connection: Connection, vm_id: int
) -> Mapping[str, Any] | pricing.Unasked | None:
    """Return the VM's row if its launch may go on now; else note when, or give it up.

    Offers whose price is to be asked for first are returned instead, and nothing has changed.
    """
    standing = launches.lock_launch(connection, vm_id)
    if standing is None or standing.vm["waits"]:
        return None
    if standing.vm["state"] == VmState.NEW:
        asks = pricing.unasked(runtime, standing.pool) if standing.vm["spawn_calls"] == 0 else None
        if asks is not None:
            return asks
        if not _may_ask(connection, standing):
            return None
    launches.begin_try(connection, vm_id)
    return models.vm_with_pool(connection, vm_id)


def _may_ask(connection: Connection, standing: launches.Standing) -> bool:
    """Choose the offer of a NEW VM and record it; False if none may be asked now."""
    vm, pool = standing.vm, standing.pool
    fresh = vm["spawn_calls"] == 0
    if fresh:  # one that was asked for before has passed the gate
        gate = launching.Gate(
            starting=standing.starting,
            max_starting=pool["max_starting"],
            spawn_interval_s=pool["spawn_interval_s"],
            last_spawn_at=pool["last_spawn_at"],
            paused_until=pool["paused_until"],
        )
        until = launching.held_until(gate, standing.now)
        if until is not None:
            delay_s = (until - standing.now).total_seconds()
            launches.hold_vm(connection, vm["id"], delay_s=delay_s)
            return False
    choice = _choice(standing)
    offer = choice.offer if fresh else _same(standing)
    if offer is None:
        _nothing_to_be_had(connection, standing, choice)
        return False
    listed = {row["name"]: row for row in pool["offers"]}
    launches.note_spawn(
        connection,
        standing,
        offer=offer.name,
        provider=offer.provider,
        image=offer.image,
        settings=listed.get(offer.name, {}).get("settings", {}),
        price=offer.price if fresh else standing.vm["price"],
    )
    return True


def _choice(standing: launches.Standing) -> offers.Choice:
    refused = [
        offers.Refusal(row["offer"], row["reason"], row["expires_at"]) for row in standing.refusals
    ]
    images = standing.broken_images
    return offers.choose(
        pricing.offers_of(standing.pool),
        refused,
        standing.now,
        broken_images=images,
        order=standing.pool["offer_order"],
        deadline=standing.deadline,
    )


def _same(standing: launches.Standing) -> Offer | None:
    """Return the offer that was asked before: a token belongs to one."""
    asked = standing.vm["offer"]
    return next(
        (offer for offer in launches.offers_of_pool(standing.pool) if offer.name == asked), None
    )


def _nothing_to_be_had(
    connection: Connection, standing: launches.Standing, choice: offers.Choice
) -> None:
    """Give a VM up for which no offer is left, and have its pool wait, or pause if waiting is vain."""
    reason = "; ".join(choice.passed) or "its offer is not listed any more"
    if choice.at is not None:
        launches.hold_pool(connection, standing.pool["id"], until=choice.at, reason=reason)
    else:
        _pause(connection, standing, reason)
    nothing = standing.vm["spawn_calls"] == standing.vm["empty_calls"]
    _give_up(connection, standing.vm, reason, made_nothing=nothing)


def _pause(connection: Connection, standing: launches.Standing, reason: str) -> None:
    seconds = launching.pause_s(standing.pool["launch_failures"] + 1)
    launches.pause_pool(connection, standing.pool["id"], seconds=seconds, reason=reason)


def _break_image(connection: Connection, image: int, told: str) -> None:
    try:
        images.mark_error(connection, image, told[: images.MOST_BYTES // 4])
    except IllegalTransition:
        log.debug("image %d was in ERROR before", image)


def _launch(runtime: Runtime, row: Mapping[str, Any]) -> bool:
    vm_id = row["id"]
    if row["state"] == VmState.NEW:
        pool = vm_pool(runtime, row)
        _look(row, pool, pool.spawn(_spec(row), str(row["token"])))
    elif row["launch_failures"] or not row["address"]:
        _look(row, vm_pool(runtime, row), row["provider_id"])
    if not contextualizing.contextualize(runtime, vm_id):
        return False
    check_vms(runtime, [vm_id])
    return True


def _look(row: Mapping[str, Any], pool: VMPool, provider_id: str) -> None:
    """Record where the provider says that the VM is; raises if it says that it is gone."""
    found = pool.describe([provider_id]).get(provider_id)
    if found is None or found.state == "stopped":
        if row["state"] == VmState.NEW:
            raise TransientProviderError("the VM was gone as soon as it was made")
        raise InstanceNotFound("the provider says that the VM has ended, before it ever ran")
    _make_sure_of_ips(found)
    found = replace(found, token=str(row["token"]))  # it answered to that name
    if row["state"] == VmState.NEW:
        pool.add_vm(found, intent=row["id"])
        logs.transition("vm", row["id"], "SUBMITTED", provider_id=provider_id)
    else:
        pool.set_place(found, intent=row["id"])
    bare = row["backend"] == NO_BACKEND  # nobody will answer there: its provider's word is all
    if found.state == "pending" and (bare or not found.address):
        raise VmUnreachable("the provider has not made it yet")


def _make_sure_of_ips(found: VmDescription) -> None:
    for ip in (found.private_ip, found.public_ip):
        try:
            if ip:
                vm_life.ip_of("an IP", ip)
        except BadInput:
            told = f"the provider gives {ip!r:.60} for an IP"
            raise TransientProviderError(told) from None


def _spec(row: Mapping[str, Any]) -> VmSpec:
    return VmSpec(
        name=row["name"],
        pool=row["pool"],
        slots=row["slots"],
        memory_bytes=row["memory_bytes"],
        heartbeat_s=row["heartbeat_s"],
        image=row["image"],
        settings=row["settings"],
        offer=row["offer"],
        max_price=row["max_price"],
        reserved_group=row["reserved_group"] or "",
    )


def _went_wrong(runtime: Runtime, row: Mapping[str, Any], error: Exception) -> bool:
    """Do what is to be done about an error; True if the VM is to be tried again at once."""
    told = f"{type(error).__name__}: {error}"

    def work(connection: Connection) -> str:
        standing = launches.lock_launch(connection, row["id"])
        nothing = isinstance(error, ProviderError) and error.made_nothing
        if nothing:  # also of one that is to end by now
            nothing = launches.made_nothing(connection, row)
        if standing is None or standing.vm["token"] != str(row["token"]):
            return "moved"
        verdict = launching.after_error(error, _progress(standing), standing.now)
        if verdict.act == "retry":
            launches.try_again(connection, row["id"], delay_s=verdict.delay_s, error=told)
            return "retry"
        if verdict.act == "next_offer" and _other_offer(connection, standing, row, told):
            return "next_offer"
        if verdict.act in ("pause", "break_image"):
            _pause(connection, standing, told)
        if verdict.act == "break_image":
            _break_image(connection, row["image_id"], told)
        if verdict.act == "fail":
            why = f"{told}; {verdict.why}" if verdict.why else told
            note_launch(connection, row["pool_id"], error=why)
        gone = _give_up(connection, standing.vm, told, made_nothing=nothing)
        return "gone" if gone else "remains"

    became = runtime.transact(work)
    ids = {"vm_id": row["id"], "pool_id": row["pool_id"]}
    if became == "retry":
        log.info("VM %s is tried again: %s", row["name"], told, extra=ids)
    elif became == "next_offer":
        log.warning("VM %s: offer %s has none: %s", row["name"], row["offer"], told, extra=ids)
    elif became != "moved":
        log.error("VM %s failed to launch: %s", row["name"], told, extra=ids)
    if became == "remains":
        messages.terminate_vm([row["id"]])
    return became == "next_offer"


def _progress(standing: launches.Standing) -> launching.Launch:
    return launching.Launch(
        failures=standing.vm["launch_failures"],
        retries=standing.pool["launch_retries"],
        asked_at=standing.vm["asked_at"] or standing.now,
        timeout_s=standing.pool["launch_timeout_s"],
        booting=standing.vm["state"] != VmState.NEW,
    )


def _other_offer(
    connection: Connection, standing: launches.Standing, row: Mapping[str, Any], told: str
) -> bool:
    """Remember that the VM's offer has none; False, the pool told to wait, if no other is left."""
    pool_id = row["pool_id"]
    times = 1 + launches.times_refused(connection, pool_id, row["offer"])
    seconds = offers.refusal_s(times)
    launches.refuse(connection, pool_id, row["offer"], reason=told, times=times, seconds=seconds)
    again = launches.lock_launch(connection, row["id"])
    assert again is not None
    choice = _choice(again)
    if choice.offer is not None:
        launches.next_offer(connection, row["id"])
        return True
    until = choice.at
    if until is not None:
        reason = "; ".join(choice.passed)
        launches.hold_pool(connection, pool_id, until=until, reason=reason)
    return False


def _give_up(
    connection: Connection, vm: Mapping[str, Any], error: str, *, made_nothing: bool
) -> bool:
    """Bring a VM that could not be launched to its end; True if there never was a machine."""
    told = {"error": error[:2000]}
    vm_life.move_vm(connection, vm["id"], VmState.ERROR, allowed=launches.LAUNCHING, fields=told)
    vm_life.move_vm(connection, vm["id"], VmState.STOPPING)
    if made_nothing:
        vm_life.move_vm(connection, vm["id"], VmState.HALTED)
    return made_nothing
