"""A noop provider that counts its calls, and the view of a pool through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine

from remuda.errors import (
    TransientProviderError,
)
from remuda.models.database import transact
from remuda.workers.providers.base import Provider, VmDescription
from remuda.workers.providers.noop import NoopProvider
from remuda.workers.vmpool import VMPool
from tests.integration.builders import make_pool


class Counting(NoopProvider):
    """A provider of descriptions that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[str, VmDescription] = {}
        self.asked: list[list[str]] = []
        self.down = False

    def of_pool(self, settings: Any) -> Counting:
        return self

    def make(self, name: str, *, token: str = "") -> VmDescription:
        self.there[name] = VmDescription(
            name, "running", {"home": f"/{name}"}, "10.0.0.1", token=token
        )
        return self.there[name]

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        wanted = list(ids)
        self.asked.append(wanted)
        if self.down:
            raise TransientProviderError("down")
        return {name: self.there[name] for name in wanted if name in self.there}


def view(engine: Engine, provider: Provider, pool: int, **more: Any) -> VMPool:
    return VMPool(pool, provider, lambda work: transact(engine, work), **more)


def a_pool(engine: Engine, name: str = "herd") -> int:
    with engine.begin() as connection:
        return make_pool(connection, name)
