"""Waiting for a lease: order, reasons, limits, reuse, health, and what ends a wait."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from remuda import StaleHolder
from remuda.client.reasons import waiting_reasons
from remuda.models import explanation, lease_requests, leases, owners, sizing
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from tests.integration.builders import (
    age,
    assert_sound,
    dispatch,
    make_jobs,
    make_pool,
    make_vms,
    make_wish,
    row,
    state,
)
from tests.integration.holding import free, hold, lease


def test_who_waits_longest_comes_first_and_nobody_overtakes(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
        held = hold(connection, pool)
        first, second = (make_wish(connection, pool, owner=name) for name in ("ann", "ben"))
        urgent = make_wish(connection, pool, owner="eve", priority=1)
        for served in (urgent, first, second):
            free(connection, held)
            assert lease(connection, pool, owner="quick") is None  # others wait for it
            assert lease_requests.serve(connection) == 1
            answer = lease_requests.pick_up(connection, served, stay=True)
            assert answer.lease is not None
            held = dict(answer.lease)
        assert lease_requests.waiting(connection) == []


def test_what_nobody_can_be_given_holds_nobody_up(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2, isolation="owner")
        make_vms(connection, pool, 2)
        hold(connection, pool, slots=1)
        hold(connection, pool, owner="full", slots=2)
        owners.change(connection, "full", {"max_vms": 1})
        stuck = [make_wish(connection, pool, owner="full") for _ in range(20)]
        assert lease_requests.serve(connection) == 0
        told = {r["id"]: r["reason"] for r in lease_requests.waiting(connection)}
        assert told == dict.fromkeys(stuck, "owner full has as many VMs as it may (max_vms 1)")
        # One who can be served is, at once, though twenty came before.
        mine = make_wish(connection, pool, owner="bob")
        assert lease_requests.serve(connection) == 1
        assert lease_requests.pick_up(connection, mine, stay=True).lease is not None
        # And no pool grows for those whose owner may have no more.
        [demand] = sizing.due_pools(connection)
        assert demand.queued_slots == 0


def _waited(connection: Connection, wish: int, seconds: float) -> None:
    query = (
        "UPDATE lease_requests SET created_at = now() - make_interval(secs => :s) WHERE id = :id"
    )
    connection.execute(text(query), {"s": seconds, "id": wish})


def test_a_whole_vm_is_had_under_a_stream_of_small_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool, 2)
        held = [hold(connection, pool) for _ in range(4)]
        whole = make_wish(connection, pool, owner="ann", slots=None)

        def turn() -> list[int]:
            """The oldest small lease ends, and the next is waited for already."""
            wish = make_wish(connection, pool)
            free(connection, held.pop(0))
            lease_requests.serve(connection)
            answer = lease_requests.pick_up(connection, wish, stay=True)
            held.extend([dict(answer.lease)] if answer.lease else [])
            return [lease["vm_id"] for lease in held]

        for _ in range(5):  # each slot that comes free is taken again
            assert len(turn()) == 4
        _waited(connection, whole, lease_requests.RESERVE_AFTER_S)
        assert len(turn()) < 4  # from here on one of the VMs is kept
        [told, *_] = lease_requests.waiting(connection)
        assert (told["id"], "is kept for it" in told["reason"]) == (whole, True)
        kept = row(connection, "lease_requests", whole)["vm_id"]
        turns = 0
        while kept in [lease["vm_id"] for lease in held]:  # nothing new comes there
            turn()
            turns += 1
            assert turns <= 4
        answer = lease_requests.pick_up(connection, whole, stay=True)
        assert answer.lease is not None
        assert (answer.lease["vm_id"], answer.lease["slots"]) == (kept, 2)
        assert_sound(connection)


def test_jobs_leave_alone_what_is_kept(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        held = hold(connection, pool)
        whole = make_wish(connection, pool, owner="ann", slots=None, ttl_s=60.0)
        _waited(connection, whole, 1000)
        lease_requests.serve(connection)
        [job] = make_jobs(connection, pool)
        assert dispatch(connection) == []
        facts = explanation.explain_facts(connection, job)
        told = [reason.text for reason in waiting_reasons(facts)]
        assert any("the freest has 0, 1 too few" in text for text in told)
        assert any("1 VM of pool herd kept for a lease" in text for text in told)
        assert lease_requests.pick_up(connection, whole, stay=False).lease is None  # it gives up
        assert len(dispatch(connection)) == 1
        free(connection, held)
        assert_sound(connection)


def test_of_a_short_wait_a_third_is_long(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=2)
        make_vms(connection, pool)
        hold(connection, pool)
        answer = lease_requests.request(
            connection, lease_requests.Wanted(pool_ids=(pool,), owner="ann", slots=None), wait_s=6.0
        )
        assert answer.waits is not None
        for age_s, kept in ((1.0, False), (2.5, True)):
            query = """UPDATE lease_requests SET created_at = now() - make_interval(secs => :s),
                         deadline_at = now() + make_interval(secs => 6 - :s)"""
            connection.execute(text(query), {"s": age_s})
            lease_requests.serve(connection)
            found = row(connection, "lease_requests", answer.waits)["vm_id"]
            assert (found is not None) is kept


def test_the_pool_that_can_grow_grows_for_a_request_once(engine: Engine) -> None:
    with engine.begin() as connection:
        full = make_pool(connection, "full", instance_count=0)
        spare = make_pool(connection, "spare", instance_count=2)
        make_wish(connection, full, spare, slots=None)
        assert lease_requests.serve(connection) == 0
        demand = {d.pool["name"]: d.queued_slots for d in sizing.due_pools(connection)}
        assert demand == {"full": 0, "spare": 2}
        make_vms(connection, spare)
        assert lease_requests.serve(connection) == 1
        assert [d.queued_slots for d in sizing.due_pools(connection)] == [0, 0]


def test_a_vm_that_is_not_well_or_not_heard_of_is_skipped(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        [vm] = make_vms(connection, pool)
        for change, undo in [
            ("check_failures = 1", "check_failures = 0"),
            ("listening_since = now() + interval '1 s'", "listening_since = NULL"),
            ("heartbeat_at = now() - interval '1 day'", "heartbeat_at = now()"),
            ("release_due_at = now()", "release_due_at = NULL"),
            ("draining = true", "draining = false"),
        ]:
            connection.execute(text(f"UPDATE vms SET {change} WHERE id = {vm}"))
            assert lease(connection, pool) is None, change
            wish = make_wish(connection, pool)
            assert lease_requests.serve(connection) == 0
            assert lease_requests.pick_up(connection, wish, stay=False).reason, change
            connection.execute(text(f"UPDATE vms SET {undo} WHERE id = {vm}"))
            free(connection, hold(connection, pool))
        # Who runs no jobs has no runner to be heard.
        connection.execute(text("UPDATE vms SET heartbeat_at = NULL"))
        connection.execute(text("UPDATE pools SET backend = 'none'"))
        hold(connection, pool)


def test_reuse_ends_after_so_many_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="sandbox", slots_per_vm=1, reuse_max_count=1)
        [vm] = make_vms(connection, pool)
        assert not free(connection, hold(connection, pool)).over
        assert lease(connection, pool, owner="eve") is None  # it is bob's
        released = free(connection, hold(connection, pool))
        assert list(released.over) == [vm]
        assert lease(connection, pool) is None
        assert leases.end_vms(connection, released.over) == [vm]
        assert state(connection, "vm", vm) == "STOPPING"


def test_reuse_ends_after_its_time_and_its_opportunity(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(
            connection, isolation="sandbox", slots_per_vm=1, reuse_max_s=600, reuse_opportunity_s=45
        )
        old, idle, clean = make_vms(connection, pool, 3)
        for vm in (old, idle):
            assert hold(connection, pool, sandbox=f"s{vm}")["vm_id"] == vm
        for lease in rows(connection, "SELECT id, token FROM leases"):
            assert not leases.release(connection, lease["id"], lease["token"]).over
        assert leases.end_worn(connection) == []
        age(connection, "vms", [old], "leased_at", 601)
        age(connection, "vms", [idle], "busy_at", 46)
        assert hold(connection, pool, sandbox=f"s{old}")["vm_id"] == clean
        assert leases.end_worn(connection) == [old, idle]
        assert_sound(connection)


def test_no_opportunity_is_no_reuse(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="owner", slots_per_vm=1, reuse_opportunity_s=0)
        [vm] = make_vms(connection, pool)
        assert list(free(connection, hold(connection, pool)).over) == [vm]


def test_a_dead_holder_holds_nothing_for_long(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool)
        lost = hold(connection, pool)
        wish = make_wish(connection, pool, owner="ann")
        age(connection, "leases", [lost["id"]], "expires_at", 61)
        assert leases.expire(connection) == 1
        assert lease_requests.serve(connection) == 1
        got = lease_requests.pick_up(connection, wish, stay=True).lease
        assert got is not None
        assert not free(connection, lost).done  # the dead one comes back, too late
        with pytest.raises(StaleHolder):
            leases.renew(connection, lost["id"], lost["token"], ttl_s=60)
        assert row(connection, "leases", got["id"])["ended"] is None


def test_a_dead_waiter_is_passed_over_and_what_it_was_given_is_short(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        make_vms(connection, pool, 2)
        dead = make_wish(connection, pool, ttl_s=3600.0)
        age(connection, "lease_requests", [dead], "expires_at", 61)
        gone = make_wish(connection, pool, ttl_s=3600.0)
        assert lease_requests.serve(connection) == 1
        found = rows(connection, "SELECT expires_at - now() AS left FROM leases")
        assert [lease["left"].total_seconds() for lease in found] == [30]
        assert lease_requests.forget_dead(connection) == 1
        assert [r["id"] for r in rows(connection, "SELECT id FROM lease_requests")] == [gone]


def test_leases_end_with_their_vm(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        lease = hold(connection, pool)
        move_vm(connection, vm, VmState.STOPPING)
        assert row(connection, "leases", lease["id"])["ended"] == "gone"
