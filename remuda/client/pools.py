"""A handle on one pool."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from remuda import clouds
from remuda.checks import shown
from remuda.client import pool_settings
from remuda.client.pool_changes import PoolChanges
from remuda.client.pool_facts import PoolFacts
from remuda.client.pool_outputs import PoolOutputs
from remuda.client.pool_resources import PoolResources, stored
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
from remuda.models.pool_fields import UNTIL_SUBMITTED
from remuda.models.states import NO_BACKEND, OPEN_POOL, PoolState
from remuda.offers import offers_for
from remuda.shelves import check_scheduling

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from remuda.client.context import Context

DEFAULT_POOL = "default"
_SHELF = {"scheduling_type", "reserved_group", "settings", "offers"}
# Of providers that are not called like theirs.
_BACKENDS = {"command": "ssh", "ec2": "ssh", "libvirt": "ssh", "openstack": "ssh", "static": "ssh"}


class Pool(PoolChanges, PoolFacts, PoolOutputs, PoolResources):
    """One pool; what it tells is read anew when it is older than `update_cache_time` seconds.

    What is set on it (`pool.tags = [...]`) is kept here until `commit` or `submit`.
    """

    __slots__ = ()

    def __init__(self, context: Context, row: Mapping[str, Any]) -> None:
        """`row`: one of `remuda.models.query.pools`."""
        self.id = row["id"]
        self.auto_update = True  # False: what it tells is read anew only by `update`
        self.update_cache_time = 5.0
        self._context = context
        self._row = row
        self._edits = {}
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

    def info(self) -> dict[str, Any]:
        """Return all that is known of it, with counts of VMs, slots and jobs."""
        self._refresh_if_old()
        return dict(self._row)

    def update(self) -> Pool:
        """Read it anew and return itself; raises UnknownPool when it was removed.

        What was set here and not yet committed stays set.
        """
        found = self._context.read(lambda c: query.pools(c, ids=[self.id]))
        if not found:
            raise UnknownPool(f"pool {self._row['name']} was removed")
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
        """Change settings at once, all or none; raises BadInput, SetTooLate, Refused."""
        checked = self._checked(pool_settings.checked(fields))
        if "resources" in checked:
            self._not_submitted("resources")
            checked["resources"] = stored(self._context.storage, self.uuid, checked["resources"])
        self._change(checked)

    def commit(self) -> None:
        """Change what was set on this handle, all or none.

        Raises as `set` does; then all that was set is still set here, see `discard`.
        """
        self._change(self._checked(self._edits))

    def discard(self) -> None:
        """Forget what was set on this handle since the last `commit`."""
        self._edits.clear()

    def submit(self) -> Pool:
        """Open it for work, with all that was set on this handle; VMs come as they are needed.

        Raises Refused when it has ended, and what `commit` does.
        """
        edits = self._checked(self._edits)

        def work(connection: Connection) -> None:
            pool_life.change_pool(connection, self.id, edits)
            pool_life.submit_pool(connection, self.id)

        self._context.commit(work)
        self._edits.clear()
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
            for column in list(fields):
                self._edits.pop(column, None)
            self.update()

    def _checked(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields if they go together, and with what there is; raises BadInput."""
        pool_settings.check_bounds(fields, self.update().info())
        if "secrets" in fields or "settings" in fields:
            access = fields.get("secrets", self.secrets)
            _check_secrets(access, self._row["backend"], fields.get("settings", self.settings))
        if "settings" in fields or "offers" in fields:
            settings = fields.get("settings", self.settings)
            _check_offers(self.provider, settings, fields.get("offers", self.offers))
        if (late := UNTIL_SUBMITTED & set(fields)) and self._get("state") != PoolState.UNSUBMITTED:
            raise pool_life.too_late(self.name, self._get("state"), sorted(late))
        if _SHELF & set(fields):
            _check_scheduling(self.provider, {**{n: self._get(n) for n in _SHELF}, **fields})
        return dict(fields)

    def _get(self, column: str) -> Any:
        self._refresh_if_old()
        return self._row[column]

    def _refresh_if_old(self) -> None:
        if self.auto_update and time.monotonic() - self._read_at > self.update_cache_time:
            self.update()

    def __repr__(self) -> str:
        return f"<Pool {self._row['name']!r} {self._row['state']}>"


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
    _check_scheduling(provider, fields)
    if kinds["backend"] == NO_BACKEND and fields.get("preparation"):
        raise BadInput(f"VMs without a runner (backend {NO_BACKEND}) cannot run a preparation")
    for offer in fields.get("offers", ()):
        other = offer.get("provider", provider)
        if backend is None and _BACKENDS.get(other, other) != kinds["backend"]:
            raise BadInput(
                f"offer {offer['name']}: VMs of {other} are not reached like those of {provider}",
                hint=f"give it a pool of its own; all of this one's are reached by {kinds['backend']}",
            )
    _check_secrets(fields.get("secrets"), kinds["backend"], fields.get("settings", {}))
    if not installed_elsewhere:
        others = [offer["provider"] for offer in fields.get("offers", ()) if offer.get("provider")]
        pool_settings.installed([provider, *others], kinds["backend"])
    identity = str(uuid.uuid4())
    if "resources" in fields:
        files = stored(context.storage, identity, fields["resources"])
        fields = {**fields, "resources": files}
    made = context.commit(
        lambda c: pool_life.insert_pool(
            c, name, owner=context.owner, fields=fields, uuid=identity, **kinds
        )
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


def _check_scheduling(provider: str, fields: Mapping[str, Any]) -> None:
    """Refuse a scheduling type that does not go with the pool's hosts; raises BadInput."""
    check_scheduling(
        fields.get("scheduling_type", "on_demand"),
        fields.get("reserved_group"),
        provider=provider,
        settings=fields.get("settings", {}),
        offers=fields.get("offers", ()),
    )


def _check_secrets(
    access: Mapping[str, Any] | None, backend: str, settings: Mapping[str, Any]
) -> None:
    """Refuse secrets for jobs of Slurm; raises BadInput."""
    if access and (backend == "slurm" or "slurm" in settings):
        raise BadInput(
            "secrets cannot be given to jobs of Slurm: their environment is in its scripts",
            hint="have the job fetch them itself",
        )


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
