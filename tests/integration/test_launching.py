"""Launches of noop VMs against a real database: offers, budgets, gates, and every error's own way."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from remuda import Client
from remuda.errors import BadInput, TransientProviderError, UnknownPool
from remuda.models import images, launches, machines
from remuda.tasks import pricing
from remuda.tasks.attaching import Views
from remuda.tasks.machines import terminate_vm
from remuda.testing import NoopProvider, world
from tests.integration.builders import make_jobs
from tests.integration.yard import Yard, yard

__all__ = ["yard"]

OFFERS = [{"name": "eu-spot", "price": 0.1}, {"name": "eu", "price": 0.4, "image": "other"}]
SEEDED = [{**OFFERS[0], "settings": {"faults": {"seed": 1}}}, OFFERS[1]]


def test_the_first_offer_is_asked_and_recorded(yard: Yard) -> None:
    yard.pool(offers=SEEDED)
    [vm] = yard.vms()
    found = yard.launch(vm)
    assert (found["state"], found["offer"], found["price"]) == ("RUNNING", "eu-spot", 0.1)
    assert found["offer_settings"] == {"faults": {"seed": 1}}
    row = yard.runtime.transact(lambda c: machines.vm_with_pool(c, vm))
    assert row is not None
    assert row["settings"] == {**yard.settings, "faults": {"seed": 1}}
    assert yard.the_pool["last_spawn_at"] is not None


@pytest.mark.parametrize("lack", ["no_capacity", "no_quota"])
def test_an_offer_without_capacity_gives_way_to_the_next(yard: Yard, lack: str) -> None:
    yard.pool({lack: ["eu-spot"]}, offers=OFFERS)
    one, two = yard.vms(2)
    before = yard.vm(one)["token"]
    found = yard.launch(one)
    assert (found["state"], found["offer"], found["price"]) == ("RUNNING", "eu", 0.4)
    assert found["token"] != before  # a token belongs to one offer
    [refusal] = yard.runtime.transact(lambda c: launches.refusals(c, yard.pool_id))
    assert refusal["offer"] == "eu-spot"
    assert "eu-spot" in refusal["reason"]
    # Every worker knows: the next VM does not ask for it.
    assert yard.launch(two)["spawn_calls"] == 1
    assert yard.vm(two)["offer"] == "eu"
    assert yard.the_pool["launch_failures"] == 0


def test_when_no_offer_is_left_the_pool_waits_without_failing(yard: Yard) -> None:
    yard.pool({"no_capacity": ["eu-spot"], "no_quota": ["eu"]}, offers=OFFERS)
    one, two = yard.vms(2)
    found = yard.launch(one)
    assert found["state"] == "STOPPING"  # an answer that it cannot be had proves nothing
    assert yard.sent == [("remuda.terminate_vm", one)]
    assert terminate_vm(yard.runtime, one)
    pool = yard.the_pool
    assert (pool["state"], pool["launch_failures"]) == ("SUBMITTED", 0)
    assert pool["paused_until"] is not None
    assert "eu-spot" in pool["message"]
    assert "quota" in pool["message"]
    held = yard.launch(two)  # it waits for that time
    assert (held["state"], held["spawn_calls"]) == ("NEW", 0)
    assert abs(held["next_try_at"] - pool["paused_until"]) < timedelta(seconds=1)
    yard.due()
    assert two in yard.runtime.transact(launches.due_launches)
    yard.faults.no_capacity.clear()
    assert yard.launch(two)["offer"] == "eu-spot"
    assert yard.runtime.transact(lambda c: launches.times_refused(c, yard.pool_id, "eu-spot")) == 0
    assert yard.the_pool["message"] is None


def test_refusals_in_a_row_last_longer_but_not_those_at_once(yard: Yard) -> None:
    yard.pool({"no_capacity": [""]})
    lasts = []
    for _ in range(3):
        [vm] = yard.vms()
        yard.launch(vm)
        [refusal] = yard.runtime.transact(lambda c: launches.refusals(c, yard.pool_id))
        lasts.append(round((refusal["expires_at"] - refusal["refused_at"]).total_seconds()))
        assert yard.runtime.transact(lambda c: launches.times_refused(c, yard.pool_id, "")) == (
            refusal["times"] - 1
        )
        yard.due()
    assert lasts == [5, 10, 20]


def test_what_fails_in_passing_is_tried_again_within_a_budget(yard: Yard) -> None:
    yard.pool({"spawn": ["TransientProviderError"] * 2 + ["lost"]}, launch_retries=3)
    [vm] = yard.vms()
    for failures in (1, 2, 3):
        found = yard.launch(vm)
        assert (found["state"], found["launch_failures"]) == ("NEW", failures)
        assert found["error"].startswith("TransientProviderError")
        assert yard.launch(vm)["spawn_calls"] == failures  # not before its time
        yard.due()
    found = yard.launch(vm)
    assert (found["state"], found["error"], found["launch_failures"]) == ("RUNNING", None, 0)
    assert len(world().all()) == 1
    assert yard.the_pool["launch_failures"] == 0


def test_a_budget_that_is_used_up_is_a_failed_launch(yard: Yard) -> None:
    yard.pool({"spawn": ["TransientProviderError"] * 9}, launch_retries=1)
    [vm] = yard.vms()
    yard.launch(vm)
    yard.due()
    assert yard.launch(vm)["state"] == "STOPPING"
    pool = yard.the_pool
    assert (pool["state"], pool["launch_failures"]) == ("SUBMITTED", 1)
    assert "tried 2 times" in pool["message"]


@pytest.mark.parametrize(
    "error", ["ProviderAuthError", "PermanentProviderError", "ImageError", "unknown kind"]
)
def test_what_will_not_pass_pauses_the_pool_loudly(yard: Yard, error: str) -> None:
    kind = {"provider": "no-such"} if error == "unknown kind" else {}
    told = "no provider 'no-such'" if kind else error
    yard.pool({"spawn": [] if kind else [error]}, **kind)
    one, two = yard.vms(2)
    assert yard.launch(one)["state"] == "STOPPING"
    pool = yard.the_pool
    assert (pool["state"], pool["launch_failures"]) == ("FAILURE", 1)
    assert told in pool["message"]
    assert told in yard.vm(one)["error"]
    assert yard.launch(two)["spawn_calls"] == 0
    image = yard.row("images", pool["image_id"])
    assert image["state"] == ("ERROR" if error == "ImageError" else "NEW")


def test_nothing_is_launched_from_an_image_in_error_until_it_is_reset(yard: Yard) -> None:
    yard.pool()
    image = yard.the_pool["image_id"]
    yard.runtime.transact(lambda c: images.mark_error(c, image, "its kernel panics"))
    one, two = yard.vms(2)
    found = yard.launch(one)
    assert (found["state"], found["spawn_calls"]) == ("HALTED", 0)
    assert "its kernel panics" in yard.the_pool["message"]
    assert yard.the_pool["state"] == "FAILURE"
    yard.runtime.transact(lambda c: images.reset(c, image))
    yard.runtime.transact(lambda c: launches.resume_pool(c, yard.pool_id))
    assert yard.launch(two)["state"] == "RUNNING"


def test_so_many_start_at_once(yard: Yard) -> None:
    yard.pool({"boot_s": 3600}, max_starting=2)
    vms = yard.vms(4)
    assert [yard.launch(vm)["state"] for vm in vms] == ["SUBMITTED", "SUBMITTED", "NEW", "NEW"]
    for machine in world().all():
        machine.boots_at = 0.0
    yard.due()
    assert [yard.launch(vm)["state"] for vm in vms] == [
        "RUNNING",
        "RUNNING",
        "SUBMITTED",
        "SUBMITTED",
    ]


def test_so_long_between_spawns(yard: Yard) -> None:
    yard.pool(spawn_interval_s=60)
    one, two = yard.vms(2)
    assert yard.launch(one)["state"] == "RUNNING"
    held = yard.launch(two)
    assert held["state"] == "NEW"
    wait_s = (held["next_try_at"] - yard.the_pool["last_spawn_at"]).total_seconds()
    assert 59 < wait_s < 61
    yard.due()
    assert yard.launch(two)["state"] == "RUNNING"


def test_a_vm_boots_until_its_deadline(yard: Yard) -> None:
    yard.pool({"boot_s": 3600}, launch_timeout_s=600, launch_retries=0)
    [vm] = yard.vms()
    for _ in range(8):
        found = yard.launch(vm)
        assert found["state"] == "SUBMITTED"
        yard.due()
    yard.sql("UPDATE vms SET asked_at = now() - interval '601 seconds'")
    assert yard.launch(vm)["state"] == "STOPPING"
    assert "not running 600 s after" in yard.the_pool["message"]
    assert terminate_vm(yard.runtime, vm)
    assert world().all() == []


def test_a_vm_that_is_gone_before_it_runs_is_given_up(yard: Yard) -> None:
    yard.pool({"boot_s": 3600})
    [vm] = yard.vms()
    yard.launch(vm)
    world().vanish(yard.vm(vm)["provider_id"])
    yard.due()
    assert yard.launch(vm)["state"] == "STOPPING"
    assert "the VM has ended" in yard.the_pool["message"]


def test_a_provider_that_is_down_is_no_reason_to_give_anything_up(yard: Yard) -> None:
    yard.pool({"boot_s": 3600})
    [vm] = yard.vms()
    yard.launch(vm)
    yard.faults.down = True
    yard.due()
    assert yard.launch(vm)["state"] == "SUBMITTED"
    yard.sql("UPDATE vms SET state = 'STOPPING'")
    with pytest.raises(TransientProviderError):
        terminate_vm(yard.runtime, vm)
    assert yard.vm(vm)["state"] == "STOPPING"  # and is never forgotten
    yard.faults.down = False
    assert terminate_vm(yard.runtime, vm)


def test_a_hung_call_blocks_nobody(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoopProvider, "deadline_s", lambda self, call: 0.05)
    yard.pool({"spawn": ["hang"], "terminate": ["hang"]})
    [vm] = yard.vms()
    found = yard.launch(vm)
    assert (found["state"], found["launch_failures"]) == ("NEW", 1)
    assert "did not answer spawn in 0.05 s" in found["error"]
    yard.due()
    assert yard.launch(vm)["state"] == "RUNNING"
    yard.sql("UPDATE vms SET state = 'STOPPING'")
    with pytest.raises(TransientProviderError, match="did not answer terminate"):
        terminate_vm(yard.runtime, vm)
    assert terminate_vm(yard.runtime, vm)
    yard.faults.let_go()


def test_one_thread_of_a_process_launches_a_vm(yard: Yard) -> None:
    yard.pool({"spawn": ["hang"]})
    [vm] = yard.vms()
    thread = threading.Thread(target=yard.launch, args=(vm,))
    thread.start()
    while yard.vm(vm)["spawn_calls"] == 0:
        pass
    assert yard.launch(vm)["spawn_calls"] == 1
    yard.faults.let_go()
    thread.join(20)
    assert (yard.vm(vm)["state"], yard.vm(vm)["spawn_calls"]) == ("RUNNING", 1)


@pytest.mark.parametrize("ip", ["999.1.1.1", "ten", "10.0.0.1; rm -rf /"])
def test_an_ip_that_is_none_is_not_taken(yard: Yard, ip: str) -> None:
    yard.pool({"ip": ip})
    [vm] = yard.vms()
    found = yard.launch(vm)
    assert (found["state"], found["private_ip"]) == ("NEW", None)
    assert "for an IP" in found["error"]


def test_an_ip_in_ipv6_clothes_is_undressed(yard: Yard) -> None:
    yard.pool({"ip": "::ffff:10.0.0.1"})
    [vm] = yard.vms()
    assert yard.launch(vm)["private_ip"] == "10.0.0.1"


def test_two_vms_with_one_address(yard: Yard) -> None:
    """The second is not taken for the first, but is asked again where it is."""
    yard.pool({"address": "10.0.0.1"})
    one, two = yard.vms(2)
    assert yard.launch(one)["state"] == "RUNNING"
    found = yard.launch(two)
    assert found["state"] == "NEW"
    assert f"that of VM {yard.vm(one)['name']}" in found["error"]
    yard.sql("UPDATE vms SET state = 'STOPPING' WHERE id = :id", id=one)
    yard.due()
    assert yard.launch(two)["state"] == "RUNNING"


def test_where_machines_of_a_pool_may_be(yard: Yard) -> None:
    """The ledger asks every offer, and those of living VMs that are listed no more."""
    yard.pool(offers=SEEDED)
    [vm] = yard.vms()
    yard.launch(vm)
    tag = str(yard.the_pool["uuid"])
    spot, other = {**yard.settings, "faults": {"seed": 1}}, yard.settings
    wanted = [("noop", tag, spot), ("noop", tag, other)]
    assert sorted(yard.runtime.transact(machines.providers_in_use), key=str) == sorted(
        wanted, key=str
    )
    yard.sql("UPDATE pools SET offers = '[]'")
    assert sorted(yard.runtime.transact(machines.providers_in_use), key=str) == sorted(
        wanted, key=str
    )


def test_a_client_says_offers_and_sees_what_became_of_them(yard: Yard) -> None:
    told = {"provider_faults": {"no_capacity": ["eu-spot"]}}
    with Client(yard.runtime.settings, owner="alice") as client:
        pool = client.create_pool(
            "herd", provider="noop", settings=told, offers=OFFERS, max_starting=3, launch_retries=0
        )
        pool.submit()
        yard.pool_id = pool.id
        [vm] = yard.vms()
        yard.launch(vm)
        said = " ".join(pool.explain())
        assert "first offer that has any: eu-spot, eu." in said
        assert "Offer eu-spot is not asked until" in said
        assert pool.update().info()["refusals"][0]["offer"] == "eu-spot"
        pool.resume()
        assert pool.update().info()["refusals"] == []
        pool.set(offers=[{"name": "us"}])
        assert pool.offers == [{"name": "us"}]
        with pytest.raises(BadInput, match=r"offer x: .*nonsense"):
            client.create_pool(
                "hooked",
                provider="command",
                settings={"cmd_new": "true", "cmd_delete": "true"},
                offers=[{"name": "x", "settings": {"nonsense": 1}}],
            )
        with pytest.raises(BadInput, match="are not reached like those of noop"):
            client.create_pool(
                "mixed", provider="noop", offers=[{"name": "x", "provider": "local"}]
            )
        with pytest.raises(BadInput, match="no setting spawn_interval"):
            client.create_pool("odd", provider="noop", spawn_interval=3)
        assert client.pool("herd").offers == [{"name": "us"}]
        with pytest.raises(UnknownPool):
            client.pool("hooked")


def test_a_vm_is_looked_for_where_its_offer_is(yard: Yard) -> None:
    elsewhere = {"name": "eu", "settings": {"provider_faults": {}}}
    yard.pool({"describe": ["half"] * 9}, offers=[elsewhere])
    [vm] = yard.vms()
    found = yard.launch(vm)
    assert found["state"] == "RUNNING"
    assert not Views(yard.runtime).is_gone(vm)
    world().vanish(found["provider_id"])
    assert Views(yard.runtime).is_gone(vm)


PRICED = [{"name": "dear", "price": 2}, {"name": "cheap", "price": 1}]


def test_the_cheapest_offer_is_asked_first(yard: Yard) -> None:
    yard.pool(offers=PRICED, offer_order="cheapest")
    [vm] = yard.vms()
    assert (yard.launch(vm)["offer"], yard.vm(vm)["price"]) == ("cheap", 1)


def test_dearer_offers_only_for_jobs_in_a_hurry(yard: Yard) -> None:
    yard.pool({"no_capacity": ["cheap"]}, offers=PRICED, offer_order="deadline", launch_retries=0)
    patient, hurried = yard.vms(2)
    assert yard.launch(patient)["state"] == "STOPPING"
    assert "there is time to wait for a cheaper one" in yard.the_pool["message"]
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 1, max_queue_s=7200))
    yard.sql("UPDATE pools SET paused_until = NULL")
    assert yard.launch(hurried)["state"] == "HALTED"
    yard.runtime.transact(lambda c: make_jobs(c, yard.pool_id, 1, max_queue_s=60))
    yard.sql("UPDATE pools SET paused_until = NULL")
    [now] = yard.vms()
    assert yard.launch(now)["offer"] == "dear"


def test_prices_only_a_provider_knows_are_asked_for(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        {"name": "unknown"},
        {"name": "dear"},
        {"name": "cheap"},
        {"name": "fixed", "price": 3},
    ]
    yard.pool({"prices": ["dear=2.5", "cheap=0.5"]}, offers=names, offer_order="cheapest")
    first, second, third, last = yard.vms(4)
    assert (yard.launch(first)["offer"], yard.vm(first)["price"]) == ("cheap", 0.5)
    yard.faults.no_capacity.append("cheap")
    assert (yard.launch(second)["offer"], yard.vm(second)["price"]) == ("dear", 2.5)
    yard.faults.prices[:] = ["dear=9", "cheap=0.5"]
    assert yard.launch(third)["price"] == 2.5  # as it was told a moment ago
    later = pricing.AGE_S + 1
    clock = time.monotonic
    monkeypatch.setattr("remuda.tasks.pricing.time.monotonic", lambda: clock() + later)
    assert (yard.launch(last)["offer"], yard.vm(last)["price"]) == ("fixed", 3)


def test_what_has_no_price_costs_nobody_knows_what(yard: Yard) -> None:
    yard.pool({"prices": ["cheap=nan"]}, offers=[{"name": "cheap"}])
    [vm] = yard.vms()
    assert yard.launch(vm)["state"] == "RUNNING"
    assert yard.vm(vm)["price"] is None


def test_orders_are_words(yard: Yard) -> None:
    with Client(yard.runtime.settings, owner="alice") as client:
        with pytest.raises(BadInput, match="offer_order must be one of listed"):
            client.create_pool("odd", provider="noop", offer_order="dearest")
        pool = client.create_pool("fine", provider="noop", offers=PRICED, offer_order="cheapest")
        assert "made from the cheapest offer that has any" in " ".join(pool.explain())
