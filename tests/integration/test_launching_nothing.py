"""VMs that no call for them made: they end without a word from their provider."""

from __future__ import annotations

import pytest

from remuda.errors import TransientProviderError
from remuda.models import vm_life
from remuda.models.states import VmState
from remuda.tasks.machines import terminate_vm
from remuda.testing import NoopProvider
from tests.integration.yard import Yard, yard

__all__ = ["yard"]


@pytest.mark.parametrize("empty", [[True] * 3, [False, True, True], [True, False, True]])
def test_a_vm_that_no_try_made_ends_at_once(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, empty: list[bool]
) -> None:
    """One of which a call may have left a machine is terminated first."""
    left = list(empty)

    def spawn(*_: object) -> str:
        error = TransientProviderError("no host answers")
        error.made_nothing = left.pop(0)
        raise error

    monkeypatch.setattr(NoopProvider, "spawn", spawn)
    yard.pool(launch_retries=2)
    [vm] = yard.vms()
    for _ in empty:
        found = yard.launch(vm)
        yard.due()
    assert found["state"] == ("HALTED" if all(empty) else "STOPPING")
    assert (found["spawn_calls"], "no host answers" in found["error"]) == (3, True)


@pytest.mark.parametrize("empty", [True, False])
def test_a_vm_that_never_was_ends_though_its_provider_does_not_answer(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """Also one that is to end while its call is under way."""

    def away(*_: object, **__: object) -> bool:
        raise TransientProviderError("no host answers")

    def spawn(*_: object) -> str:
        yard.runtime.transact(lambda c: vm_life.move_vm(c, vm, VmState.STOPPING))
        error = TransientProviderError("no host answers")
        error.made_nothing = empty
        raise error

    monkeypatch.setattr(NoopProvider, "spawn", spawn)
    for call in ("list", "terminate"):
        monkeypatch.setattr(NoopProvider, call, away)
    yard.pool()
    [vm] = yard.vms()
    assert yard.launch(vm)["state"] == "STOPPING"
    if empty:
        assert terminate_vm(yard.runtime, vm)
    else:
        with pytest.raises(TransientProviderError):
            terminate_vm(yard.runtime, vm)
    assert yard.vm(vm)["state"] == ("HALTED" if empty else "STOPPING")
