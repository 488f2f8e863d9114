"""Machines that no VM owns, and machines of others, at every provider, told by the ledger itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, text

from remuda.config import load_settings
from remuda.models import ledger as models
from remuda.models.pool_life import insert_pool, submit_pool
from remuda.tasks import ledger
from remuda.tasks.runtime import Runtime
from remuda.testing import ProviderContract, wait_until
from remuda.workers.providers import Provider

Canary = tuple[str, Callable[[], object]] | None


class Strays(ProviderContract):
    """The contract, and what the sweep that compares makes of the provider's machines."""

    kind: ClassVar[str]

    @pytest.fixture
    def runtime(self, engine: Engine, database_url: str, tmp_path: Path) -> Iterator[Runtime]:
        made = Runtime(
            load_settings(
                database_url=database_url,
                data_dir=tmp_path / "data",
                state_dir=tmp_path / "state",
                unowned_grace_s=60.0,
            )
        )
        yield made
        made.close()

    @pytest.fixture
    def pool(self, runtime: Runtime, pool_settings: dict[str, Any]) -> dict[str, Any]:
        def work(connection: Any) -> dict[str, Any]:
            fields = {"settings": pool_settings, "slots_per_vm": 1}
            made = insert_pool(
                connection, "herd", owner="alice", provider=self.kind, backend="ssh", fields=fields
            )
            submit_pool(connection, made)
            query = text("SELECT id, name, uuid::text AS tag FROM pools WHERE id = :id")
            return dict(connection.execute(query, {"id": made}).mappings().one())

        return runtime.transact(work)

    def sweep(self, runtime: Runtime, *, aged: bool = False) -> list[dict[str, Any]]:
        """Compare all with the provider; return what is unowned, an hour old if `aged`."""
        if aged:
            older = text("UPDATE unowned_machines SET first_seen_at = now() - interval '1 hour'")
            runtime.transact(lambda c: c.execute(older))
        again = text("UPDATE sweeps SET last_run_at = now() - interval '1 hour'")
        runtime.transact(lambda c: c.execute(again))
        ledger.reconcile_vms(runtime, every_s=0)
        return [dict(row) for row in runtime.transact(models.leaks)]

    def test_a_machine_that_no_vm_owns_is_told_and_ended(
        self, provider: Provider, runtime: Runtime, pool: dict[str, Any], canary: Canary
    ) -> None:
        other, look = canary or ("", lambda: None)
        before = look()
        stray = provider.spawn(self.spec("stray", pool["tag"]), str(uuid.uuid4()))
        [told] = self.sweep(runtime)  # of the canary nothing
        assert (told["provider"], told["provider_id"]) == (self.kind, stray)
        assert (told["pool"], told["terminate_calls"]) == ("herd", 0)
        assert 0 <= told["unowned_s"] < 60
        assert stray != other
        self.sweep(runtime, aged=True)
        assert runtime.transact(models.unowned_seconds) >= 3600
        wait_until(lambda: self.sweep(runtime) == [], "it is gone", patience_s=self.patience_s)
        [told] = map(dict, runtime.transact(lambda c: models.leaks(c, gone=True)))
        assert told["terminate_calls"] >= 1
        assert [vm for vm in provider.list(pool["tag"]) if vm.state != "gone"] == []
        assert look() == before

    def test_a_machine_of_another_installation_is_shown_and_never_touched(
        self, provider: Provider, runtime: Runtime, pool: dict[str, Any]
    ) -> None:
        theirs = str(uuid.uuid4())  # a pool that this database does not know
        kept = provider.spawn(self.spec("theirs", theirs), str(uuid.uuid4()))
        [before] = provider.list(theirs)
        for _ in range(2):
            [told] = self.sweep(runtime, aged=True)
        assert (told["provider_id"], told["tag"], told["pool"]) == (kept, theirs, None)
        assert (told["terminate_calls"], told["unowned_s"] >= 3600) == (0, True)
        assert runtime.transact(models.unowned_seconds) == 0  # none of ours
        [after] = provider.list(theirs)
        assert after.token == before.token
        assert after.state in (before.state, "running")
