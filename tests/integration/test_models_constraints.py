"""Bad rows cannot be written, by whatever statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from remuda.models.database import make_engine
from tests.database import _fresh
from tests.integration.builders import TABLES, born, row


@pytest.fixture(scope="module")
def shared(server_url: str, template: str) -> Iterator[Engine]:
    """One database for the whole module; each test rolls its transaction back."""
    with contextmanager(_fresh)(server_url, template) as url:
        made = make_engine(url)
        yield made
        made.dispose()


@pytest.fixture
def connection(shared: Engine) -> Iterator[Connection]:
    with shared.connect() as made:
        yield made
        made.rollback()


BAD_ROWS = {
    "job": [
        "state = 'SLEEPING'",
        "cores = 0",
        "cores = 100001",
        "memory_bytes = 0",
        "memory_bytes = -1",
        "walltime_s = 0",
        "walltime_s = 'NaN'",
        "walltime_s = 'Infinity'",
        "priority = 1001",
        "max_attempts = 0",
        "reason = 'OK'",
        "reason = 'BECAUSE', state = 'TERMINATED', ended_at = now()",
        "ended_at = now()",
        "state = 'TERMINATED', ended_at = now()",
        "state = 'TERMINATED', reason = 'OK'",
        "pool_id = 0",
        "spec_id = 0",
        "array_id = 0",
    ],
    "attempt": [
        "state = 'SLEEPING'",
        "reason = 'BECAUSE'",
        "job_id = 0",
        "vm_id = 0",
        "lease_id = 0",
    ],
    "vm": [
        "state = 'SLEEPING'",
        "slots = 0",
        "slots = 100001",
        "memory_bytes = 0",
        "state = 'SUBMITTED'",  # without a provider's id
        "state = 'HALTED'",
        "halted_at = now()",
        "watcher = 'w'",
        "watch_expires_at = now()",
        "name = NULL",
        "token = NULL",
    ],
    "image": ["state = 'SLEEPING'", "name = NULL"],
    "pool": [
        "state = 'SLEEPING'",
        "name = ''",
        "name = 'a/b'",
        "name = '-a'",
        "name = repeat('a', 64)",
        "isolation = 'none'",
        "slots_per_vm = 0",
        "memory_bytes_per_vm = 0",
        "instance_count = -1",
        "instance_count = 100001",
        "elastic_minimum_slots = 2, elastic_maximum_slots = 1",
        "elastic_minimum_slots = -1",
        "elastic_maximum_slots = 10000001",
        "elastic_minimum_idle_slots = -1",
        "elastic_minimum_idle_time_s = -1",
        "elastic_minimum_idle_time_s = 'NaN'",
        "elastic_resize_factor = 0",
        "elastic_resize_factor = 1.1",
        "elastic_resize_factor = 'NaN'",
        "elastic_resize_period_s = 0.5",
        "elastic_resize_period_s = 'NaN'",
        "elastic_resize_period_s = 'Infinity'",
        "heartbeat_s = 0",
        "heartbeat_s = 'NaN'",
        "stalling_interval_s = heartbeat_s",
        "stalling_interval_s = 'NaN'",
        "state = 'CLOSED'",
        "ended_at = now()",
        "owner_id = 0",
        "image_id = 0",
    ],
}


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, changes in BAD_ROWS.items() for change in changes]
)
def test_bad_rows_cannot_be_written(connection: Connection, kind: str, change: str) -> None:
    key = born(connection, kind)
    before = row(connection, TABLES[kind], key)
    refused = connection.begin_nested()
    with pytest.raises(DBAPIError):
        connection.execute(text(f"UPDATE {TABLES[kind]} SET {change} WHERE id = :id"), {"id": key})
    refused.rollback()
    assert row(connection, TABLES[kind], key) == before


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO owners (name) VALUES ('')",
        "INSERT INTO owners (name) VALUES (repeat('x', 201))",
        "INSERT INTO owners (name, weight) VALUES ('x', 0)",
        "INSERT INTO owners (name, weight) VALUES ('x', 'NaN')",
        "INSERT INTO owners (name) SELECT name FROM owners",
        "INSERT INTO arrays (owner_id, size) SELECT id, 0 FROM owners",
        "INSERT INTO attempts (job_id, epoch, vm_id, lease_id, cores)"
        " SELECT job_id, 2, vm_id, lease_id, 1 FROM attempts",  # a second live one
        "INSERT INTO attempts (job_id, epoch, vm_id, lease_id, cores, state)"
        " SELECT job_id, epoch, vm_id, lease_id, 1, 'LOST' FROM attempts",  # the same epoch
        "INSERT INTO leases (vm_id, owner_id, for_jobs, slots)"
        " SELECT vm_id, owner_id, true, 1 FROM leases",  # a second one for the owner's jobs
        "INSERT INTO leases (vm_id, owner_id, for_jobs, slots)"
        " SELECT vm_id, owner_id, false, 1 FROM leases",  # for ever
        "UPDATE leases SET slots = 0",
        "INSERT INTO lease_requests (pool_ids, owner_id, slots, ttl_s, expires_at)"
        " SELECT ARRAY[1], id, 0, 60, now() FROM owners",
        "INSERT INTO lease_requests (pool_ids, owner_id, slots, ttl_s, expires_at)"
        " SELECT '{}', id, 1, 60, now() FROM owners",  # for no pool
        "INSERT INTO lease_requests (pool_ids, owner_id, slots, ttl_s, expires_at)"
        " SELECT ARRAY[1], id, 1, 'NaN', now() FROM owners",
        "UPDATE leases SET ended = 'expired'",  # while it is held
        "UPDATE leases SET ended = 'lost', released_at = now()",
        "UPDATE owners SET max_vms = -1",
        "UPDATE pools SET reuse_max_count = -1",
        "UPDATE pools SET reuse_opportunity_s = 'NaN'",
        "UPDATE vms SET lease_count = 1",  # since never
        "INSERT INTO attempt_outputs (attempt_id, kind, name, size)"
        " SELECT id, 'stream', 'stdout', 0 FROM attempts",  # neither here nor there
        "INSERT INTO attempt_outputs (attempt_id, kind, name, size, data, url)"
        " SELECT id, 'stream', 'stdout', 0, '', 'file:///' FROM attempts",
        "INSERT INTO attempt_outputs (attempt_id, kind, name, size, data)"
        " SELECT id, 'tape', 'stdout', 0, '' FROM attempts",
        "INSERT INTO pools (name, owner_id, image_id, provider, backend, slots_per_vm)"
        " SELECT name, owner_id, image_id, provider, backend, 1 FROM pools",
        "INSERT INTO transitions SELECT * FROM transitions",
        "DELETE FROM pools",
        "DELETE FROM vms",
    ],
)
def test_bad_inserts_are_refused(connection: Connection, statement: str) -> None:
    born(connection, "attempt")
    with pytest.raises(IntegrityError):
        connection.execute(text(statement))
