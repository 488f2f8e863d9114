"""A machine without a job: leases that are renewed while they are held."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from remuda.errors import DatabaseUnavailable, NoVmAvailable, Refused
from remuda.models import lease_requests
from remuda.models import leases as models
from remuda.models.lease_requests import Answer, Wanted

if TYPE_CHECKING:
    from remuda.client.context import Context

log = logging.getLogger(__name__)

_POLL_S = 2.0  # a look in case a notification was lost


@dataclass(frozen=True, slots=True)
class LeasedVm:
    """How to reach a leased VM. `details`: all that its provider says; `port` None: no ssh.

    `address` is empty where there is none: what hooks made and only the lease's holder can reach.
    `key_file`: the private key to log in with, on machines that have it, and `host_key` the only
    public key the VM may show; None: as `ssh` has it.
    """

    id: int
    name: str
    address: str
    user: str | None
    port: int | None
    private_ip: str | None
    public_ip: str | None
    details: Mapping[str, Any]
    key_file: str | None = None
    host_key: str | None = None


class Lease:
    """The right to slots of a VM, until `release` or the end of the `with` block.

    It is renewed in the background; when that fails for a whole ttl, or somebody ended it, it is
    `lost`, and its slots may be somebody else's. `token` is the fencing token: who has it holds the
    lease, and it is never given again.
    """

    def __init__(self, context: Context, row: Mapping[str, Any], *, ttl_s: float) -> None:
        """`row`: what `remuda.models.leases.acquire` returned."""
        self.id: int = row["id"]
        self.vm = _vm(row)
        self.slots: int = row["slots"]
        self.token = str(row["token"])
        self.expires_at: datetime = row["expires_at"]
        self.ttl_s = ttl_s
        self.lost = False
        self.held_until = time.monotonic() + ttl_s
        self.renew_at = time.monotonic() + ttl_s / 3
        self._context = context
        self._ended = False
        self._gone = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        context.leases.hold(self)

    def data(self) -> str:
        """Return what `cmd_new` of the `command` provider printed of the VM; "" for other VMs."""
        return self._context.read(lambda c: models.data(c, self.id, self.token))

    def renew(self) -> None:
        """Extend it by its ttl from now; raises StaleHolder when it is over."""
        began = time.monotonic()
        until = self._context.commit(
            lambda c: models.renew(c, self.id, self.token, ttl_s=self.ttl_s)
        )
        self.renewed(until, began=began)

    def release(self) -> bool:
        """Give the slots back; False if it was over already."""
        self.detach()
        return release(self._context, self.id, self.token)

    def detach(self) -> None:
        """Renew it no more, and leave it as it is: it lasts until `expires_at`, unless renewed.

        Whoever has its id and token can do so, or release it.
        """
        self._ended = True
        self._context.leases.drop(self)

    def wait_lost(self, timeout_s: float | None = None) -> bool:
        """Wait until it is lost; False when it was not in time."""
        return self._gone.wait(timeout_s)

    def when_lost(self, callback: Callable[[], object]) -> None:
        """Have `callback` called, by another thread, as soon as it is lost; what it raises is logged."""
        self._callbacks.append(callback)
        if self.lost:
            self._call_back()

    def renewed(self, expires_at: datetime, *, began: float) -> None:
        """Note a renewal."""
        self.expires_at = expires_at
        self.held_until = began + self.ttl_s
        self.renew_at = began + self.ttl_s / 3

    def over(self) -> None:
        """Note that it is over."""
        if self._ended or self.lost:
            return
        self.lost = True
        log.error("lease %d on VM %s is over", self.id, self.vm.name)
        self._gone.set()
        self._call_back()

    def _call_back(self) -> None:
        """Call each once, whoever comes first: that it is lost, or that it is to be told."""
        while self._callbacks:
            with suppress(IndexError):
                callback = self._callbacks.pop(0)
                try:
                    callback()
                except Exception:
                    log.exception("what was to be called when lease %d is lost failed", self.id)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.id} on VM {self.vm.name}>"


def release(context: Context, lease_id: int, token: str) -> bool:
    """End a lease by its token; False if it was over. Who waits for its VM gets it next."""
    # One statement, which a repetition after a lost answer finds done.
    released = context.read(lambda c: models.release(c, lease_id, token))
    if released.over:
        context.commit(lambda c: models.end_vms(c, released.over))
    if released.waited:
        context.commit(lease_requests.serve)
    return released.done


Pause = Callable[[threading.Event, float], object]  # until the event is set, for so many seconds


def acquire(
    context: Context,
    wanted: Wanted,
    *,
    timeout_s: float | None,
    pause: Pause = threading.Event.wait,
) -> Lease:
    """Lease what is wanted; with a time-out wait for it, the pools growing meanwhile.

    What `pause` raises ends the wait, and the request is withdrawn. Raises NoVmAvailable with the
    reason, Refused when it can never be.
    """
    began = time.monotonic()
    token = uuid4()
    row = context.read(
        lambda c: models.acquire(
            c,
            pool_ids=wanted.pool_ids,
            owner=wanted.owner,
            sandbox=wanted.sandbox,
            slots=wanted.slots,
            ttl_s=wanted.ttl_s,
            token=token,
            task_id=wanted.task_id,
            build_id=wanted.build_id,
            labels=wanted.labels,
            holder=wanted.holder,
        )
    )
    if row is not None:
        return Lease(context, row, ttl_s=wanted.ttl_s)
    answer = context.commit(lambda c: lease_requests.request(c, wanted, wait_s=timeout_s))
    if answer.waits is not None:
        answer = _waited(context, answer.waits, pause, deadline=began + (timeout_s or 0.0))
    if answer.lease is not None:
        return Lease(context, answer.lease, ttl_s=wanted.ttl_s)
    if answer.refused:
        raise Refused(f"the lease can never be had: {answer.reason}")
    when = "is free now" if timeout_s is None else f"became free in {timeout_s:g} s"
    raise NoVmAvailable(
        f"no VM of these pools {when}: {answer.reason}",
        hint="give a timeout to wait" if timeout_s is None else "`remuda lease waiting` tells more",
    )


def _waited(context: Context, request_id: int, pause: Pause, *, deadline: float) -> Answer:
    """Return what came of a request by its deadline; it is gone then."""
    event = context.leases.watch(request_id)
    left = deadline - time.monotonic()
    try:
        while left > 0:
            pause(event, min(left, _POLL_S))
            event.clear()
            left = deadline - time.monotonic()
            if left > 0:
                answer = _looked(context, request_id, stay=True)
                if answer is not None and answer.waits is None:
                    return answer
        return context.commit(lambda c: lease_requests.pick_up(c, request_id, stay=False))
    except BaseException:
        _withdraw(context, request_id)
        raise
    finally:
        context.leases.forget(request_id)


def _looked(context: Context, request_id: int, *, stay: bool) -> Answer | None:
    try:
        return context.commit(lambda c: lease_requests.pick_up(c, request_id, stay=stay))
    except DatabaseUnavailable as error:  # it comes back, or the deadline does
        log.warning("a lease is waited for without the database: %s", error)
        context.revive()
        return None


def _withdraw(context: Context, request_id: int) -> None:
    """Give up a request and what it may have been granted."""
    try:
        answer = context.commit(lambda c: lease_requests.pick_up(c, request_id, stay=False))
        if answer.lease is not None:
            release(context, answer.lease["id"], str(answer.lease["token"]))
    except DatabaseUnavailable as error:
        log.warning("a lease request stays until it expires: %s", error)


def _vm(row: Mapping[str, Any]) -> LeasedVm:
    details = row["address"] or {}
    # A VM with nothing but a home is a part of this machine: there is nothing to log in to.
    host = details.get("address") or details.get("host")
    if host is None and "home" not in details:
        host = row["public_ip"] or row["private_ip"]
    return LeasedVm(
        id=row["vm_id"],
        name=row["name"],
        address=host or ("127.0.0.1" if "home" in details else ""),
        user=details.get("user"),
        port=details.get("port", 22 if host else None),
        private_ip=row["private_ip"],
        public_ip=row["public_ip"],
        details=dict(details),
        key_file=details.get("key_file"),
        host_key=details.get("host_key"),
    )
