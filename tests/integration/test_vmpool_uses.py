"""What goes through the view of a pool: launching, looking, comparing, ending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Engine, event

from remuda.errors import (
    IllegalTransition,
    TransientProviderError,
)
from remuda.models.database import rows, transact
from remuda.models.states import VmState
from remuda.tasks import attaching, ledger, machines, providing
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.noop import NoopProvider
from remuda.workers.vmpool import VMPool
from tests.integration.builders import assert_sound, make_vms
from tests.integration.counting import Counting, a_pool, view
from tests.integration.yard import Yard, yard

__all__ = ["yard"]


@pytest.fixture
def provider() -> Counting:
    return Counting()


def test_broken_channels_are_one_question_a_pool(
    engine: Engine, provider: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providing, "provider_for", lambda *_: provider)
    monkeypatch.setattr(attaching, "_VIEW_S", 60.0)
    number = a_pool(engine)
    pool = view(engine, provider, number)
    for name in "abcd":
        pool.add_vm(provider.make(name))
    with engine.connect() as connection:
        ids = {r["provider_id"]: r["id"] for r in rows(connection, "SELECT * FROM vms")}
    del provider.there["b"]
    runtime = SimpleNamespace(transact=lambda work: transact(engine, work))
    views = attaching.Views(cast(Runtime, runtime))
    lost = [ids["a"], ids["b"], ids["c"]]
    assert [views.is_gone(vm, lost) for vm in lost] == [False, True, False]
    assert provider.asked == [["a", "b", "c"]]
    assert not views.is_gone(ids["d"])
    assert provider.asked[1:] == [["d"]]
    provider.down = True
    assert not attaching.Views(cast(Runtime, runtime)).is_gone(ids["b"])  # nobody knows
    assert views.is_gone(12345)


def test_what_its_intent_was_made_for_and_nothing_else(engine: Engine, provider: Counting) -> None:
    number = a_pool(engine)
    pool = view(engine, provider, number)
    with engine.begin() as connection:
        one, two = make_vms(connection, number, 2, state=VmState.NEW)
        tokens = [r["t"] for r in rows(connection, "SELECT token::text t FROM vms ORDER BY id")]
    made = replace(
        provider.make("i-1", token=tokens[0]), price=0.5, address={"address": "10.0.0.7"}
    )
    with pytest.raises(IllegalTransition, match="launched anew"):
        pool.add_vm(made, intent=two)  # of another's token
    pool.add_vm(made, intent=one)
    with pytest.raises(TransientProviderError, match="its address is that of VM"):
        pool.add_vm(replace(made, provider_id="i-2", token=tokens[1]), intent=two)
    with pytest.raises(TransientProviderError, match="its address is that of VM"):
        pool.add_vm(replace(made, provider_id="i-3", token=""))  # nor one of its own
    with pytest.raises(IllegalTransition):
        pool.add_vm(made, intent=one)  # it was taken further by somebody else
    pool.set_place(replace(made, address={"address": "10.0.0.8"}, public_ip=""), intent=one)
    with engine.begin() as connection:
        found = rows(connection, "SELECT * FROM vms ORDER BY id")
        assert [(r["state"], r["provider_id"], r["price"]) for r in found] == [
            ("SUBMITTED", "i-1", 0.5),
            ("NEW", None, None),
        ]
        assert found[0]["address"] == {"address": "10.0.0.8"}
        assert_sound(connection)


def test_machines_are_made_compared_and_ended_through_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.pool()
    [vm] = yard.vms()
    pool = {"id": yard.pool_id, "name": "herd", "tag": str(yard.the_pool["uuid"])}
    told: list[str] = []
    statements: list[str] = []
    costs: dict[str, int] = {}

    def spy(of: type, name: str) -> None:
        plain = getattr(of, name)

        def call(self: Any, *given: Any, **more: Any) -> Any:
            told.append(f"{of.__name__}.{name}")
            before = len(statements)
            done = plain(self, *given, **more)
            costs[f"{of.__name__}.{name}"] = len(statements) - before
            return done

        monkeypatch.setattr(of, name, call)

    for name in ("spawn", "describe", "add_vm", "machines", "terminate"):
        spy(VMPool, name)
    for name in ("spawn", "describe", "list", "terminate"):
        spy(NoopProvider, name)
    event.listen(
        yard.runtime.engine, "before_cursor_execute", lambda *seen: statements.append(seen[2])
    )

    def after(work: Callable[[], Any]) -> list[str]:
        work()
        seen = list(told)
        told.clear()
        return seen

    assert after(lambda: yard.launch(vm)) == [
        "VMPool.spawn",
        "NoopProvider.spawn",
        "VMPool.describe",
        "NoopProvider.describe",
        "VMPool.add_vm",
    ]
    assert after(lambda: ledger.reconcile_pool(yard.runtime, pool)) == [
        "VMPool.machines",
        "NoopProvider.list",
    ]
    yard.sql("UPDATE vms SET state = 'STOPPING'")
    assert after(lambda: machines.terminate_vm(yard.runtime, vm)) == [
        "VMPool.terminate",
        "NoopProvider.terminate",
        "VMPool.describe",
        "NoopProvider.describe",
    ]
    assert yard.vm(vm)["state"] == "HALTED"
    # The view costs no statement but that of the transition, and the lock of the row it is about.
    assert costs.pop("VMPool.add_vm") <= 2
    assert set(costs.values()) == {0}
