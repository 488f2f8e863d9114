"""Who is silent, who listened, and which VMs come back."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import IllegalTransition
from remuda.models import vm_life
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.watches import claim_watches
from tests.integration.builders import age, assert_sound, make_pool, make_vms, path, reach_vm


def _sweep(connection: Connection, *, since_s: float = 3600) -> list[int]:
    """Return the silent VMs, as if the sweeps had run for that long and somebody listened."""
    connection.execute(
        text(
            """UPDATE vms SET watcher = 'w', watch_renewed_at = now(),
                   watch_expires_at = now() + interval '1 min'
               WHERE state = 'RUNNING'"""
        )
    )
    vm_life.note_sweep(connection, "declare_stalled", gap_s=15)
    connection.execute(
        text("UPDATE sweeps SET since = now() - make_interval(secs => :s)"), {"s": since_s}
    )
    return vm_life.silent_vms(connection)


def _sweep_only(connection: Connection) -> list[int]:
    """Return the silent VMs, as if the sweeps had run for an hour, whoever listens."""
    vm_life.note_sweep(connection, "declare_stalled", gap_s=15)
    connection.execute(text("UPDATE sweeps SET since = now() - interval '1 hour'"))
    return vm_life.silent_vms(connection)


@pytest.mark.parametrize(
    ("here", "quiet_s", "silent"),
    [
        (VmState.RUNNING, 25, False),
        (VmState.RUNNING, 35, True),
        (VmState.SUBMITTED, 85, False),  # it boots, and has its pool's launch_timeout_s for that
        (VmState.SUBMITTED, 95, True),
        (VmState.WAIT_SSH_CONTEXT, 85, False),
        (VmState.WAIT_SSH_CONTEXT, 95, True),
        (VmState.CONTEXTUALIZING, 65, True),
        (VmState.STOPPING, 65, True),
        (VmState.NEW, 999, False),
        (VmState.STALLED, 999, False),
        (VmState.ERROR, 999, False),
        (VmState.HALTED, 999, False),
    ],
)
def test_who_is_silent(engine: Engine, here: VmState, quiet_s: float, silent: bool) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, heartbeat_s=1, stalling_interval_s=30, launch_timeout_s=90)
        [vm] = make_vms(connection, pool, state=VmState.NEW)
        reach_vm(connection, vm, here)
        age(connection, "vms", [vm], "state_changed_at", quiet_s)
        age(connection, "vms", [vm], "heartbeat_at", quiet_s)
        assert _sweep(connection) == ([vm] if silent else [])
        assert _sweep(connection, since_s=20) == []  # nobody could have heard it before


def test_a_heartbeat_counts(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        age(connection, "vms", [vm], "state_changed_at", 999)
        assert _sweep(connection) == []
        age(connection, "vms", [vm], "heartbeat_at", 999)
        assert _sweep(connection) == [vm]


def test_only_a_watched_vm_is_silent(engine: Engine) -> None:
    """Nobody heard the others; whoever takes up the watch listens for an interval first."""
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection, heartbeat_s=1, stalling_interval_s=30))
        for column in ("state_changed_at", "heartbeat_at"):
            age(connection, "vms", [vm], column, 25)
        claim_watches(connection, "a", ttl_s=10)
        for column in ("state_changed_at", "heartbeat_at", "listening_since", "watch_expires_at"):
            age(connection, "vms", [vm], column, 20)
        assert _sweep_only(connection) == []  # the watch is over
        assert [v["id"] for v in claim_watches(connection, "b", ttl_s=10)] == [vm]
        assert _sweep_only(connection) == []  # b has just begun
        age(connection, "vms", [vm], "listening_since", 31)
        assert _sweep_only(connection) == [vm]
        assert [v["id"] for v in claim_watches(connection, "b", ttl_s=10)] == [vm]
        assert _sweep_only(connection) == [vm]  # claiming again is no excuse


def test_a_dead_watcher_hears_nothing(engine: Engine) -> None:
    """Long after a worker died, even before its watch is over, its VMs are not silent."""
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection, heartbeat_s=1, stalling_interval_s=5))
        claim_watches(connection, "a", ttl_s=600)
        for column in ("state_changed_at", "heartbeat_at", "listening_since", "watch_renewed_at"):
            age(connection, "vms", [vm], column, 300)
        assert _sweep_only(connection) == []


def test_a_vm_that_fell_silent_under_its_watcher_stalls_under_the_next(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection, heartbeat_s=1, stalling_interval_s=30))
        claim_watches(connection, "a", ttl_s=10)
        for column in ("state_changed_at", "heartbeat_at", "listening_since"):
            age(connection, "vms", [vm], column, 60)
        age(connection, "vms", [vm], "watch_expires_at", 11)
        claim_watches(connection, "b", ttl_s=10)
        assert _sweep_only(connection) == [vm]


def test_a_vm_without_a_name_at_the_provider_is_not_waited_for(engine: Engine) -> None:
    """Stopped before it was made: nothing to be heard of, and STALLED would be no row at all."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        [nameless] = make_vms(connection, pool, state=VmState.NEW)
        [named] = make_vms(connection, pool)
        for vm in (nameless, named):
            vm_life.move_vm(connection, vm, VmState.STOPPING)
            age(connection, "vms", [vm], "state_changed_at", 999)
            age(connection, "vms", [vm], "heartbeat_at", 999)
        assert _sweep(connection) == [named]


def test_sweeps_that_paused_begin_anew(engine: Engine) -> None:
    with engine.begin() as connection:
        vm_life.note_sweep(connection, "s", gap_s=15)
        [first] = rows(connection, "SELECT * FROM sweeps")
        connection.execute(
            text(
                """UPDATE sweeps SET since = now() - interval '1 hour',
                     last_run_at = now() - interval '10 s'"""
            )
        )
        vm_life.note_sweep(connection, "s", gap_s=15)
        [second] = rows(connection, "SELECT * FROM sweeps")
        assert second["since"] < first["since"]
        connection.execute(text("UPDATE sweeps SET last_run_at = now() - interval '20 s'"))
        vm_life.note_sweep(connection, "s", gap_s=15)
        [third] = rows(connection, "SELECT * FROM sweeps")
        assert third["since"] == third["last_run_at"]


def test_a_stalled_vm_comes_back_unless_replaced(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, stalling_interval_s=30)
        back, replaced, stopped, silent = make_vms(connection, pool, 4)
        vm_life.move_vm(connection, stopped, VmState.STOPPING)
        for vm in (back, replaced, stopped, silent):
            vm_life.move_vm(connection, vm, VmState.STALLED)
        connection.execute(text("UPDATE vms SET replaced = true WHERE id = :vm"), {"vm": replaced})
        age(connection, "vms", [silent], "state_changed_at", 31)
        assert vm_life.stalled_for_good(connection) == [replaced, stopped, silent]
        vm_life.move_vm(connection, back, VmState.RUNNING)
        for vm in (replaced, stopped):
            with pytest.raises(IllegalTransition, match="STALLED"):
                vm_life.move_vm(connection, vm, VmState.RUNNING)
            vm_life.move_vm(connection, vm, VmState.STOPPING)
        assert path(connection, "vm", back).endswith("RUNNING STALLED RUNNING")
        assert_sound(connection)


def test_two_stall_sweeps_share_the_work(engine: Engine) -> None:
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), 4)
        for column in ("state_changed_at", "heartbeat_at"):
            age(connection, "vms", made, column, 999)
        _sweep(connection)
    with engine.connect() as first, engine.connect() as second:
        assert vm_life.silent_vms(first) == made
        assert vm_life.silent_vms(second) == []
        for vm in made:
            vm_life.move_vm(first, vm, VmState.STALLED)
        first.commit()
        assert vm_life.silent_vms(second) == []
