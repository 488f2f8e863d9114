"""Many who want leases at once, and VMs that come and go meanwhile: what may never happen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import IllegalTransition, StaleHolder
from remuda.models import lease_requests, leases, owners, requests
from remuda.models.database import rows, transact
from remuda.models.lease_requests import Wanted
from remuda.models.states import VmState
from remuda.models.vm_life import close_idle, move_vm
from tests.integration.builders import (
    age,
    assert_sound,
    make_pool,
    make_vms,
    make_wish,
    row,
    together,
)

RIVALS, CYCLES = 32, 6

# Each returns the rows that break it.
INVARIANTS = {
    "no more slots are leased than a VM has": """
        SELECT v.id FROM vms v JOIN leases l ON l.vm_id = v.id AND l.released_at IS NULL
        WHERE NOT l.for_jobs GROUP BY v.id HAVING sum(l.slots) > v.slots""",
    "no owner has more VMs than it may": """
        SELECT o.name FROM owners o
        WHERE (SELECT sum(c.count) FROM remuda_vms_of(ARRAY[o.id]) c) > o.max_vms""",
    "no owner has more VMs of a pool than that allows": """
        SELECT o.name, p.name FROM owners o CROSS JOIN pools p
        WHERE (SELECT c.count FROM remuda_vms_of(ARRAY[o.id]) c WHERE c.pool_id = p.id)
          > p.max_vms_per_owner""",
    "no group has more VMs than it may": """
        SELECT g.name FROM owners g WHERE EXISTS (SELECT FROM owners m WHERE m.group_id = g.id)
          AND (SELECT count(DISTINCT v.id) FROM owners m JOIN leases l ON l.owner_id = m.id
                 AND l.released_at IS NULL JOIN vms v ON v.id = l.vm_id OR v.bound_owner_id = m.id
               WHERE m.group_id = g.id AND v.state <> 'HALTED') > g.max_vms""",
    "a VM that was used serves one owner and sandbox": """
        SELECT l.vm_id FROM leases l JOIN vms v ON v.id = l.vm_id JOIN pools p ON p.id = v.pool_id
        WHERE p.isolation = 'sandbox' GROUP BY l.vm_id
        HAVING count(DISTINCT (l.owner_id, l.sandbox)) > 1""",
    "a VM on its way out has no lease": """
        SELECT l.id FROM leases l JOIN vms v ON v.id = l.vm_id
        WHERE l.released_at IS NULL AND v.state IN ('STOPPING', 'HALTED')""",
    "VMs count their leases": """
        SELECT v.id FROM vms v WHERE v.lease_count <>
          (SELECT count(*) FROM leases l WHERE l.vm_id = v.id AND NOT l.for_jobs)""",
}


def _broken(connection: Connection) -> dict[str, Any]:
    found = {name: rows(connection, query) for name, query in INVARIANTS.items()}
    return {name: bad for name, bad in found.items() if bad}


def _lease(connection: Connection, *pools: int, **more: Any) -> dict[str, Any] | None:
    wanted = {"owner": "bob", "sandbox": "", "slots": 1, "ttl_s": 60.0, **more}
    return leases.acquire(connection, pool_ids=pools, **wanted)


def test_thirty_two_rivals_and_vms_that_go(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    """Eight VMs, four owners with quotas, two of them in a group with one.

    Idle used VMs are replaced, dead holders' leases expire.
    """
    with engine.begin() as connection:
        first = make_pool(connection, "first", isolation="sandbox", max_vms_per_owner=2)
        second = make_pool(connection, "second")
        vms = make_vms(connection, first, 5) + make_vms(connection, second, 3)
        canary = make_vms(connection, make_pool(connection, "canary"))[0]
        before = row(connection, "vms", canary)
        for number in range(4):
            owners.change(connection, f"owner-{number}", {"max_vms": 3, "group": f"g{number % 2}"})
        owners.change(connection, "g0", {"max_vms": 4})
    command = [sys.executable, "-m", "tests.integration.lease_rivals", database_url, str(tmp_path)]
    command += [str(RIVALS), str(CYCLES), f"{first},{second}"]
    rivals = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    seen: dict[str, Any] = {}
    try:
        while rivals.poll() is None:
            with engine.connect() as connection:
                seen |= _broken(connection)
            transact(engine, leases.expire)
            _replace_idle(engine, first)
            transact(engine, lease_requests.serve)
    finally:
        rivals.kill()
        rivals.wait()
    assert rivals.returncode == 0
    assert seen == {}
    with engine.begin() as connection:
        assert _broken(connection) == {}
        done = rows(connection, "SELECT vm_id, ended FROM leases")
        assert len(done) > RIVALS
        assert {lease["vm_id"] for lease in done} >= set(vms)
        assert row(connection, "vms", canary) == before
        assert rows(connection, "SELECT id FROM lease_requests") == []
        assert_sound(connection)


def _replace_idle(engine: Engine, pool: int) -> None:
    def work(connection: Connection) -> None:
        used = rows(
            connection,
            "SELECT id FROM vms WHERE pool_id = :pool AND bound_owner_id IS NOT NULL"
            " AND state = 'RUNNING' ORDER BY id LIMIT 2",
            pool=pool,
        )
        for vm in close_idle(connection, [vm["id"] for vm in used]):
            move_vm(connection, vm, VmState.HALTED)
            make_vms(connection, pool)

    transact(engine, work)


@pytest.mark.parametrize("round_", range(3))
def test_renewal_against_expiry(engine: Engine, round_: int) -> None:
    """Either it lasts and the holder knows, or it is over and the holder knows that."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool, 4)
        held = [lease for _ in range(8) if (lease := _lease(connection, pool)) is not None]
        age(connection, "leases", [lease["id"] for lease in held], "expires_at", 60)

    def renew(lease: dict[str, Any]) -> bool:
        try:
            transact(engine, lambda c: leases.renew(c, lease["id"], lease["token"], ttl_s=60))
            return True
        except StaleHolder:
            return False

    *kept, _, _ = together(
        *[lambda lease=lease: renew(lease) for lease in held],
        lambda: bool(transact(engine, leases.expire)),
        lambda: bool(transact(engine, leases.expire)),
    )
    with engine.begin() as connection:
        open_ = {r["id"] for r in rows(connection, "SELECT id FROM leases WHERE ended IS NULL")}
        assert [lease["id"] in open_ for lease in held] == kept
        assert _broken(connection) == {}


@pytest.mark.parametrize("round_", range(3))
def test_release_against_expiry_and_revocation(engine: Engine, round_: int) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool, 4)
        held = [lease for _ in range(6) if (lease := _lease(connection, pool)) is not None]
        age(connection, "leases", [lease["id"] for lease in held], "expires_at", 61)
    released = together(
        *[
            lambda lease=lease: int(
                transact(engine, lambda c: leases.release(c, lease["id"], lease["token"])).done
            )
            for lease in held
        ],
        lambda: transact(engine, leases.expire),
    )
    assert sum(released) == len(held)  # each ended once
    with engine.begin() as connection:
        ended = [r["ended"] for r in rows(connection, "SELECT ended FROM leases")]
        assert ended.count("released") == sum(released[:-1])
        assert ended.count("expired") == released[-1]


@pytest.mark.parametrize("round_", range(3))
def test_acquisition_against_stall_stop_and_drain(engine: Engine, round_: int) -> None:
    """What is leased is not closed, and what is on its way out is not leased."""
    with engine.begin() as connection:
        pool = make_pool(connection, slots_per_vm=1)
        vms = make_vms(connection, pool, 8)
        for number in range(4):
            make_wish(connection, pool, owner=f"w{number}")

    def take() -> int:
        return sum(transact(engine, lambda c: _lease(c, pool)) is not None for _ in range(3))

    def change(connection: Connection) -> int:
        move_vm(connection, vms[0], VmState.STALLED)
        requests.drain_vm(connection, vms[1])
        return 0

    *_, closed = together(
        take,
        take,
        lambda: transact(engine, lease_requests.serve),
        lambda: transact(engine, change),
        lambda: len(transact(engine, lambda c: close_idle(c, vms[2:5]))),
    )
    with engine.begin() as connection:
        assert _broken(connection) == {}
        going = rows(connection, "SELECT id FROM vms WHERE state = 'STOPPING'")
        assert len(going) == closed
        assert_sound(connection)


def test_a_termination_begins_exactly_once(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))

    def end() -> bool:
        try:
            return transact(engine, lambda c: requests.start_termination(c, vm))
        except IllegalTransition:
            return False

    assert sum(together(*[end] * 8)) == 1
    with engine.begin() as connection:
        again = requests.start_termination(connection, vm, allowed=[VmState.STOPPING])
        assert again is False  # sent for once more, for it was asked for so


def test_quotas_hold_for_the_quick_and_for_those_in_turn(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, isolation="owner", slots_per_vm=1)
        make_vms(connection, pool, 8)
        owners.change(connection, "bob", {"max_vms": 3})

    def quick() -> int:
        return sum(transact(engine, lambda c: _lease(c, pool)) is not None for _ in range(3))

    def in_turn() -> int:
        wanted = Wanted(pool_ids=(pool,), owner="bob", slots=1)
        found = [transact(engine, lambda c: lease_requests.request(c, wanted)) for _ in range(3)]
        return sum(answer.lease is not None for answer in found)

    assert sum(together(quick, quick, in_turn, in_turn, in_turn, in_turn)) == 3
    assert quick() == 0  # whom a limit concerns is served in turn alone
    with engine.begin() as connection:
        assert _broken(connection) == {}
        bound = connection.scalar(text("SELECT count(*) FROM vms WHERE bound_owner_id IS NOT NULL"))
        assert bound == 3
