"""What the metrics say of a real database: gauges as things are, counters that agree and only grow."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from remuda.errors import BrokerUnavailable
from remuda.metrics.collector import SystemCollector
from remuda.models import measuring
from remuda.models.database import make_engine
from tests.integration import builders as make


def told(collector: SystemCollector) -> dict[tuple[str, str], float]:
    """Return what is exported, by name and labels."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def counters(collector: SystemCollector) -> dict[tuple[str, str], float]:
    """Return the counters and histograms that are counted from rows."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {
        key: value
        for key, value in told(collector).items()
        if key[0].endswith(ends) and "heartbeat" not in key[0] and "unowned" not in key[0]
    }


def exporter(engine: Engine) -> SystemCollector:
    """Return a new exporter that keeps nothing."""
    return SystemCollector(engine, lambda: None, cache_s=0)


@pytest.fixture
def busy(engine: Engine) -> int:
    """A pool with two VMs; five jobs, three of them placed. Returns the pool."""
    with engine.begin() as connection:
        pool = make.make_pool(connection, "sim")
        make.make_vms(connection, pool, 2)
        make.make_jobs(connection, pool, 3)
        make.dispatch(connection)
        make.make_jobs(connection, pool, 2)
    return pool


def end(engine: Engine, *, lost: bool = False) -> None:
    """End the oldest live attempt."""
    with engine.begin() as connection:
        found = connection.execute(
            text("SELECT id, vm_id FROM attempts WHERE state = 'PLACED' ORDER BY id LIMIT 1")
        ).one()
        make.record(connection, found.vm_id, (make.lost if lost else make.ended)(found.id))


def test_gauges_say_how_things_are(engine: Engine, busy: int) -> None:
    found = told(exporter(engine))
    assert found["remuda_database_up", ""] == found["remuda_broker_up", ""] == 1
    assert found["remuda_queue_jobs", "sim,alice"] == 2
    assert found["remuda_jobs", "sim,submitted"] == 3
    assert found["remuda_vms", "sim,running"] == 2
    assert (found["remuda_slots", "sim"], found["remuda_slots_used", "sim"]) == (4, 3)
    assert found["remuda_leases", "sim,jobs"] == 2
    assert found["remuda_vm_heartbeat_age_seconds_bucket", "sim,+Inf"] == 2
    assert found["remuda_database_connections", ""] >= 1


def test_counters_agree_whenever_an_exporter_began(
    engine: Engine, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began early and moved its mark on, one that did not, and one that begins now."""
    early, lazy = exporter(engine), exporter(engine)
    first = counters(early)
    counters(lazy)
    assert first["remuda_placements_total", "sim"] == 3
    assert first["remuda_jobs_submitted_total", ""] == 5
    assert first["remuda_vm_boot_seconds_count", "sim"] == 2
    for lost, settled_s in ((False, 0.0), (True, 0.0), (False, 15.0)):
        monkeypatch.setattr(measuring, "SETTLED_S", settled_s)
        end(engine, lost=lost)
        with engine.begin() as connection:
            make.dispatch(connection)
            make.make_vms(connection, busy)
        now = counters(early)
        assert now == counters(exporter(engine))
        assert all(now[key] >= value for key, value in first.items())
        first = now
    assert counters(lazy) == first
    assert first["remuda_attempts_total", "sim,ok"] == 2
    assert first["remuda_attempts_total", "sim,lost"] == 1
    assert first["remuda_jobs_ended_total", "ok"] == 2
    assert first["remuda_vms_made_total", "sim"] == 5


def test_a_vm_that_comes_back_has_booted_once(
    engine: Engine, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remuda.models.states import VmState
    from remuda.models.vm_life import move_vm

    monkeypatch.setattr(measuring, "SETTLED_S", 0.0)
    early = exporter(engine)
    counters(early)
    with engine.begin() as connection:
        vm = connection.scalar(text("SELECT min(id) FROM vms"))
        assert vm is not None
        move_vm(connection, vm, VmState.STALLED)
        move_vm(connection, vm, VmState.RUNNING)
    assert counters(early)["remuda_vm_boot_seconds_count", "sim"] == 2


def test_unowned_machines_are_counted_in_seconds(engine: Engine, busy: int) -> None:
    insert = text("""
        INSERT INTO unowned_machines (provider, provider_id, tag, pool_id, first_seen_at, last_seen_at,
                                      gone_at)
        VALUES ('local', 'a', 't', :pool, now() - interval '100 s', now(), NULL),
               ('local', 'b', 't', :pool, now() - interval '50 s', now(), now() - interval '20 s'),
               ('local', 'c', 'x', NULL, now() - interval '999 s', now(), NULL)""")
    with engine.begin() as connection:
        connection.execute(insert, {"pool": busy})
    found = told(exporter(engine))
    assert found["remuda_unowned_vms", "sim"] == 1
    assert found["remuda_unowned_vm_seconds_total", "sim"] == pytest.approx(130, abs=20)


def test_requests_for_a_lease_are_counted(engine: Engine, busy: int) -> None:
    insert = text("""
        INSERT INTO lease_requests (pool_ids, owner_id, ttl_s, created_at, expires_at, refused)
        SELECT ARRAY[CAST(:pool AS bigint)], id, 60, now() - interval '30 s',
               now() + interval '90 s', refused
        FROM owners, (VALUES (true), (false), (false)) AS r(refused)""")
    with engine.begin() as connection:
        connection.execute(insert, {"pool": busy})
    found = told(exporter(engine))
    assert found["remuda_lease_requests", "sim"] == 2
    assert found["remuda_lease_request_oldest_age_seconds", "sim"] == pytest.approx(30, abs=20)


def test_what_does_not_answer_is_told(engine: Engine, busy: int) -> None:
    def away() -> None:
        raise BrokerUnavailable("the broker is away")

    nowhere = make_engine("postgresql://nobody@127.0.0.1:1/nothing")
    collector = SystemCollector(nowhere, away, cache_s=0)
    found = told(collector)
    assert found["remuda_database_up", ""] == found["remuda_broker_up", ""] == 0
    assert found["remuda_exporter_errors_total", "database"] == 1
    assert not [name for name, _ in found if name.startswith("remuda_vms")]
    collector._engine = engine
    assert told(collector)["remuda_database_up", ""] == 1
    nowhere.dispose()


def test_many_scrapes_are_one_look(engine: Engine, busy: int) -> None:
    collector = SystemCollector(engine, lambda: None, cache_s=60)
    before = told(collector)
    end(engine)
    assert told(collector) == before
