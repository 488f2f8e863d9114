"""A runtime with one pool of noop VMs, whose launches a test takes step by step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from remuda.config import load_settings
from remuda.models.database import rows
from remuda.models.pool_life import insert_pool, submit_pool
from remuda.models.vm_life import insert_vms
from remuda.tasks import launching, messages
from remuda.tasks.runtime import Runtime
from remuda.testing import NoopProvider, ProviderFaults, world
from tests.integration.builders import assert_sound


class Yard:
    """A runtime, one pool, and what would have been sent."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.sent: list[tuple[Any, ...]] = []
        self.pool_id = 0
        self.settings: dict[str, Any] = {}

    def pool(self, faults: dict[str, Any] | None = None, **fields: Any) -> None:
        self.settings = {"provider_faults": faults or {}}

        def work(connection: Any) -> int:
            made = insert_pool(
                connection,
                "herd",
                owner="alice",
                provider=fields.pop("provider", "noop"),
                backend="noop",
                fields={"slots_per_vm": 1, "settings": self.settings, **fields},
            )
            submit_pool(connection, made)
            return made

        self.pool_id = self.runtime.transact(work)

    @property
    def faults(self) -> ProviderFaults:
        return NoopProvider(None, self.settings).faults

    def vms(self, count: int = 1) -> list[int]:
        return self.runtime.transact(lambda c: insert_vms(c, self.pool_id, count))

    def row(self, table: str, id_: int) -> dict[str, Any]:
        query = f"SELECT * FROM {table} WHERE id = :id"
        return dict(self.runtime.transact(lambda c: rows(c, query, id=id_))[0])

    def vm(self, vm_id: int) -> dict[str, Any]:
        return self.row("vms", vm_id)

    @property
    def the_pool(self) -> dict[str, Any]:
        return self.row("pools", self.pool_id)

    def launch(self, vm_id: int) -> dict[str, Any]:
        launching.spawn_vm(self.runtime, vm_id)
        return self.vm(vm_id)

    def sql(self, statement: str, **values: Any) -> None:
        self.runtime.transact(lambda c: c.execute(text(statement), values))

    def due(self) -> None:
        """Let every wait be over."""
        self.sql("UPDATE vms SET next_try_at = now() WHERE next_try_at IS NOT NULL")
        self.sql("UPDATE pools SET paused_until = now(), last_spawn_at = now() - interval '1 day'")
        self.sql("UPDATE offer_refusals SET expires_at = now() - interval '1 second'")


@pytest.fixture
def yard(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Yard]:
    settings = load_settings(
        database_url=database_url, data_dir=tmp_path / "data", state_dir=tmp_path / "state"
    )
    runtime = Runtime(settings)
    made = Yard(runtime)
    monkeypatch.setattr(messages, "_send", lambda *sent: made.sent.append(sent))
    yield made
    runtime.transact(assert_sound)
    runtime.close()
    world().clear()
