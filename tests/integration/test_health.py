"""Health checks against a real database, noop and real VMs: what fails, hangs, drains and goes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from remuda.config import load_settings
from remuda.models import health as models
from remuda.models.database import rows
from remuda.models.vm_life import insert_vms
from remuda.tasks import health, launching, machines, messages, parallel
from remuda.tasks.runtime import Runtime
from tests.integration.builders import assert_sound, dispatch, make_jobs, make_pool
from tests.integration.yard import Yard, yard

__all__ = ["yard"]

BAD = '["noop", "--exit", "1"]'


def check(yard: Yard) -> dict[int, str | None]:
    yard.sql("UPDATE vms SET check_began_at = NULL")
    return health.check_health(yard.runtime)


@pytest.fixture
def herd(yard: Yard) -> Yard:
    """Four running VMs that may fail one check."""
    yard.pool(instance_count=4, max_check_fails=1, check_timeout_s=5)
    for vm in yard.vms(4):
        assert yard.launch(vm)["state"] == "RUNNING"
    return yard


def test_well_vms(herd: Yard) -> None:
    assert check(herd) == dict.fromkeys((1, 2, 3, 4))
    found = herd.vm(1)
    assert (found["check_failures"], found["check_error"]) == (0, None)
    assert found["checked_at"] is not None
    assert health.check_health(herd.runtime) == {}  # not due before an interval is over


def test_an_idle_vm_that_fails_too_often_is_terminated(herd: Yard) -> None:
    herd.faults.livecheck.extend(["PermanentProviderError", "", "", ""] * 3)
    assert sum(error is not None for error in check(herd).values()) == 1
    [sick] = [vm for vm in (1, 2, 3, 4) if herd.vm(vm)["check_failures"]]
    herd.faults.livecheck.clear()
    check(herd)
    assert herd.vm(sick)["check_failures"] == 0  # a success begins anew
    herd.sql("UPDATE vms SET check_failures = 1 WHERE id = 2")
    herd.sql("UPDATE pools SET health_command = CAST(:bad AS jsonb)", bad=BAD)
    herd.sql("UPDATE vms SET check_began_at = now() WHERE id <> 2")
    herd.sql("UPDATE vms SET check_began_at = NULL WHERE id = 2")
    assert list(health.check_health(herd.runtime)) == [2]
    found = herd.vm(2)
    assert (found["state"], found["draining"]) == ("STOPPING", True)
    assert found["error"] == "health checks fail: the health command ended with exit code 1"
    assert ("remuda.terminate_vm", 2) in herd.sent


def test_a_busy_vm_is_drained(herd: Yard) -> None:
    def place(connection: Any) -> int:
        make_jobs(connection, herd.pool_id)
        return dispatch(connection)[0].vm_id

    busy = herd.runtime.transact(place)
    herd.sql("UPDATE pools SET health_command = CAST(:bad AS jsonb)", bad=BAD)
    herd.sql("UPDATE vms SET check_failures = 5 WHERE id = :id", id=busy)
    check(herd)
    assert (herd.vm(busy)["state"], herd.vm(busy)["draining"]) == ("RUNNING", True)


def test_a_check_that_is_itself_wrong_does_not_empty_the_pool(herd: Yard) -> None:
    """At most half of the pool is away at a time."""
    herd.sql("UPDATE pools SET health_command = CAST(:bad AS jsonb)", bad=BAD)
    for _ in range(3):
        check(herd)
    query = "SELECT state, count(*) AS n FROM vms GROUP BY 1 ORDER BY 1"
    found = herd.runtime.transact(lambda c: rows(c, query))
    assert {row["state"]: row["n"] for row in found} == {"RUNNING": 1, "STOPPING": 3} or {
        row["state"]: row["n"] for row in found
    } == {"RUNNING": 2, "STOPPING": 2}


def test_too_little_disk(herd: Yard) -> None:
    herd.sql("UPDATE pools SET min_free_disk_bytes = :most", most=2 << 40)
    assert all("bytes of disk are free" in str(error) for error in check(herd).values())


def test_a_provider_that_cannot_tell_is_no_failure(herd: Yard) -> None:
    herd.faults.livecheck.extend(["TransientProviderError"] * 4)
    assert check(herd) == dict.fromkeys((1, 2, 3, 4))


def test_hung_checks_fail_at_their_deadline(herd: Yard) -> None:
    """In parallel: four that hang take as long as one."""
    herd.sql("UPDATE pools SET check_timeout_s = 2.0")
    herd.faults.livecheck.extend(["hang"] * 4)
    began = time.monotonic()
    errors = check(herd)
    assert time.monotonic() - began < 8.0
    assert all("TimeoutError" in str(error) for error in errors.values())
    assert len(errors) == 4
    herd.faults.let_go()


def test_two_workers_share_the_checks(herd: Yard) -> None:
    herd.sql("UPDATE vms SET check_began_at = NULL")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(health.check_health(herd.runtime)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3, 4]


def test_two_hundred_checks_are_one_statement(herd: Yard, engine: Engine) -> None:
    for vm in herd.vms(200):
        herd.sql("UPDATE vms SET provider_id = 'p' WHERE id = :id", id=vm)
        herd.sql("UPDATE vms SET state = 'SUBMITTED' WHERE id = :id", id=vm)
        herd.sql("UPDATE vms SET state = 'RUNNING', running_at = now() WHERE id = :id", id=vm)
    with engine.begin() as connection:
        due = [row["id"] for row in models.claim_due(connection, most=500)]
        assert len(due) == 204
        statements: list[str] = []
        event.listen(
            connection, "before_cursor_execute", lambda *about: statements.append(about[2])
        )
        models.record(connection, {vm: None if vm % 2 else "bad" for vm in due})
        assert len(statements) == 1
    query = "SELECT count(*) AS n FROM vms WHERE check_failures = 1 AND check_error = 'bad'"
    assert herd.runtime.transact(lambda c: rows(c, query))[0]["n"] == 102


def test_a_work_that_hangs_is_not_begun_again() -> None:
    free = threading.Event()
    began: list[int] = []

    def hang() -> None:
        began.append(1)
        free.wait()

    works = {"stuck": hang, "quick": lambda: None}
    first = parallel.each(works, at_once=2, deadline_s=2.0)
    assert isinstance(first["stuck"], TimeoutError)
    assert first["quick"] is None
    again = parallel.each(works, at_once=1, deadline_s=5)
    assert isinstance(again["stuck"], TimeoutError)
    assert len(began) == 1
    free.set()


# ---- on a real runner


@pytest.fixture
def real(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """A runtime whose pool `herd` has one VM on this machine."""
    settings = load_settings(
        database_url=database_url, data_dir=tmp_path / "data", state_dir=tmp_path / "state"
    )
    runtime = Runtime(settings)
    monkeypatch.setattr(messages, "_send", lambda *_: None)

    def make(connection: Any) -> None:
        pool = make_pool(connection, heartbeat_s=0.5, check_timeout_s=10)
        insert_vms(connection, pool, 1)

    runtime.transact(make)
    assert launching.spawn_vm(runtime, 1)
    yield runtime
    runtime.transact(lambda c: c.execute(text("UPDATE vms SET state = 'STOPPING'")))
    assert machines.terminate_vm(runtime, 1)
    runtime.transact(assert_sound)
    runtime.close()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('fine')", None),
        ("import sys; print('no more room'); sys.exit(3)", "exit code 3: no more room"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9"),
        ("import time; time.sleep(600)", "took too long"),
        (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c',"
            " 'import time; time.sleep(600)'])",
            None,
        ),
    ],
)
def test_a_health_command_on_a_vm(real: Runtime, code: str, told: str | None) -> None:
    command = json.dumps([sys.executable, "-S", "-c", code])
    limit = 2 if told == "took too long" else 20

    def ask(connection: Any) -> None:
        connection.execute(
            text("UPDATE pools SET health_command = CAST(:c AS jsonb), check_timeout_s = :limit"),
            {"c": command, "limit": limit},
        )

    real.transact(ask)
    [error] = health.check_health(real).values()
    assert error is None if told is None else told in str(error)
