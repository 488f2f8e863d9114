"""A machine without a job: leases that renew themselves while they are held."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from remuda.errors import DatabaseUnavailable, NoVmAvailable, RemudaError, StaleHolder
from remuda.models import leases as models
from remuda.models import requests
from remuda.models.database import WAKE_CHANNEL, Listener
from remuda.models.submit import owner_id

if TYPE_CHECKING:
    from remuda.client.context import Context

log = logging.getLogger(__name__)

_POLL_S = 0.5
_REQUEST_TTL_S = 60.0
_TRIES = 5  # a dispatcher may hold a VM's row for the moment


@dataclass(frozen=True, slots=True)
class LeasedVm:
    """How to reach a leased VM. `details`: all that its provider says; `port` None: no ssh."""

    id: int
    name: str
    address: str
    user: str | None
    port: int | None
    private_ip: str | None
    public_ip: str | None
    details: Mapping[str, Any]


class Lease:
    """The right to slots of a VM, until `release` or the end of the `with` block.

    It is renewed in the background; when that fails for a whole ttl (or somebody ended it) it is
    `lost`, and its slots may be somebody else's.
    """

    def __init__(self, context: Context, row: Mapping[str, Any], *, ttl_s: float) -> None:
        """`row`: what `remuda.models.leases.acquire` returned."""
        self.id: int = row["id"]
        self.vm = _vm(row)
        self.expires_at: datetime = row["expires_at"]
        self.lost = False
        self._context = context
        self._token = row["token"]
        self._ttl_s = ttl_s
        self._held_until = time.monotonic() + ttl_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="remuda-lease", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Extend it by its ttl from now; raises StaleHolder when it is over."""
        began = time.monotonic()
        self._context.commit(lambda c: models.renew(c, self.id, self._token, ttl_s=self._ttl_s))
        self._held_until = began + self._ttl_s

    def release(self) -> bool:
        """Give the slots back; False if it was over already."""
        self._over.set()
        released = self._context.commit(lambda c: models.release(c, self.id, self._token))
        return bool(released)

    def _keep(self) -> None:
        pause = self._ttl_s / 3
        while not self._over.wait(pause):
            try:
                self.renew()
                pause = self._ttl_s / 3
            except StaleHolder:
                if not self._over.is_set():
                    self.lost = True
                    log.error("lease %d on VM %s is over", self.id, self.vm.name)
                return
            except RemudaError as error:
                left = self._held_until - time.monotonic()
                log.warning("lease %d cannot be renewed, %.0f s left: %s", self.id, left, error)
                if left <= 0:
                    self.lost = True
                pause = max(0.1, self._ttl_s / 30)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.id} on VM {self.vm.name}>"


def acquire(
    context: Context,
    *,
    pool_ids: Sequence[int],
    owner: str,
    sandbox: str,
    slots: int,
    ttl_s: float,
    timeout_s: float | None,
) -> Lease:
    """Lease slots of a free VM of the pools, in their order.

    With a time-out the pools grow for it meanwhile. Raises NoVmAvailable.
    """

    def attempt() -> Lease | None:
        row = context.commit(work)
        return Lease(context, row, ttl_s=ttl_s) if row is not None else None

    def work(connection: Connection) -> dict[str, Any] | None:
        return models.acquire(
            connection,
            pool_ids=pool_ids,
            owner=owner_id(connection, owner),
            sandbox=sandbox,
            slots=slots,
            ttl_s=ttl_s,
        )

    if timeout_s is None:
        for again in range(_TRIES):
            if (lease := attempt()) is not None:
                return lease
            time.sleep(0.005 * 2**again)
        raise NoVmAvailable("no VM of these pools is free now", hint="give a timeout to wait")
    deadline = time.monotonic() + timeout_s
    if (lease := attempt()) is not None:
        return lease
    with _Demand(context, pool_ids, slots=slots, timeout_s=timeout_s) as demand:
        while True:
            if (lease := attempt()) is not None:
                return lease
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoVmAvailable(f"no VM of these pools became free in {timeout_s:g} s")
            demand.wait(min(left, _POLL_S))


class _Demand:
    """Lets the pools know that somebody waits, and hears when something changed."""

    def __init__(
        self, context: Context, pool_ids: Sequence[int], *, slots: int, timeout_s: float
    ) -> None:
        self._context = context
        self._pool_ids = pool_ids
        self._slots = slots
        self._ttl_s = min(_REQUEST_TTL_S, max(5.0, timeout_s))
        self._ids: list[int] = []
        self._renew_at = 0.0
        self._listener: Listener | None = None

    def __enter__(self) -> _Demand:
        self._listen()
        self._ids = self._context.commit(
            lambda c: requests.request_lease(
                c, self._pool_ids, slots=self._slots, ttl_s=self._ttl_s
            )
        )
        self._renew_at = time.monotonic() + self._ttl_s / 3
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        try:
            self._context.commit(lambda c: requests.withdraw_requests(c, self._ids))
        except DatabaseUnavailable as error:
            log.warning("a lease request stays until it expires: %s", error)

    def wait(self, timeout_s: float) -> None:
        """Return when something changed, or after `timeout_s`."""
        if time.monotonic() >= self._renew_at:
            self._context.commit(lambda c: requests.renew_requests(c, self._ids, ttl_s=self._ttl_s))
            self._renew_at = time.monotonic() + self._ttl_s / 3
            self._context.revive()
        if self._listener is None:
            time.sleep(min(timeout_s, 0.2))
            self._listen()
            return
        try:
            self._listener.wait(timeout_s)
        except DatabaseUnavailable:
            self._listener.close()
            self._listener = None

    def _listen(self) -> None:
        try:
            self._listener = Listener(self._context.url, [WAKE_CHANNEL])
        except DatabaseUnavailable:
            self._context.revive()


def _vm(row: Mapping[str, Any]) -> LeasedVm:
    details = row["address"] or {}
    # A VM with nothing but a home is a part of this machine: there is nothing to log in to.
    host = details.get("host")
    if host is None and "home" not in details:
        host = row["public_ip"] or row["private_ip"]
    return LeasedVm(
        id=row["vm_id"],
        name=row["name"],
        address=host or "127.0.0.1",
        user=details.get("user"),
        port=details.get("port", 22 if host else None),
        private_ip=row["private_ip"],
        public_ip=row["public_ip"],
        details=dict(details),
    )
