"""What takes a pool its time: to close, to be deleted, to get another image."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from remuda.checks import whole
from remuda.client import footprint, pool_settings, simulating
from remuda.client.pool_attributes import PoolAttributes
from remuda.errors import DatabaseUnavailable, WaitTimeout
from remuda.models import ledger, pool_deletion, retiring, sizing_decisions
from remuda.models.database import WAKE_CHANNEL, Listener

if TYPE_CHECKING:
    from remuda.carbon import CarbonFacts
    from remuda.policies import Policy
    from remuda.traces import Trace

_POLL_S = 1.0
_ENDED = ("CLOSED", "PENDING_DELETE")


class PoolChanges(PoolAttributes):
    """The part of `remuda.client.Pool` that waits."""

    __slots__ = ()

    @property
    @abstractmethod
    def state(self) -> str:
        """See Pool."""

    @abstractmethod
    def update(self) -> Self:
        """See Pool."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """See Pool."""

    @abstractmethod
    def set(self, **fields: Any) -> None:
        """See Pool."""

    def policies(self) -> list[dict[str, Any]]:
        """Return the policies of its size, in order; none: its own size rules. See docs/sizing.md."""
        return list(self.update().info()["policies"])

    def set_policies(self, policies: Sequence[Policy | Mapping[str, Any]]) -> None:
        """Have its size ruled by the first of these that is active; none: by its own size, always.

        At any time; all or none. Raises BadInput naming the wrong key.
        """
        self.set(policies=policies)

    def decisions(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """Return its newest sizing decisions, oldest first, each that differed from the one before."""
        whole("limit", limit, least=1, most=100_000)
        return self._context.read(lambda c: sizing_decisions.listing(c, self.id, limit=limit))

    def simulate(
        self,
        trace: Trace | None = None,
        *,
        since_s: float = 7 * 86_400,
        start: datetime | None = None,
        boot_s: float | None = None,
        price: float | None = None,
        failing_launches: float = 0.0,
        **changes: Any,
    ) -> list[simulating.Simulated]:
        """Play a trace (None: its own jobs of the last `since_s` seconds) against its settings.

        With `changes`, as `set` takes them of its size, also against the changed ones: "present" and
        "changed", for the same time. `start`: when the trace begins, which policies' clocks tell.
        `boot_s`: what a VM takes to start, else as its latest did; `price`: of a VM for an hour,
        else its first offer's. `failing_launches`: the share of VMs that fail to launch, by chance.
        Raises BadInput; nothing is changed.
        """
        row = self.update().info()
        played = trace or simulating.history_trace(self._context, self.id, since_s=since_s)
        given: dict[str, Any] = {
            "boot_s": boot_s,
            "measured_boot_s": simulating.measured_boot_s(self._context, self.id),
            "price": price,
            "failing_launches": failing_launches,
        }
        models = {"present": simulating.model_of(row, changes={}, **given)}
        if changes:
            models["changed"] = simulating.model_of(row, changes=changes, **given)
        return simulating.compare(models, played, start=start)

    def carbon_facts(
        self,
        datacenter: str | None = None,
        *,
        since: datetime | timedelta = footprint.LONG_AGO,
        until: datetime | timedelta = timedelta(0),
    ) -> CarbonFacts:
        """Estimate energy and CO2 of its VMs, compared with the same work in `datacenter`.

        That is the name of a data centre or grid of the table (None: the average one); see
        docs/carbon.md. Raises BadInput.
        """
        return footprint.of_pool(
            self._context,
            self.id,
            here=self.update().info()["datacenter"],
            datacenter=datacenter,
            since=since,
            until=until,
        )

    def wait_closed(self, timeout_s: float | None = None) -> None:
        """Wait until it is closed, all its VMs confirmed gone; raises WaitTimeout."""
        self._wait_for(lambda: self.update().state in _ENDED, timeout_s, "")

    def _wait_for(self, over: Callable[[], bool], timeout_s: float | None, still: str) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        listener: Listener | None = None
        try:
            while True:
                try:
                    listener = listener or Listener(self._context.url, [WAKE_CHANNEL])
                    if over():
                        return
                    left = _POLL_S if deadline is None else deadline - time.monotonic()
                    if left <= 0:
                        raise WaitTimeout(f"pool {self.name} {still or f'is still {self.state}'}")
                    listener.wait(min(left, _POLL_S))
                except DatabaseUnavailable:
                    if listener is not None:
                        listener.close()
                    listener = None
                    if not self._context.revive():
                        raise
        finally:
            if listener is not None:
                listener.close()

    def delete(self, purge_resources: bool = False, *, purge_results: bool = False) -> None:
        """Have it removed; raises Refused while it is open. Returns at once: see `wait_deleted`.

        `purge_resources`: with the resources that are stored for it; `purge_results`: with what
        is stored of its jobs' results. A second call may ask for more to go with it.
        """
        self._context.commit(
            lambda c: pool_deletion.delete_pool(
                c, self.id, purge_results=purge_results, purge_resources=purge_resources
            )
        )
        self._read_at = 0.0

    def wait_deleted(
        self,
        timeout_s: float | None = None,
        *,
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Wait until its provider has confirmed that nothing of it is left; raises WaitTimeout.

        `on_progress` is told what is left: {vms, unowned, reconciled_at}.
        """

        def over() -> bool:
            left = self._context.read(lambda c: ledger.leftovers(c, self.id))
            if on_progress is not None and left["deleted_at"] is None:
                on_progress(left)
            return left["deleted_at"] is not None

        self._wait_for(over, timeout_s, "is not wholly gone yet")

    def update_image(self, image: str, *, max_unavailable: int | None = None) -> None:
        """Have its new VMs made of another image, at any time; raises Refused, BadInput.

        With `max_unavailable` it is a rolling update: VMs of the old image are drained and
        replaced, so that no more than so many are missing at a time. It goes on whoever waits for
        it, and is turned round by another update, to the old image.
        """
        name = pool_settings.image_name(image)
        most = max_unavailable
        if most is not None:
            whole("max_unavailable", most, least=1, most=100_000)
        self._context.commit(
            lambda c: retiring.change_image(c, self.id, name, max_unavailable=most)
        )
        self.update()

    def rollout(self) -> dict[str, Any]:
        """Return how far a rolling update is.

        {under_way, image, current, outdated, running, message}: VMs of the image, of others, and
        running ones of the image; `message`: of the last failed launch.
        """
        return dict(self._context.read(lambda c: retiring.rollout(c, self.id)))

    def wait_updated(
        self,
        timeout_s: float | None = None,
        *,
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Wait until a rolling update is over; raises WaitTimeout. `on_progress`: see `rollout`."""

        def over() -> bool:
            state = self.rollout()
            if on_progress is not None:
                on_progress(state)
            return not state["under_way"]

        self._wait_for(over, timeout_s, "has VMs of another image")

    def confirm_loss(self) -> None:
        """Have the loss of most of its VMs at once, which froze it, believed now.

        Raises Refused if it is not frozen.
        """
        self._context.commit(lambda c: ledger.confirm_loss(c, self.id))
        self.update()
