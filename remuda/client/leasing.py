"""What the client offers of leases: take them, look at them, end them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from remuda.checks import seconds, shown, text_if, text_of, whole
from remuda.client import leases, pool_settings
from remuda.client.context import Context
from remuda.client.pools import Pool, pool_row
from remuda.constraints import tags_of
from remuda.errors import BadInput, Refused
from remuda.models import lease_requests, pool_life, query
from remuda.models import leases as models
from remuda.models.lease_requests import Wanted
from remuda.models.states import OPEN_POOL, PoolState

MAX_TTL_S = 7 * 86_400
_MAX_LABELS = 50


class Leasing:
    """The leases' part of `remuda.client.Client`."""

    _context: Context

    def acquire(
        self,
        *,
        pools: Sequence[Pool | str] | None = None,
        owner: str | None = None,
        sandbox: str = "",
        slots: int | None = 1,
        ttl_s: float = 900,
        timeout: float | None = None,
        tags: Sequence[str] = (),
        priority: int = 0,
        task_id: str | None = None,
        build_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        pause: leases.Pause = threading.Event.wait,
    ) -> leases.Lease:
        """Lease `slots` of a VM without a job (None: a whole VM), from the first pool that has one.

        `tags`: only pools that have all of them, those first that prefer them most; `pools` None:
        any pool with them. It renews itself until released; without that it ends after `ttl_s`.
        `timeout`: how long to wait, in seconds, the pools growing meanwhile; None: not at all; of
        those who wait higher `priority` comes first, then who came first. `pause` does the waiting:
        for an event, some seconds; what it raises withdraws the request. Raises NoVmAvailable with
        the reason, UnknownPool, Refused when a pool is not open or it can never be had.
        """
        wanted_tags = tags_of(tags)
        rows = _by_tags(self._pools_for_leases(pools, wanted_tags), wanted_tags)
        _check_slots(slots, rows)
        wanted = Wanted(
            pool_ids=tuple(row["id"] for row in rows),
            owner=text_of("owner", owner or self._context.owner, least=1, most=200),
            sandbox=text_of("sandbox", sandbox),
            slots=slots,
            ttl_s=seconds("ttl_s", ttl_s, most=MAX_TTL_S),
            priority=whole("priority", priority, least=-1_000_000, most=1_000_000),
            tags=tuple(wanted_tags),
            task_id=None if task_id is None else text_of("task_id", task_id, least=1),
            build_id=None if build_id is None else text_of("build_id", build_id, least=1),
            labels=_labels(labels or {}),
            holder=f"{socket.gethostname()}:{os.getpid()}",
        )
        wait_s = None if timeout is None else seconds("timeout", timeout, most=MAX_TTL_S, zero=True)
        return leases.acquire(self._context, wanted, timeout_s=wait_s, pause=pause)

    def release_lease(self, lease_id: int, token: str) -> bool:
        """End a lease by its fencing token; False if it was over, or the token is another's."""
        return leases.release(self._context, _lease_id(lease_id), _token(token))

    def renew_lease(self, lease_id: int, token: str, *, ttl_s: float = 900) -> None:
        """Extend a lease nobody renews in the background to `ttl_s` from now.

        Raises StaleHolder when it is over.
        """
        ttl = seconds("ttl_s", ttl_s, most=MAX_TTL_S)
        held, checked = _lease_id(lease_id), _token(token)
        self._context.commit(lambda c: models.renew(c, held, checked, ttl_s=ttl))

    def revoke_lease(self, lease_id: int) -> None:
        """End a lease whoever holds it, who is told at once; its VM goes to others.

        Raises UnknownLease, IllegalTransition when it was over.
        """
        self._context.commit(lambda c: models.revoke(c, _lease_id(lease_id)))
        self._context.commit(lease_requests.serve)

    def leases(
        self,
        *,
        owner: str | None = None,
        pool: Pool | str | None = None,
        task_id: str | None = None,
        build_id: str | None = None,
        all: bool = False,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Return the leases (not those of jobs) that meet every filter; ended ones too if `all`.

        Their tokens are not told: who has one holds the lease.
        """
        pool_id = None if pool is None else pool_row(self._context, pool)["id"]
        whole("limit", limit, least=1, most=2**31)
        whose = text_if("owner", owner)
        task, build = text_if("task_id", task_id), text_if("build_id", build_id)
        return self._context.read(
            lambda c: models.listing(
                c,
                owner=whose,
                pool_id=pool_id,
                task_id=task,
                build_id=build,
                ended=all,
                limit=limit,
            )
        )

    def lease_requests(self) -> list[dict[str, Any]]:
        """Return who waits for a lease, in the order in which they are served, and why."""
        return self._context.read(lease_requests.waiting)

    def pool_info(self, pool: Pool | str) -> dict[str, Any]:
        """Return the keys and values that users keep with a pool."""
        return dict(pool_row(self._context, pool)["info"])

    def write_pool_info(self, pool: Pool | str, **pairs: Any) -> dict[str, Any]:
        """Set keys of a pool's info to values (JSON; None: remove them) and return all of it."""
        row = pool_row(self._context, pool)
        checked = pool_settings.plain_mapping("info", pairs)
        return self._context.commit(lambda c: pool_life.write_info(c, row["id"], checked))

    def _pools_for_leases(
        self, pools: Sequence[Pool | str] | None, tags: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        if pools is None and tags:
            found = self._context.read(query.pools)
            return [row for row in found if row["state"] in (*OPEN_POOL, PoolState.FAILURE)]
        if pools is None or isinstance(pools, (str, Pool)) or not pools:
            raise BadInput("pools must be a list of at least one pool")
        names = [pool for pool in pools if isinstance(pool, str)]
        named = self._context.read(lambda c: lease_requests.pools_named(c, names)) if names else {}
        rows = {
            row["id"]: row
            for row in (
                named[pool] if pool in named else pool_row(self._context, pool) for pool in pools
            )
        }
        for row in rows.values():
            if row["state"] not in (*OPEN_POOL, PoolState.FAILURE):
                raise Refused(f"pool {row['name']} is {row['state']}", hint="submit it first")
        return list(rows.values())


def _by_tags(rows: Sequence[Mapping[str, Any]], tags: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the pools that have all the tags, those to which they are worth most first."""
    if not tags:
        return list(rows)
    able = [row for row in rows if set(tags) <= {*row["tags"], *row["tag_priorities"]}]
    if not able:
        names = ", ".join(row["name"] for row in rows) or "none is open"
        raise Refused(
            f"none of the pools has the tags {', '.join(tags)[:200]}: it would wait in vain",
            hint=f"pools: {names[:200]}",
        )
    return sorted(able, key=lambda row: -sum(row["tag_priorities"].get(tag, 0) for tag in tags))


def _check_slots(slots: int | None, rows: Sequence[Mapping[str, Any]]) -> None:
    if slots is None:
        return
    whole("slots", slots, least=1, most=100_000)
    if all(slots > row["slots_per_vm"] for row in rows):
        raise BadInput(f"no VM of these pools has {slots} slots (slots_per_vm)")


def _labels(labels: Any) -> dict[str, str]:
    if not isinstance(labels, Mapping) or len(labels) > _MAX_LABELS:
        raise BadInput(f"labels must be a mapping of at most {_MAX_LABELS}, not {shown(labels)}")
    return {
        text_of("a label's name", name, least=1): text_of(f"label {shown(name)}", value)
        for name, value in labels.items()
    }


def _lease_id(value: Any) -> int:
    return whole("a lease's id", value, least=1, most=2**63 - 1)


def _token(value: Any) -> str:
    from uuid import UUID

    try:
        return str(UUID(str(value)))
    except ValueError:
        raise BadInput("that is no lease's token") from None
