"""Looking around: counts by group, distinct values, images, and what became of VMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, overload

from remuda.checks import shown, text_of, whole
from remuda.client.context import Context
from remuda.client.costing import Costing
from remuda.client.history import History, metric_of, period_of, times_of
from remuda.client.pools import Pool, pool_row
from remuda.errors import BadInput
from remuda.models import images as image_models
from remuda.models import query
from remuda.models.database import database_time
from remuda.models.history import values_of
from remuda.models.selecting import Selection

_MOST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image as it was when asked. `message`: what is wrong with it, if it is in ERROR.

    `vms`: made of it so far, `live_vms`: not gone of these.
    """

    id: int
    provider: str
    name: str
    state: str
    message: str | None
    vms: int
    live_vms: int
    validated_at: datetime | None
    state_changed_at: datetime
    created_at: datetime


class Looking(Costing):
    """The questions' part of `remuda.client.Client`; filters: see docs/queries.md."""

    _context: Context

    @overload
    def count(self, kind: str = ..., *, by: None = ..., **filters: Any) -> int: ...

    @overload
    def count(
        self, kind: str = ..., *, by: str | Sequence[str], **filters: Any
    ) -> list[dict[str, Any]]: ...

    def count(
        self, kind: str = "vms", *, by: str | Sequence[str] | None = None, **filters: Any
    ) -> int | list[dict[str, Any]]:
        """Return how many "vms", "images" or "jobs" meet every filter, HALTED VMs too.

        With `by`, fields: a row for each combination of their values there is, with its `count`.
        Raises BadInput, UnknownPool.
        """
        chosen = self._select(kind, filters)
        if by is None:
            return self._context.read(chosen.count)
        fields = [name.strip() for name in by.split(",")] if isinstance(by, str) else list(by)
        if not fields:
            raise BadInput("`by` names no field", hint=f"fields: {', '.join(chosen.kind.fields)}")
        return self._context.read(lambda c: chosen.count_by(c, fields))

    def values(self, kind: str, field: str, **filters: Any) -> list[Any]:
        """Return the distinct values of a field of "vms", "images" or "jobs", in order."""
        chosen = self._select(kind, filters)
        return self._context.read(lambda c: chosen.distinct(c, field))

    def images(
        self,
        *,
        sort: str | Sequence[str] | None = None,
        start: int = 0,
        limit: int | None = None,
        **filters: Any,
    ) -> list[ImageInfo]:
        """Return the images that meet every filter, such as `state="ERROR"` or `name="debian*"`."""
        chosen = self._select("images", filters)
        found = self._context.read(lambda c: chosen.get(c, sort=sort, start=start, limit=limit))
        return [ImageInfo(**{name: row[name] for name in ImageInfo.__slots__}) for row in found]

    def image(self, image: int | str) -> ImageInfo:
        """Return the image of that id or name; raises NotFound, or if several have the name."""
        number = self._context.read(lambda c: image_models.find_image(c, _key(image)))
        return self.images(id=number)[0]

    def mark_image_error(self, image: int | str, message: str) -> None:
        """Have no VM launched from the image any more; `message` says why.

        Raises NotFound, BadInput, IllegalTransition when it is in ERROR already.
        """
        self._context.commit(
            lambda c: image_models.mark_error(c, image_models.find_image(c, _key(image)), message)
        )

    def reset_image(self, image: int | str) -> None:
        """Bring an image from ERROR back to NEW, to be tried again.

        Raises NotFound, IllegalTransition when it is not in ERROR.
        """
        self._context.commit(
            lambda c: image_models.reset(c, image_models.find_image(c, _key(image)))
        )

    def vm_history(self, vm_id: int, *, newest: int = 1000) -> dict[str, Any]:
        """Return all that is known of a VM: vm, image, events, its `newest` heartbeats.

        Raises InstanceNotFound.
        """
        number = whole("a VM's id", vm_id, least=1, most=_MOST_ID)
        most = whole("newest", newest, least=0, most=10_000_000)
        return self._context.read(lambda c: query.vm_history(c, number, newest=most))

    def history(
        self,
        metric: str = "running_vms",
        *,
        by: str | None = None,
        since: datetime | timedelta = timedelta(hours=1),
        until: datetime | timedelta = timedelta(0),
        bucket_s: int | None = None,
        pool: Pool | str | Sequence[Pool | str] | None = None,
    ) -> History:
        """Return a metric over time, in UTC buckets of whole seconds (None: about a hundred).

        `since`, `until`: datetimes, or how long ago. `by`: what divides it into series, such as
        "pool". The metrics: docs/history.md. Raises BadInput, UnknownPool.
        """
        found = metric_of(metric, by)
        ids = self._pool_ids(pool)
        now = self._context.read(database_time)
        period = period_of(now, since=since, until=until, bucket_s=bucket_s)
        pool_ids = [ids] if isinstance(ids, int) else ids
        series = self._context.read(
            lambda c: values_of(c, metric, period, by=by, pool_ids=pool_ids)
        )
        return History(
            metric, found.unit, found.help, by, period.bucket_s, times_of(period), series
        )

    def _select(self, kind: str, filters: Mapping[str, Any]) -> Selection:
        found = query.KINDS.get(text_of("what is looked for", kind))
        if found is None:
            known = ", ".join(query.KINDS)
            raise BadInput(f"nothing is called {shown(kind)} here", hint=f"known: {known}")
        given = dict(filters)
        ages = {name: given.pop(name, None) for name in ("older_s", "newer_s")}
        if "pool" in given and "pool_id" in found.fields:
            given["pool_id"] = self._pool_ids(given.pop("pool"))
        return Selection(found).where(given).aged(**ages)

    def _pool_row(self, pool: Pool | str) -> Mapping[str, Any]:
        return pool_row(self._context, pool)

    def _pool_id(self, pool: Pool | str | None) -> int | None:
        if pool is None or isinstance(pool, Pool):
            return pool.id if pool is not None else None
        return int(self._pool_row(pool)["id"])

    def _pool_ids(self, pool: Any) -> int | list[int] | None:
        if pool is None or isinstance(pool, (Pool, str)):
            return self._pool_id(pool)
        if not isinstance(pool, (list, tuple, set, frozenset)):
            raise BadInput(f"pool is a pool, its name or a list of these, not {shown(pool)}")
        return [number for one in pool if (number := self._pool_id(one)) is not None]


def _key(image: object) -> int | str:
    if isinstance(image, str):
        return image
    return whole("an image's id", image, least=1, most=_MOST_ID)
