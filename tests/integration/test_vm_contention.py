"""Heartbeats, exits, stalls, stops and returns of the same VMs at once: what may never happen."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import IllegalTransition
from remuda.models import requests, vm_life
from remuda.models.database import rows, transact
from remuda.models.dispatch import Placed
from remuda.models.states import VmState
from remuda.models.watches import record_heartbeats
from remuda.tasks import recording
from tests.integration.builders import (
    age,
    assert_sound,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
    running_job,
    state,
    together,
)

VMS = 8

# Each returns the rows that break it.
INVARIANTS = {
    "what lives is on a VM that may still run it": """
        SELECT a.id FROM attempts a JOIN vms v ON v.id = a.vm_id
        WHERE a.state IN ('PLACED', 'STARTED') AND v.state IN ('STALLED', 'HALTED')""",
    "a job whose attempt ended has ended": """
        SELECT j.id FROM jobs j JOIN attempts a ON a.job_id = j.id
        WHERE a.state = 'COLLECTED' AND (j.state, j.reason) <> ('TERMINATED', 'OK')""",
    "a job whose attempt is lost waits again": """
        SELECT j.id FROM jobs j JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
        WHERE a.state = 'LOST' AND j.state <> 'NEW'""",
    "no job has two live attempts": """
        SELECT job_id FROM attempts WHERE state IN ('PLACED', 'STARTED')
        GROUP BY 1 HAVING count(*) > 1""",
    "who was told to stop never works again": """
        SELECT v.id FROM vms v JOIN events e ON e.kind = 'vm' AND e.subject_id = v.id
        WHERE e.to_state = 'STOPPING' AND v.state NOT IN ('STOPPING', 'STALLED')""",
}


def _silent(connection: Connection, vms: list[int]) -> None:
    """Have the VMs been silent past their interval, while somebody listened."""
    connection.execute(
        text(
            """UPDATE vms SET watcher = 'w', watch_renewed_at = now(),
                   watch_expires_at = now() + interval '1 min' WHERE id = ANY(:vms)"""
        ),
        {"vms": vms},
    )
    for column in ("state_changed_at", "heartbeat_at"):
        age(connection, "vms", vms, column, 60)
    vm_life.note_sweep(connection, "declare_stalled", gap_s=15)
    connection.execute(text("UPDATE sweeps SET since = now() - interval '1 hour'"))


def _stall_one(connection: Connection) -> bool:
    for vm in vm_life.silent_vms(connection, most=1):
        vm_life.move_vm(connection, vm, VmState.STALLED)
        recording.lose_attempts(connection, vm, "its VM sent no heartbeats")
        return True
    return False


def _end(connection: Connection, placed: Placed) -> None:
    record(connection, placed.vm_id, ended(placed.attempt_id))


def _beat(connection: Connection, vms: list[int]) -> int:
    fields = {"load": 0.1, "running_jobs": 1, "uptime_s": 1.0}
    fields |= {"memory_free_bytes": 1, "disk_free_bytes": 1}
    return len(record_heartbeats(connection, [{"vm_id": vm, **fields} for vm in vms]))


@pytest.mark.parametrize("round_", range(4))
def test_heartbeat_against_stall_against_stop(engine: Engine, round_: int) -> None:
    """Whoever comes first, each job ends once or waits again, and no VM is half of anything."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1, heartbeat_s=1, stalling_interval_s=30)
        vms = make_vms(connection, pool, VMS)
        running = [running_job(connection, pool)[1] for _ in vms]
        _silent(connection, vms)

    def stall() -> int:
        return sum(iter(lambda: int(transact(engine, _stall_one)), 0))

    def stop() -> int:
        for vm in vms[: VMS // 2]:
            transact(engine, partial(requests.stop_vm, vm_id=vm, now=True))
        return 0

    def exits() -> int:
        for placed in reversed(running):
            transact(engine, partial(_end, placed=placed))
        return 0

    def come_back() -> int:
        for vm in vms:
            with contextlib.suppress(IllegalTransition):  # it is not stalled, or never comes back
                transact(engine, partial(vm_life.move_vm, vm_id=vm, target=VmState.RUNNING))
        return 0

    beats = [partial(transact, engine, partial(_beat, vms=vms[i::2])) for i in (0, 1)]
    together(*beats, stall, stall, stop, exits, come_back)
    with engine.begin() as connection:
        broken = {name: rows(connection, query) for name, query in INVARIANTS.items()}
        assert {name: found for name, found in broken.items() if found} == {}
        assert all("STOPPING" in path(connection, "vm", vm) for vm in vms[: VMS // 2])
        heard = connection.scalar(text("SELECT count(*) FROM heartbeats"))
        assert heard == VMS
        assert_sound(connection)


def test_a_vm_that_comes_back_changes_nothing_of_what_it_lost(engine: Engine) -> None:
    """Its late reports are of an attempt that was replaced."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1, heartbeat_s=1, stalling_interval_s=30)
        [vm] = make_vms(connection, pool)
        job, old = running_job(connection, pool)
        _silent(connection, [vm])
        assert _stall_one(connection)
        [other] = make_vms(connection, pool)
        [new] = dispatch(connection)
        assert (new.job_id, new.vm_id) == (job, other)
        vm_life.move_vm(connection, vm, VmState.RUNNING)
        assert record(connection, vm, ended(old.attempt_id, exit_code=7, reason="NONZERO")) == set()
        assert state(connection, "attempt", old.attempt_id) == "LOST"
        assert state(connection, "job", job) == "SUBMITTED"
        assert record(connection, other, ended(new.attempt_id)) == {new.attempt_id}
        assert state(connection, "job", job) == "TERMINATED"
        [after] = make_jobs(connection, pool)
        assert [p.vm_id for p in dispatch(connection) if p.job_id == after] != []
        assert_sound(connection)
