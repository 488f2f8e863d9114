"""VMPool: a pool's VMs as a set and a mapping, held against a dict and a provider that counts calls."""

from __future__ import annotations

import pickle
import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Engine, text

from remuda.errors import (
    BadInput,
    IllegalTransition,
    InstanceNotFound,
    Refused,
    TransientProviderError,
    UnknownPool,
)
from remuda.models.database import rows, transact
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from remuda.workers.providers.base import VmDescription
from remuda.workers.vmpool import VMPool
from tests.integration.builders import assert_sound, make_vms
from tests.integration.counting import Counting, a_pool, view
from tests.integration.yard import yard

__all__ = ["yard"]


@pytest.fixture
def provider() -> Counting:
    return Counting()


def test_a_set_of_ids(engine: Engine, provider: Counting) -> None:
    pool = view(engine, provider, a_pool(engine))
    assert (pool.name, len(pool), list(pool), bool(pool)) == ("herd", 0, [], False)
    for name in ("a", "b", "../c"):  # an id is never a path
        pool.add_vm(provider.make(name))
        pool.add_vm(provider.there[name])  # harmless when repeated
    assert (len(pool), list(pool), bool(pool)) == (3, ["a", "b", "../c"], True)
    assert "b" in pool
    assert "d" not in pool
    assert 7 not in pool
    assert "a\0" not in pool
    seen = []
    for name in pool:  # a snapshot: leaving while one iterates is no trouble
        seen.append(name)
        if name != "b":
            pool.remove_vm(name)
    assert (seen, list(pool)) == (["a", "b", "../c"], ["b"])
    del pool["b"]
    assert not pool
    for gone in (pool.remove_vm, pool.get_vm, pool.__delitem__, pool.__getitem__):
        with pytest.raises(InstanceNotFound):
            gone("b")
    with pytest.raises(KeyError):
        pool["b"]
    with engine.begin() as connection:
        assert rows(connection, "SELECT DISTINCT state FROM vms") == [{"state": "STOPPING"}]
        assert_sound(connection)
    pool.add_vm(provider.make("b"))  # it may come again
    assert list(pool) == ["b"]


def test_what_is_known_costs_no_call(engine: Engine, provider: Counting) -> None:
    pool = view(engine, provider, a_pool(engine))
    pool.add_vm(provider.make("a"))
    pool.add_vm(provider.make("b"), cache=False)
    assert (pool["a"].address, provider.asked) == ({"home": "/a"}, [])
    assert (pool["b"].provider_id, provider.asked) == ("b", [["b"]])
    assert (pool.get_vm("b"), provider.asked) == (provider.there["b"], [["b"]])
    assert pool.get_vm("b", force_reload=True).state == "running"
    assert provider.asked == [["b"], ["b"]]
    pool.load()
    assert [vm.provider_id for vm in pool.get_all_vms()] == ["a", "b"]
    assert provider.asked[2:] == [["a", "b"]]  # all in one
    assert len(pool.get_all_vms()) == 2
    pool.save()
    assert len(provider.asked) == 3


def test_a_vm_that_is_gone_at_the_provider(engine: Engine, provider: Counting) -> None:
    pool = view(engine, provider, a_pool(engine))
    for name in ("a", "b"):
        pool.add_vm(provider.make(name))
    del provider.there["a"]
    assert pool["a"].state == "running"  # as remembered
    with pytest.raises(InstanceNotFound, match="gone at its provider"):
        pool.get_vm("a", force_reload=True)
    with pytest.raises(KeyError):
        pool["a"]
    assert "a" in pool  # until its row ends
    assert [vm.provider_id for vm in pool.get_all_vms()] == ["b"]
    provider.down = True
    with pytest.raises(TransientProviderError):
        pool.update()
    assert (pool["b"].state, len(pool)) == ("running", 2)  # silence is no news


def test_update_forgets_what_is_no_longer_there(engine: Engine, provider: Counting) -> None:
    number = a_pool(engine)
    pool, other = view(engine, provider, number), view(engine, provider, number)
    for name in "abc":
        pool.add_vm(provider.make(name))
    del other["b"]
    assert (list(pool), "b" in pool) == (["a", "c"], False)  # two agree at once
    del provider.there["a"]
    provider.down = True
    with pytest.raises(TransientProviderError):
        pool.update(remove=True)
    assert set(pool._cache) == {"a", "c"}
    provider.down = False
    pool.update(remove=True)  # though another is dead at the provider
    assert [vm.provider_id for vm in pool.get_all_vms()] == ["c"]
    other.update()
    assert provider.asked[-1] == ["a", "c"]


def test_a_machine_is_taken_in_as_what_it_was_made_for(engine: Engine, provider: Counting) -> None:
    number = a_pool(engine)
    with engine.begin() as connection:
        [vm] = make_vms(connection, number, state=VmState.NEW)
        [token] = rows(connection, "SELECT token::text AS token FROM vms")
        stopped, _ = make_vms(connection, number, 2, state=VmState.NEW)
        move_vm(connection, stopped, VmState.STOPPING)
        late = rows(connection, "SELECT token::text AS t FROM vms WHERE id = :i", i=stopped)[0]["t"]
    pool = view(engine, provider, number)
    pool.add_vm(provider.make("i-1", token=token["token"]))
    stray = str(uuid.uuid4())
    pool.add_vm(provider.make("i-2", token=stray))
    with pytest.raises(IllegalTransition):
        pool.add_vm(provider.make("i-3", token=late))
    for bad in (
        VmDescription("", "running"),
        VmDescription("x" * 501, "running"),
        VmDescription("a\0", "running"),
        VmDescription("gone", "gone"),
        VmDescription("ip", "running", private_ip="10.0.0"),
    ):
        with pytest.raises(BadInput):
            pool.add_vm(bad)
    with engine.begin() as connection:
        found = rows(connection, "SELECT * FROM vms WHERE state = 'SUBMITTED' ORDER BY id")
        assert [(r["id"] == vm, r["provider_id"], r["private_ip"]) for r in found] == [
            (True, "i-1", "10.0.0.1"),
            (False, "i-2", "10.0.0.1"),
        ]
        assert str(found[1]["token"]) == stray
        assert_sound(connection)
    assert list(pool) == ["i-1", "i-2"]
    with pytest.raises(UnknownPool):
        view(engine, provider, 12345)


def test_pickled_it_is_names_and_ids(engine: Engine, provider: Counting) -> None:
    pool = view(engine, provider, a_pool(engine))
    pool.add_vm(provider.make("a"))
    assert list(pool) == ["a"]
    data = pickle.dumps(pool)
    assert b"/a" not in data  # no description, no connection
    again: VMPool = pickle.loads(data)
    assert (again.name, again.pool_id, again._ids, again._cache) == (
        "herd",
        pool.pool_id,
        ["a"],
        {},
    )
    with pytest.raises(Refused, match="unpickled"):
        len(again)
    again.bind(provider, lambda work: transact(engine, work))
    assert (again["a"].provider_id, provider.asked) == ("a", [["a"]])


def test_the_pool_of_one_offer(engine: Engine, provider: Counting) -> None:
    number = a_pool(engine)
    pool = view(engine, provider, number)
    for name in "ab":
        pool.add_vm(provider.make(name))
    with engine.begin() as connection:
        connection.execute(text("UPDATE vms SET offer = 'spot' WHERE provider_id = 'b'"))
    assert list(view(engine, provider, number, offer="spot")) == ["b"]
    assert list(view(engine, provider, number, offer="")) == ["a"]
    other = view(engine, provider, a_pool(engine, "other"))
    assert ("a" in other, list(other)) == (False, [])
    other.add_vm(provider.make("a"))  # another provider's VM may be called the same
    del other["a"]
    assert "a" in pool


def test_any_sequence_of_calls(engine: Engine) -> None:
    numbers = iter(range(10_000))
    name = st.sampled_from("abcd")

    class Machine(RuleBasedStateMachine):
        """Two views of one pool against one dict of what is in it: id → whether it still exists."""

        def __init__(self) -> None:
            super().__init__()
            self.provider = Counting()
            number = a_pool(engine, f"p{next(numbers)}")
            self.views = [view(engine, self.provider, number) for _ in range(2)]
            self.model: dict[str, bool] = {}

        @rule(who=st.integers(0, 1), vm=name, cache=st.booleans())
        def add(self, who: int, vm: str, cache: bool) -> None:
            self.views[who].add_vm(self.provider.make(vm), cache=cache)
            self.model[vm] = True

        @rule(who=st.integers(0, 1), vm=name)
        def remove(self, who: int, vm: str) -> None:
            if self.model.pop(vm, None) is None:
                with pytest.raises(InstanceNotFound):
                    del self.views[who][vm]
            else:
                del self.views[who][vm]

        @precondition(lambda self: self.model)
        @rule(vm=name)
        def vanish(self, vm: str) -> None:
            self.provider.there.pop(vm, None)
            if vm in self.model:
                self.model[vm] = False

        @rule(who=st.integers(0, 1), vm=name)
        def get(self, who: int, vm: str) -> None:
            if self.model.get(vm):
                assert self.views[who].get_vm(vm, force_reload=True).provider_id == vm
            else:
                with pytest.raises(InstanceNotFound):
                    self.views[who].get_vm(vm, force_reload=True)

        @rule(who=st.integers(0, 1), remove=st.booleans())
        def update(self, who: int, remove: bool) -> None:
            self.views[who].update(remove=remove)
            there = {vm.provider_id for vm in self.views[who].get_all_vms()}
            assert there == {vm for vm, exists in self.model.items() if exists}

        @rule(who=st.integers(0, 1))
        def again(self, who: int) -> None:
            copy: VMPool = pickle.loads(pickle.dumps(self.views[who]))
            copy.bind(self.provider, lambda work: transact(engine, work))
            copy.load()
            copy.save()
            self.views[who] = copy

        @invariant()
        def both_agree(self) -> None:
            for pool in self.views:
                assert set(pool) == set(self.model)
                assert (len(pool), bool(pool)) == (len(self.model), bool(self.model))

    Machine.TestCase.settings = settings(
        max_examples=8,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase("runTest").debug()
