"""A handle on one pool."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from remuda import clouds
from remuda.checks import shown
from remuda.client import pool_settings
from remuda.client.pool_changes import PoolChanges
from remuda.client.pool_words import explain_pool
from remuda.errors import (
    AlreadyExists,
    BadInput,
    UnknownPool,
)
from remuda.guests import guests_of
from remuda.hooks import hooks_of
from remuda.hosts import hosts_of, slurm_of
from remuda.models import launches, pool_life, query
from remuda.models.states import NO_BACKEND, OPEN_POOL, PoolState
from remuda.offers import offers_for

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from remuda.client.context import Context

DEFAULT_POOL = "default"
_POLL_S = 1.0
_ENDED = ("CLOSED", "PENDING_DELETE")
# Of providers that are not called like theirs.
_BACKENDS = {"command": "ssh", "ec2": "ssh", "libvirt": "ssh", "openstack": "ssh", "static": "ssh"}


class Pool(PoolChanges):
    """One pool; what it tells is read anew when it is older than `update_cache_time` seconds."""

    def __init__(self, context: Context, row: Mapping[str, Any]) -> None:
        """`row`: one of `remuda.models.query.pools`."""
        self.id: int = row["id"]
        self.name: str = row["name"]
        self.update_cache_time = 5.0
        self._context = context
        self._row = row
        self._read_at = time.monotonic()

    @property
    def uuid(self) -> str:
        """Its identity for the whole world."""
        return str(self._row["uuid"])

    @property
    def state(self) -> str:
        """UNSUBMITTED, SUBMITTED, PARTIALLY_DISPATCHED, FULLY_EXECUTING, CLOSING and so on."""
        return str(self._get("state"))

    @property
    def provider(self) -> str:
        """What makes its VMs."""
        return str(self._row["provider"])

    @property
    def slots_per_vm(self) -> int:
        """How many slots each VM has."""
        return int(self._get("slots_per_vm"))

    @property
    def memory_bytes_per_vm(self) -> int | None:
        """How much memory the jobs on a VM may ask for together; None: all it has."""
        return self._get("memory_bytes_per_vm")  # type: ignore[no-any-return]

    @property
    def gpus_per_vm(self) -> int:
        """How many GPUs each VM has."""
        return int(self._get("gpus_per_vm"))

    @property
    def isolation(self) -> str:
        """Who may share a VM: shared, owner, sandbox or single_use."""
        return str(self._get("isolation"))

    @property
    def constants(self) -> dict[str, str]:
        """The environment of all its jobs."""
        return dict(self._get("constants"))

    @property
    def is_elastic(self) -> bool:
        """Whether its size follows the demand."""
        return bool(self._get("is_elastic"))

    @property
    def instance_count(self) -> int:
        """How many VMs it has when it is not elastic."""
        return int(self._get("instance_count"))

    @property
    def tags(self) -> list[str]:
        """Words to find it by."""
        return list(self._get("tags"))

    @property
    def settings(self) -> dict[str, Any]:
        """What its provider was told."""
        return dict(self._get("settings"))

    @property
    def offers(self) -> list[dict[str, Any]]:
        """What its VMs may be made from, in order; none: the pool itself is its only offer."""
        return list(self._get("offers"))

    @property
    def message(self) -> str | None:
        """What went wrong last, if launches fail."""
        return self._get("message")  # type: ignore[no-any-return]

    @property
    def created_at(self) -> datetime:
        """When it was made."""
        return self._row["created_at"]  # type: ignore[no-any-return]

    @property
    def ended_at(self) -> datetime | None:
        """When it was closed."""
        return self._get("ended_at")  # type: ignore[no-any-return]

    @property
    def running_core_count(self) -> int:
        """How many slots its jobs use now."""
        return int(self._get("busy_slots"))

    @property
    def running_instance_count(self) -> int:
        """How many VMs it has, from the wish to have one to its confirmed end."""
        return int(self._get("vms"))

    @property
    def queued_or_running_task_instances_count(self) -> int:
        """How many of its jobs have not ended."""
        return int(self._get("waiting_jobs")) + int(self._get("live_jobs"))

    def info(self) -> dict[str, Any]:
        """Return all that is known of it, with counts of VMs, slots and jobs."""
        self._refresh_if_old()
        return dict(self._row)

    def update(self) -> Pool:
        """Read it anew and return itself; raises UnknownPool when it was removed."""
        found = self._context.read(lambda c: query.pools(c, ids=[self.id]))
        if not found:
            raise UnknownPool(f"pool {self.name} was removed")
        self._row, self._read_at = found[0], time.monotonic()
        return self

    def setup_elastic(
        self,
        minimum_total_slots: int = 0,
        maximum_total_slots: int = 1,
        minimum_idle_slots: int = 0,
        minimum_idle_time_seconds: float = 0,
        resize_factor: float = 1.0,
        resize_period: float = 90,
    ) -> None:
        """Let its size follow the demand, between the two totals, in slots; at any time.

        `minimum_idle_slots` are kept free beyond the demand; a VM goes when it was idle for
        `minimum_idle_time_seconds`. Every `resize_period` seconds it grows by at most
        `resize_factor` of the maximum. Raises BadInput.
        """
        fields = pool_settings.elastic(
            minimum_total_slots=minimum_total_slots,
            maximum_total_slots=maximum_total_slots,
            minimum_idle_slots=minimum_idle_slots,
            minimum_idle_time_seconds=minimum_idle_time_seconds,
            resize_factor=resize_factor,
            resize_period=resize_period,
        )
        self._change(fields)

    def set(self, **fields: Any) -> None:
        """Change settings, all or none; raises BadInput for wrong ones, Refused for late ones."""
        checked = pool_settings.checked(fields)
        pool_settings.check_bounds(checked, self.update().info())
        if "settings" in checked or "offers" in checked:
            settings = checked.get("settings", self.settings)
            _check_offers(self.provider, settings, checked.get("offers", self.offers))
        self._change(checked)

    def submit(self) -> Pool:
        """Open it for work; VMs come as they are needed. Raises Refused when it has ended."""
        self._context.commit(lambda c: pool_life.submit_pool(c, self.id))
        return self.update()

    def resume(self) -> None:
        """Let it ask for VMs again at once, whatever failed or was refused; raises Refused if over."""
        self._context.commit(lambda c: launches.resume_pool(c, self.id))
        self._read_at = 0.0

    def close(self, *, now: bool = False) -> None:
        """Begin to end it: waiting jobs are cancelled, running ones end first, or not if `now`.

        Its VMs are terminated when their jobs are done. Returns at once; a second call is harmless.
        """
        self._context.commit(lambda c: pool_life.close_pool(c, self.id, now=now))
        self._read_at = 0.0

    def explain(self) -> list[str]:
        """Tell why it has the size it has, what it waits for, and what it does next and when."""
        return explain_pool(self.update().info())

    def _change(self, fields: Mapping[str, Any]) -> None:
        if fields:
            self._context.commit(lambda c: pool_life.change_pool(c, self.id, fields))
            self.update()

    def _get(self, column: str) -> Any:
        self._refresh_if_old()
        return self._row[column]

    def _refresh_if_old(self) -> None:
        if time.monotonic() - self._read_at > self.update_cache_time:
            self.update()

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} {self._row['state']}>"


Pools: TypeAlias = Pool | str | Sequence[Pool | str]  # several: in order of preference


def create(
    context: Context,
    name: str,
    *,
    provider: str,
    backend: str | None,
    image: str,
    fields: Mapping[str, Any],
    installed_elsewhere: bool = False,
) -> Pool:
    """Insert a pool with checked `fields` and return it; raises BadInput, AlreadyExists."""
    pool_settings.pool_name(name)
    pool_settings.check_bounds(fields, pool_settings.NO_BOUNDS)
    _check_offers(provider, fields.get("settings", {}), fields.get("offers", ()))
    kinds = {
        "provider": pool_settings.kind("provider", provider),
        "backend": pool_settings.kind("backend", backend or _BACKENDS.get(provider, provider)),
        "image": pool_settings.image_name(image),
    }
    if kinds["backend"] == NO_BACKEND and fields.get("preparation"):
        raise BadInput(f"VMs without a runner (backend {NO_BACKEND}) cannot run a preparation")
    for offer in fields.get("offers", ()):
        other = offer.get("provider", provider)
        if backend is None and _BACKENDS.get(other, other) != kinds["backend"]:
            raise BadInput(
                f"offer {offer['name']}: VMs of {other} are not reached like those of {provider}",
                hint=f"give it a pool of its own; all of this one's are reached by {kinds['backend']}",
            )
    if not installed_elsewhere:
        others = [offer["provider"] for offer in fields.get("offers", ()) if offer.get("provider")]
        pool_settings.installed([provider, *others], kinds["backend"])
    made = context.commit(
        lambda c: pool_life.insert_pool(c, name, owner=context.owner, fields=fields, **kinds)
    )
    return Pool(context, context.read(lambda c: query.pools(c, ids=[made]))[0])


def default_pool(context: Context) -> Mapping[str, Any]:
    """Return the row of the pool `default`; made, as big as this machine, when there is none."""
    try:
        row = pool_row(context, DEFAULT_POOL)
        if row["state"] in (*OPEN_POOL, PoolState.FAILURE):
            return row
    except UnknownPool:
        pass
    cores = os.cpu_count() or 1
    fields = {
        "slots_per_vm": cores,
        "heartbeat_s": 2.0,
        "stalling_interval_s": 15.0,
        **pool_settings.elastic(
            minimum_total_slots=0,
            maximum_total_slots=cores,
            minimum_idle_slots=0,
            minimum_idle_time_seconds=60,
            resize_factor=1.0,
            resize_period=1,
        ),
    }
    try:
        made = create(
            context, DEFAULT_POOL, provider="local", backend=None, image="default", fields=fields
        )
    except AlreadyExists:  # somebody was quicker, or it is there and closing
        made = Pool(context, context.read(lambda c: query.pools(c, ids=[_id_of_default(c)]))[0])
    return made.submit().info() if made.state == PoolState.UNSUBMITTED else made.info()


def pool_row(context: Context, pool: Pool | str) -> Mapping[str, Any]:
    """Return the bare row of a pool given by name or handle; raises UnknownPool, BadInput."""
    if isinstance(pool, Pool):
        return context.read(lambda c: query.pool_row(c, pool.id))
    if not isinstance(pool, str):
        raise BadInput(f"a pool is given by its name or as a Pool, not {shown(pool)}")
    return context.read(lambda c: pool_life.find_pool(c, pool))


def pool_rows(context: Context, pool: Pools | None) -> list[Mapping[str, Any]]:
    """Return the rows of a pool or of several, in order, each once; of none: the default's."""
    if pool is None:
        return [default_pool(context)]
    if isinstance(pool, (str, Pool)) or not isinstance(pool, Iterable):
        return [pool_row(context, pool)]
    found = {row["id"]: row for row in (pool_row(context, one) for one in pool)}
    if not found:
        raise BadInput("the list of pools is empty", hint="None is the pool `default`")
    return list(found.values())


def _check_offers(
    provider: str, settings: Mapping[str, Any], offers: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse settings that are wrong as each offer has them; raises BadInput naming the offer."""
    for offer in offers_for(offers, provider=provider, image="default", settings=settings):
        try:
            _check_settings(offer.provider, offer.settings)
        except BadInput as error:
            if not offer.name:
                raise
            raise BadInput(f"offer {offer.name}: {error.message}", hint=error.hint) from None


def _check_settings(provider: str, settings: Mapping[str, Any]) -> None:
    """Refuse what is wrong with the settings of a provider of Remuda's own; raises BadInput."""
    if provider == "static":
        hosts_of(settings)
    elif provider == "local":
        slurm_of(settings)
    elif provider == "command":
        hooks_of(settings)
    elif provider == "libvirt":
        guests_of(settings)
    elif provider in clouds.CHECKS:
        clouds.CHECKS[provider](settings)


def _id_of_default(connection: Connection) -> int:
    return int(pool_life.find_pool(connection, DEFAULT_POOL)["id"])
