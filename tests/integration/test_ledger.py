"""The ledger against a real database and noop machines: losses, strays, others' machines, deletion."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from remuda.models import ledger as models
from remuda.models import pool_deletion, pool_life, requests
from remuda.models.database import rows
from remuda.tasks import ledger
from remuda.tasks.machines import terminate_vm
from remuda.testing import NoopProvider, world
from remuda.workers.backends.noop.faults import Faults
from remuda.workers.providers.base import VmSpec
from tests.integration.yard import Yard, yard

__all__ = ["yard"]

FOREIGN = str(uuid.uuid4())


def sweep(yard: Yard) -> int:
    return ledger.reconcile_vms(yard.runtime, every_s=0)


def stray(yard: Yard, *, pool: str = "", token: str | None = None) -> str:
    """Make a machine that no row knows of."""
    spec = VmSpec(name="stray", pool=pool or str(yard.the_pool["uuid"]), slots=1)
    return NoopProvider(None, yard.settings).spawn(spec, token or str(uuid.uuid4()))


def books(yard: Yard) -> list[dict[str, Any]]:
    return [dict(row) for row in yard.runtime.transact(lambda c: models.leaks(c, gone=True))]


def there() -> set[str]:
    return {machine.vm_id for machine in world().all()}


def past_grace(yard: Yard) -> None:
    yard.sql("UPDATE unowned_machines SET first_seen_at = now() - interval '1 hour'")


def states(yard: Yard) -> list[str]:
    query = "SELECT state FROM vms ORDER BY id"
    return [row["state"] for row in yard.runtime.transact(lambda c: rows(c, query))]


@pytest.fixture
def herd(yard: Yard) -> Yard:
    """Four running VMs."""
    yard.pool(instance_count=4)
    for vm in yard.vms(4):
        assert yard.launch(vm)["state"] == "RUNNING"
    return yard


def test_all_is_well(herd: Yard) -> None:
    assert sweep(herd) == 0
    assert books(herd) == []
    assert herd.the_pool["reconciled_at"] is not None


def test_a_vm_that_its_provider_denies_is_given_up_at_once(herd: Yard) -> None:
    gone = herd.vm(1)
    world().vanish(gone["provider_id"])
    assert sweep(herd) == 1
    assert (herd.vm(1)["state"], herd.vm(1)["error"]) == (
        "STOPPING",
        "its provider no longer has the VM",
    )
    assert states(herd)[1:] == ["RUNNING"] * 3
    assert herd.the_pool["frozen_at"] is None


def test_half_a_list_costs_nobody_his_vm(herd: Yard) -> None:
    """What the list leaves out is asked for by name."""
    herd.faults.list.append("half")
    assert sweep(herd) == 0
    assert states(herd) == ["RUNNING"] * 4


def test_half_a_list_and_half_an_answer_cost_nobody_his_vm(herd: Yard) -> None:
    """What both leave out is asked for once more."""
    herd.faults.list.append("half")
    herd.faults.describe.append("half")
    assert sweep(herd) == 0
    assert states(herd) == ["RUNNING"] * 4


@pytest.mark.parametrize("call", ["list", "describe"])
def test_an_hour_of_silence_changes_nothing(herd: Yard, call: str) -> None:
    """A provider that does not answer has said nothing of any VM."""
    for _ in range(20):
        getattr(herd.faults, call).append("TransientProviderError")
        if call == "describe":
            herd.faults.list.append("half")
        herd.sql("UPDATE pools SET reconcile_began_at = now() - interval '3 minutes'")
        sweep(herd)
    assert states(herd) == ["RUNNING"] * 4
    herd.faults.down = True
    sweep(herd)
    herd.faults.down = False
    assert states(herd) == ["RUNNING"] * 4
    assert sweep(herd) == 0


def test_most_of_a_pool_at_once_is_not_believed(herd: Yard) -> None:
    """The pool is frozen and says so; after the grace a second look is believed."""
    for number in (1, 2, 3):
        world().vanish(herd.vm(number)["provider_id"])
    for _ in range(3):
        sweep(herd)
    assert states(herd) == ["RUNNING"] * 4
    assert herd.the_pool["frozen_reason"] == "the provider no longer has 3 of 4 VMs"
    herd.sql("UPDATE pools SET frozen_at = now() - interval '299 s'")
    sweep(herd)
    assert states(herd) == ["RUNNING"] * 4
    herd.sql("UPDATE pools SET frozen_at = now() - interval '301 s'")
    sweep(herd)
    assert states(herd) == ["STOPPING"] * 3 + ["RUNNING"]
    assert herd.the_pool["frozen_at"] is None


def test_an_operator_confirms_the_loss(herd: Yard) -> None:
    for number in (1, 2, 3, 4):
        world().vanish(herd.vm(number)["provider_id"])
    sweep(herd)
    herd.runtime.transact(lambda c: models.confirm_loss(c, herd.pool_id))
    sweep(herd)
    assert states(herd) == ["STOPPING"] * 4
    assert (herd.the_pool["frozen_at"], herd.the_pool["loss_confirmed_at"]) == (None, None)


def test_vms_that_are_there_again_thaw_their_pool(herd: Yard) -> None:
    herd.sql("UPDATE pools SET frozen_at = now(), frozen_reason = 'so it seemed'")
    herd.faults.list.append("TransientProviderError")
    sweep(herd)
    assert herd.the_pool["frozen_at"] is not None  # silence is no good news either
    sweep(herd)
    assert herd.the_pool["frozen_at"] is None


def test_a_stray_has_a_grace_and_is_then_ended_until_that_is_confirmed(herd: Yard) -> None:
    machine = stray(herd)
    sweep(herd)
    [booked] = books(herd)
    assert (booked["provider_id"], booked["pool"]) == (machine, "herd")
    assert booked["terminate_calls"] == 0
    past_grace(herd)
    herd.faults.terminate.append("TransientProviderError")
    sweep(herd)
    assert books(herd)[0]["error"] == "terminate failed, as the noop was told to"
    assert machine in there()
    herd.faults.terminate.append("lost")
    sweep(herd)  # it was done, nobody heard of it
    assert machine not in there()
    sweep(herd)
    [booked] = books(herd)
    assert booked["gone_at"] is not None
    assert 3500 < herd.runtime.transact(lambda c: models.unowned_seconds(c, grace_s=60)) < 3600
    assert states(herd) == ["RUNNING"] * 4


def test_a_machine_whose_row_comes_late_is_left_alone(herd: Yard) -> None:
    """Launched, not recorded, listed; then recorded."""
    [vm] = herd.vms()
    token = str(herd.vm(vm)["token"])
    machine = stray(herd, token=token)
    sweep(herd)
    assert books(herd) == []  # the intent has its token
    herd.sql("UPDATE vms SET token = gen_random_uuid() WHERE id = :id", id=vm)
    sweep(herd)
    assert [row["gone_at"] for row in books(herd)] == [None]
    herd.sql("UPDATE vms SET token = CAST(:token AS uuid) WHERE id = :id", token=token, id=vm)
    assert herd.launch(vm)["provider_id"] == machine
    sweep(herd)
    assert books(herd)[0]["gone_at"] is not None
    past_grace(herd)
    sweep(herd)
    assert machine in there()


def test_the_same_token_twice_owns_one_machine(herd: Yard) -> None:
    """A provider that made two is left with the one that was recorded."""
    token = str(herd.vm(1)["token"])
    with world().loop.lock:
        twin = world().add(
            str(uuid.uuid4()),
            name="twin",
            pool=str(herd.the_pool["uuid"]),
            slots=1,
            memory_bytes=None,
            heartbeat_s=5,
            faults=Faults(),
            boot_s=0,
        )
        twin.token = token
    sweep(herd)
    assert [row["provider_id"] for row in books(herd)] == [twin.vm_id]


def test_machines_of_others_are_shown_and_never_touched(herd: Yard) -> None:
    """The canary: of another installation in the same account."""
    canary = stray(herd, pool=FOREIGN)
    for _ in range(3):
        herd.sql("UPDATE sweeps SET last_run_at = now() - interval '1 hour'")
        sweep(herd)
        past_grace(herd)
    [booked] = books(herd)
    assert (booked["provider_id"], booked["pool"], booked["tag"]) == (canary, None, FOREIGN)
    assert booked["terminate_calls"] == 0
    assert canary in there()
    assert herd.runtime.transact(models.unowned_seconds) == 0


def test_ten_thousand_unknown_machines(herd: Yard) -> None:
    """A sweep books them in a moment, ends some, and the VMs are none the worse."""
    tag = str(herd.the_pool["uuid"])
    with world().loop.lock:
        for number in range(10_000):
            world().add(
                str(uuid.UUID(int=number)),
                name=f"x{number}",
                pool=tag,
                slots=1,
                memory_bytes=None,
                heartbeat_s=3600,
                faults=Faults(),
                boot_s=0,
            )
    began = time.monotonic()
    sweep(herd)
    assert len(books(herd)) == 10_000
    past_grace(herd)
    sweep(herd)
    took_s = time.monotonic() - began
    assert len(there()) == 10_004 - ledger.MOST_ENDED
    assert states(herd) == ["RUNNING"] * 4
    assert took_s < 20, took_s


def test_a_pool_is_deleted_when_nothing_of_it_is_left(herd: Yard) -> None:
    machine = stray(herd)

    def delete(connection: Any) -> None:
        pool_life.close_pool(connection, herd.pool_id)
        herd_ids = [1, 2, 3, 4]
        for vm in herd_ids:
            requests.stop_vm(connection, vm, now=True)

    herd.runtime.transact(delete)
    for vm in (1, 2, 3, 4):
        assert terminate_vm(herd.runtime, vm)
    herd.sql("UPDATE pools SET state = 'CLOSED', ended_at = now()")
    herd.runtime.transact(lambda c: pool_deletion.delete_pool(c, herd.pool_id))
    for _ in range(2):
        sweep(herd)
    assert herd.the_pool["deleted_at"] is None
    left = herd.runtime.transact(lambda c: models.leftovers(c, herd.pool_id))
    assert (left["vms"], left["unowned"]) == (0, 1)
    past_grace(herd)
    sweep(herd)
    assert machine not in there()
    herd.faults.down = True
    sweep(herd)
    assert herd.the_pool["deleted_at"] is None  # nobody has confirmed it
    herd.faults.down = False
    sweep(herd)
    assert herd.row("pools", herd.pool_id)["deleted_at"] is not None


def test_two_sweeps_share_the_pools(herd: Yard) -> None:
    assert herd.runtime.transact(lambda c: len(models.claim_pools(c, every_s=60, most=10))) == 1
    assert herd.runtime.transact(lambda c: len(models.claim_pools(c, every_s=60, most=10))) == 0
