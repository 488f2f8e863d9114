"""Watches: one worker hears a VM, another takes over when it falls silent; and heartbeats."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from remuda.models import watches
from remuda.models.database import rows, transact
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from tests.integration.builders import age, make_pool, make_vms, row, together


def _claim(connection: Connection, worker: str, **more: object) -> list[int]:
    found = watches.claim_watches(connection, worker, ttl_s=30, **more)  # type: ignore[arg-type]
    return sorted(vm["id"] for vm in found)


def _unwatched(connection: Connection) -> list[int]:
    found = rows(
        connection,
        """SELECT id FROM vms WHERE watch_expires_at IS NULL OR watch_expires_at < now()
           ORDER BY id""",
    )
    return [vm["id"] for vm in found]


def test_a_watch_is_held_until_it_expires(engine: Engine) -> None:
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), 3)
        assert _unwatched(connection) == made
        assert _claim(connection, "a", vm_ids=made[:2]) == made[:2]
        assert _unwatched(connection) == made[2:]
        assert _claim(connection, "b") == made[2:]
        assert _claim(connection, "b", vm_ids=made) == made[2:]  # its own again
        assert watches.renew_watches(connection, "a", made, ttl_s=30) == set(made[:2])
        age(connection, "vms", made[:1], "watch_expires_at", 31)
        assert _unwatched(connection) == made[:1]
        assert _claim(connection, "b", vm_ids=made[:1]) == made[:1]
        assert watches.renew_watches(connection, "a", made, ttl_s=30) == {made[1]}
        assert watches.renew_watches(connection, "a", [], ttl_s=30) == set()
        watches.release_watches(connection, "b")
        assert _unwatched(connection) == [made[0], made[2]]


def test_what_the_claimer_learns(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        connection.execute(text("""UPDATE vms SET journal_n = 8, address = '{"home": "/x"}'"""))
        [found] = watches.claim_watches(connection, "a", ttl_s=30)
        assert (found["id"], found["journal_n"], found["address"]) == (vm, 8, {"home": "/x"})
        assert (found["backend"], found["pool_id"], found["state"]) == ("local", pool, "RUNNING")
        assert found["provider_id"] == f"local-{vm}"
        assert watches.vm_for_channel(connection, vm) == found


def test_which_vms_can_be_watched(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        new = make_vms(connection, pool, state=VmState.NEW)
        submitted = make_vms(connection, pool, state=VmState.SUBMITTED)
        running, stalled, stopping, halted = make_vms(connection, pool, 4)
        move_vm(connection, stalled, VmState.STALLED)
        for vm in (stopping, halted):
            move_vm(connection, vm, VmState.STOPPING)
        move_vm(connection, halted, VmState.HALTED)
        assert _claim(connection, "a") == [running, stalled]
        assert watches.vm_for_channel(connection, halted) is None
        assert watches.vm_for_channel(connection, new[0]) is None
        assert watches.vm_for_channel(connection, submitted[0]) is not None


def test_ones_own_watches_do_not_use_up_the_limit(engine: Engine) -> None:
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), 7)
        taken: list[int] = []
        for _ in range(4):
            taken += [vm for vm in _claim(connection, "a", most=2) if vm not in taken]
        assert sorted(taken) == made


def test_claiming_at_the_same_time(engine: Engine) -> None:
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), 24)

    def work(name: str) -> list[int]:
        mine: list[int] = []
        for _ in range(6):
            mine += transact(engine, lambda c: _claim(c, name, most=4))
        return sorted(set(mine))

    found = together(*[lambda n=n: work(f"w{n}") for n in range(5)])
    assert sorted(vm for mine in found for vm in mine) == made  # each once, none left out
    with engine.begin() as connection:
        for number, mine in enumerate(found):
            for vm in mine:
                assert row(connection, "vms", vm)["watcher"] == f"w{number}"


def test_taking_over_an_expired_watch_at_the_same_time(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        _claim(connection, "dead")
        age(connection, "vms", [vm], "watch_expires_at", 31)

    def work(name: str) -> list[int]:
        return transact(engine, lambda c: _claim(c, name, vm_ids=[vm]))

    found = together(*[lambda n=n: work(f"w{n}") for n in range(5)])
    assert sorted(found) == [[], [], [], [], [vm]]


def test_heartbeats(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        [halted] = make_vms(connection, pool, state=VmState.NEW)
        move_vm(connection, halted, VmState.STOPPING)
        move_vm(connection, halted, VmState.HALTED)
        age(connection, "vms", [vm], "heartbeat_at", 99)
        beats = [
            {
                "vm_id": v,
                "load": 0.5,
                "running_jobs": 2,
                "memory_free_bytes": 1 << 40,
                "disk_free_bytes": 7,
                "uptime_s": 1.5,
            }
            for v in (vm, halted, 12345)
        ]
        assert watches.record_heartbeats(connection, beats) == {halted: "halt"}
        assert watches.record_heartbeats(connection, []) == {}
        found, zombie = rows(connection, "SELECT * FROM heartbeats ORDER BY vm_id")
        assert {name: found[name] for name in beats[0]} == beats[0]
        assert zombie["vm_id"] == halted
        now = connection.scalar(text("SELECT now()"))
        assert (row(connection, "vms", vm)["heartbeat_at"], row(connection, "vms", vm)["load"]) == (
            now,
            0.5,
        )
