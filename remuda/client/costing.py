"""What the client offers of money and carbon: what things cost, budgets, and footprints."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from remuda.checks import seconds, shown, text_of, whole
from remuda.client import footprint
from remuda.client.context import Context
from remuda.client.history import time_of
from remuda.client.pools import pool_row
from remuda.errors import BadInput
from remuda.models import budgets as budget_models
from remuda.models import costs as cost_models
from remuda.models.database import database_time
from remuda.models.submit import owner_id

if TYPE_CHECKING:
    from remuda.carbon import CarbonTable
    from remuda.client.pools import Pool

_MOST = 1e15


class Costing:
    """The money's part of `remuda.client.Client`; see docs/costs.md."""

    _context: Context

    def costs(
        self,
        by: str = "pool",
        *,
        since: datetime | timedelta = timedelta(days=30),
        until: datetime | timedelta = timedelta(0),
        pool: Pool | str | None = None,
        owner: str | None = None,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Return what each "pool", "owner", "vm", "job" or "attempt" cost, the dearest first.

        In price units, from `since` to `until`: datetimes, or how long ago. Of a pool and a VM all its
        hours count (`cost`), and what of them jobs and leases used; of the others their share of VMs
        while they ran. `unpriced_hours`: of VMs whose price nobody knows, which is counted as 0.
        Raises BadInput, UnknownPool.
        """
        now = self._context.read(database_time)
        start, end = time_of("since", since, now), time_of("until", until, now)
        if not start < end:
            raise BadInput(f"until, {end.isoformat()}, is not after since, {start.isoformat()}")
        kind = text_of("by", by, least=1)
        if kind not in cost_models.KINDS:
            raise BadInput(
                f"there are no costs by {shown(by)}", hint=f"by {', '.join(cost_models.KINDS)}"
            )
        whose = self._owner_id(owner) if owner is not None else None
        pool_id = pool_row(self._context, pool)["id"] if pool is not None else None
        most = whole("limit", limit, least=1, most=1_000_000)
        return self._context.read(
            lambda c: cost_models.costs(
                c, kind, since=start, until=end, pool_id=pool_id, owner_id=whose, limit=most
            )
        )

    def budgets(self) -> list[dict[str, Any]]:
        """Return all budgets: whose (`pool`, `owner`), period, levels, what was spent, the level."""
        return [dict(row) for row in self._context.read(budget_models.listing)]

    def set_budget(
        self,
        *,
        pool: Pool | str | None = None,
        owner: str | None = None,
        period: str = "month",
        warn: float | None = None,
        stop: float | None = None,
    ) -> None:
        """Limit what a pool, an owner or an owner in a pool spends: each "day", "week", "month", "total".

        From `warn` on it is told; from `stop` on nothing more of theirs is placed or launched (of an
        owner in a pool: there), until the next period or a higher budget. What runs goes on. An owner
        may be a group: then its members' spend counts together. Raises BadInput, UnknownPool.
        """
        _one_at_least(pool, owner)
        if text_of("period", period) not in budget_models.PERIODS:
            raise BadInput(
                f"period must be one of {', '.join(budget_models.PERIODS)}, not {shown(period)}"
            )
        if warn is None and stop is None:
            raise BadInput("a budget needs warn or stop")
        levels = {
            name: None if value is None else seconds(name, value, most=_MOST, zero=True)
            for name, value in (("warn", warn), ("stop", stop))
        }
        if warn is not None and stop is not None and warn > stop:
            raise BadInput(f"warn ({warn:g}) is above stop ({stop:g})")
        pool_id = pool_row(self._context, pool)["id"] if pool is not None else None
        name = text_of("owner", owner, least=1, most=200) if owner is not None else None
        self._context.commit(
            lambda c: budget_models.put(
                c,
                pool_id=pool_id,
                owner_id=owner_id(c, name) if name is not None else None,
                period=period,
                **levels,
            )
        )

    def remove_budget(self, *, pool: Pool | str | None = None, owner: str | None = None) -> bool:
        """Take the budget of just that away; what it stopped goes on. False: there was none."""
        _one_at_least(pool, owner)
        pool_id = pool_row(self._context, pool)["id"] if pool is not None else None
        whose = self._owner_id(owner) if owner is not None else None
        return self._context.commit(
            lambda c: budget_models.remove(c, pool_id=pool_id, owner_id=whose)
        )

    def carbon_table(self) -> CarbonTable:
        """Return power, grids and data centres that energy and CO2 are estimated from."""
        return footprint.table(self._context)

    def _owner_id(self, owner: str) -> int:
        name = text_of("owner", owner, least=1, most=200)
        found = self._context.read(lambda c: cost_models.find_owner(c, name))
        if found is None:
            raise BadInput(f"there is no owner {shown(name)}", hint="`remuda owner list` tells all")
        return found


def _one_at_least(pool: Pool | str | None, owner: str | None) -> None:
    if pool is None and owner is None:
        raise BadInput("a budget is of a pool, of an owner, or of an owner in a pool: say whose")
