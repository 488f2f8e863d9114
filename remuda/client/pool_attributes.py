"""What a pool is set to, as attributes: read from its row, changed here first, then by `commit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from remuda.checks import seconds, shown
from remuda.client import pool_settings
from remuda.errors import BadInput
from remuda.models import profiles, secrets
from remuda.models.pool_fields import UNTIL_SUBMITTED
from remuda.models.pool_life import too_late
from remuda.models.states import PoolState
from remuda.retries import RetryPolicy, retry_of

if TYPE_CHECKING:
    from typing import Self

    from remuda.client.context import Context

T = TypeVar("T")


class Setting(Generic[T]):
    """One setting of a pool.

    Reading gives what was set on this handle, else what holds. Setting checks the value, raises
    BadInput or SetTooLate, and keeps it until `Pool.commit` or `Pool.submit`.
    """

    def __init__(self, column: str, read: Callable[[Any], T], doc: str) -> None:
        """`read`: makes what its users see of what is in the `column`."""
        self.column, self.__doc__ = column, doc
        self._read = read
        self._name = column

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name.lstrip("_")

    @overload
    def __get__(self, pool: None, kind: type) -> Self: ...

    @overload
    def __get__(self, pool: PoolAttributes, kind: type) -> T: ...

    def __get__(self, pool: PoolAttributes | None, kind: type) -> T | Self:
        if pool is None:
            return self
        edits = pool._edits
        return self._read(edits[self.column] if self.column in edits else pool._get(self.column))

    def __set__(self, pool: PoolAttributes, value: Any) -> None:
        [checked] = pool_settings.checked({self._name: value}).values()
        if self.column in UNTIL_SUBMITTED:
            pool._not_submitted(self._name)
        pool._edits[self.column] = checked


def _same(value: Any) -> Any:
    return value


def _words(value: Any) -> list[str] | None:
    return None if value is None else list(value)


def _policy(value: Any) -> RetryPolicy | None:
    return None if value is None else retry_of(value)


def _span(value: Any) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)


class PoolAttributes(ABC):
    """The settings of `remuda.client.Pool`; docs/pools.md tells until when each can be set."""

    # All there is of a pool's handle: a misspelt setting is refused as any unknown attribute.
    __slots__ = ("__weakref__", "_auto_update", "_cache_s", "_context", "_edits", "_read_at", "_row",
                 "id")  # fmt: skip

    id: int
    _auto_update: bool
    _cache_s: float
    _context: Context
    _edits: dict[str, Any]
    _read_at: float
    _row: Mapping[str, Any]

    @abstractmethod
    def _get(self, column: str) -> Any:
        """See Pool."""

    def _not_submitted(self, what: str) -> None:
        """Raise SetTooLate unless `what`, settable until submit, can be set still."""
        if self._get("state") != PoolState.UNSUBMITTED:
            raise too_late(self.name, self._get("state"), [what])

    @property
    def auto_update(self) -> bool:
        """Whether what it tells is read anew when it is old; False: only by `update`."""
        return self._auto_update

    @auto_update.setter
    def auto_update(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise BadInput(f"auto_update must be True or False, not {shown(value)}")
        self._auto_update = value

    @property
    def update_cache_time(self) -> float:
        """How old what it tells may be, in seconds."""
        return self._cache_s

    @update_cache_time.setter
    def update_cache_time(self, value: float) -> None:
        self._cache_s = seconds("update_cache_time", value, most=31_536_000, zero=True)

    name = Setting("name", str, "What it is called; until it is submitted.")
    _shortname: Setting[str | None] = Setting("shortname", _same, "See `shortname`.")
    tags = Setting[list[str]]("tags", list, "Words to find it by.")
    labels = Setting[dict[str, str]]("labels", dict, "Keys and values to find it by.")
    constants = Setting[dict[str, str]]("constants", dict, "The environment of all its jobs.")
    constraints = Setting[dict[str, Any]](
        "constraints",
        dict,
        "What its VMs must be, as of a job: see docs/requirements.md; until it is submitted.",
    )
    settings = Setting[dict[str, Any]](
        "settings", dict, "What its provider was told; until it is submitted."
    )
    offers = Setting[list[dict[str, Any]]](
        "offers", list, "What its VMs may be made from, in order; none: the pool is its only offer."
    )
    slots_per_vm = Setting("slots_per_vm", int, "Slots of each VM; until it is submitted.")
    memory_bytes_per_vm: Setting[int | None] = Setting(
        "memory_bytes_per_vm",
        _same,
        "How much memory the jobs on a VM may ask for together; None: all it has. Until it is"
        " submitted.",
    )
    gpus_per_vm = Setting("gpus_per_vm", int, "GPUs of each VM; until it is submitted.")
    isolation = Setting(
        "isolation", str, "Who may share a VM: shared, owner, sandbox, single_use; until submitted."
    )
    scheduling_type = Setting(
        "scheduling_type",
        str,
        "flex (preempted where others' work needs its place), on_demand, or reserved: for it alone are"
        " the hosts of `reserved_group`; until it is submitted.",
    )
    _reserved_group: Setting[str | None] = Setting("reserved_group", _same, "See `reserved_group`.")
    preparation: Setting[list[str] | None] = Setting(
        "preparation", _words, "What each VM runs before it takes jobs; until it is submitted."
    )
    preparation_timeout_s = Setting(
        "preparation_timeout_s", float, "How long that may take, in seconds; until it is submitted."
    )
    retry: Setting[RetryPolicy | None] = Setting(
        "retry", _policy, "The policy of jobs that bring none: so often each, so often in all."
    )
    instance_count = Setting("instance_count", int, "VMs it has when it is not elastic.")
    is_elastic = Setting("is_elastic", bool, "Whether its size follows the demand.")
    elastic_minimum_slots = Setting("elastic_minimum_slots", int, "Elastic: never fewer slots.")
    elastic_maximum_slots = Setting("elastic_maximum_slots", int, "Elastic: never more slots.")
    elastic_minimum_idle_slots = Setting(
        "elastic_minimum_idle_slots", int, "Elastic: slots kept free beyond the demand."
    )
    elastic_minimum_idle_time_s = Setting(
        "elastic_minimum_idle_time_s", float, "Elastic: a VM idle for so long may go."
    )
    elastic_resize_factor = Setting(
        "elastic_resize_factor", float, "Elastic: it grows by at most this part of the maximum."
    )
    elastic_resize_period_s = Setting(
        "elastic_resize_period_s", float, "Elastic: seconds between two decisions."
    )
    completion_ttl: Setting[timedelta | None] = Setting(
        "completion_ttl_s",
        _span,
        "How long after its end it is deleted; None: never. Set as a timedelta or as d.hh:mm:ss,"
        " until it is submitted.",
    )
    auto_delete = Setting(
        "auto_delete",
        bool,
        "Whether it is deleted, once closed, when its owner may have no more pools; until submitted.",
    )

    _secrets = Setting[dict[str, list[str]]]("secrets", dict, "See `secrets`.")
    wait_for_resources = Setting(
        "wait_for_resources",
        bool,
        "Whether jobs that do not say wait for the newest resources; until it is submitted.",
    )

    @property
    def reserved_group(self) -> str | None:
        """The group of hosts that it, and no other pool, has, if it is reserved; until submitted."""
        return self._reserved_group

    @reserved_group.setter
    def reserved_group(self, value: str | None) -> None:
        self._reserved_group = value

    @property
    def shortname(self) -> str:
        """A DNS label that no other open pool has; its UUID if none was given.

        It can be set until the pool is submitted.
        """
        return self._shortname or str(self._get("uuid"))

    @shortname.setter
    def shortname(self, value: str | None) -> None:
        self._shortname = value

    _profile: Setting[str | None] = Setting("profile", _same, "See `profile`.")

    @property
    def profile(self) -> str | None:
        """The template it was made from.

        Setting sets all that the profile says; until it is submitted. Raises UnknownProfile, and
        BadInput for a profile of another provider, backend or image.
        """
        return self._profile

    @profile.setter
    def profile(self, value: str) -> None:
        self._not_submitted("profile")
        name = pool_settings.checked({"profile": value})["profile"]
        template = self._context.read(lambda c: profiles.find(c, str(name)))
        for what in ("provider", "backend", "image"):
            if template[what] not in (None, self._get(what)):
                raise BadInput(
                    f"profile {name} has the {what} {template[what]}, the pool {self._get(what)}"
                )
        self._edits.update({**template["fields"], "profile": name})

    @property
    def secrets(self) -> dict[str, list[str]]:
        """Which of its owner's secrets the owner's jobs in it are given: {names, prefixes}.

        Setting raises BadInput for names there is no secret of.
        """
        return self._secrets

    @secrets.setter
    def secrets(self, value: Mapping[str, Any]) -> None:
        names = pool_settings.checked({"secrets": value})["secrets"].get("names", ())
        owner = self._get("owner_id")
        self._context.read(lambda c: secrets.check_names(c, owner, names))
        self._secrets = value
