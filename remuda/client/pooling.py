"""What the client offers of pools: to make them, and to find them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remuda.client import pool_settings
from remuda.client.looking import Looking
from remuda.client.pools import Pool, create
from remuda.client.profiles import checked_name
from remuda.constraints import tags_of
from remuda.models import profiles, query

if TYPE_CHECKING:
    from remuda.offers import Offer
    from remuda.retries import RetryPolicy


class Pooling(Looking):
    """The pools' part of `remuda.client.Client`."""

    def create_pool(
        self,
        name: str,
        *,
        profile: str | None = None,
        provider: str | None = None,
        backend: str | None = None,
        image: str | None = None,
        slots_per_vm: int | None = None,
        memory_bytes_per_vm: int | None = None,
        gpus_per_vm: int | None = None,
        instance_count: int | None = None,
        settings: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        isolation: str | None = None,
        constants: Mapping[str, str] | None = None,
        preparation: Sequence[str] | str | None = None,
        preparation_timeout_s: float | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        heartbeat_s: float | None = None,
        stalling_interval_s: float | None = None,
        offers: Sequence[Offer | Mapping[str, Any]] | None = None,
        installed_elsewhere: bool = False,
        **more: Any,
    ) -> Pool:
        """Make a pool, UNSUBMITTED: it takes jobs, and makes VMs once it is submitted.

        `constants`: environment of all its jobs. `preparation`: a command each VM runs before it
        takes jobs. `retry`: the policy of jobs that bring none. `isolation`: see
        docs/requirements.md. `instance_count` VMs are kept unless `setup_elastic` is called. A VM
        silent for `stalling_interval_s` (None: six heartbeats) is replaced and its jobs run again.
        `offers`: what VMs may be made from, tried in order, see docs/providers.md. `more`: any other
        setting of docs/pools.md, such as labels, shortname, constraints, completion_ttl.
        `profile`: a template, of which only what is given here is different, see docs/pools.md.
        `installed_elsewhere`: take a provider or backend whose package only the workers have.
        Raises BadInput, AlreadyExists, PoolLimitReached, UnknownProfile.
        """
        if heartbeat_s is not None and stalling_interval_s is None:
            stalling_interval_s = (
                6 * pool_settings.checked({"heartbeat_s": heartbeat_s})["heartbeat_s"]
            )
        given = {
            "slots_per_vm": slots_per_vm,
            "memory_bytes_per_vm": memory_bytes_per_vm,
            "gpus_per_vm": gpus_per_vm,
            "instance_count": instance_count,
            "settings": settings,
            "tags": tags,
            "isolation": isolation,
            "constants": constants,
            "preparation": preparation,
            "preparation_timeout_s": preparation_timeout_s,
            "retry": retry,
            "heartbeat_s": heartbeat_s,
            "stalling_interval_s": stalling_interval_s,
            "offers": offers,
            **more,
        }
        fields = pool_settings.checked({k: v for k, v in given.items() if v is not None})
        template: Mapping[str, Any] = {"provider": "local", "backend": None, "image": "default"}
        if profile is not None:
            template = self._context.read(lambda c: profiles.find(c, checked_name(profile)))
            fields = {**template["fields"], **fields, "profile": template["name"]}
        return create(
            self._context,
            name,
            provider=template["provider"] if provider is None else provider,
            backend=template["backend"] if backend is None and provider is None else backend,
            image=template["image"] if image is None else image,
            installed_elsewhere=installed_elsewhere,
            fields={"slots_per_vm": 1, **fields},
        )

    def pool(self, name: str) -> Pool:
        """Return the pool of that name, shortname or UUID (if it was made anew, the open one).

        Raises UnknownPool.
        """
        pool_id = self._pool_row(name)["id"]
        return Pool(self._context, self._context.read(lambda c: query.pools(c, ids=[pool_id]))[0])

    def pools(
        self,
        *,
        all: bool = False,
        tags: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Pool]:
        """Return the pools by name; closed ones too if `all`.

        `tags`, `labels`: those that have all of them. Raises BadInput.
        """
        wanted = tags_of(tags) if tags is not None else None
        pairs = pool_settings.labels_of("labels", labels) if labels is not None else None
        found = self._context.read(lambda c: query.pools(c, ended=all, tags=wanted, labels=pairs))
        return [Pool(self._context, row) for row in found]
