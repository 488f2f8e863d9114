"""Secrets on their way to jobs: there they are, and nowhere else is anything of them."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from remuda import JobSpec
from tests.database import plain
from tests.system import System, eventually, running_system

VALUE = uuid.uuid4().hex  # in no file, this one included
HASH = 'printf %s "$TOKEN" | sha256sum; '


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


def _database(url: str) -> bytes:
    """Return all rows of all tables, as text."""
    found = []
    with psycopg.connect(plain(url)) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        for (table,) in tables:
            query = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(table))
            found += [row[0] for row in connection.execute(query).fetchall()]
    return "\n".join(found).encode()


def _told(url: str, folder: Path, value: str = VALUE) -> list[str]:
    """Return where the value can be read: rows, files, and words of processes."""
    needles = (value.encode(), value.encode().hex().encode())
    places = {"the database": _database(url)}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                places[str(path)] = path.read_bytes()
            except FileNotFoundError:
                continue
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            places[str(path)] = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert len(places) > 20
    return [name for name, data in places.items() if any(each in data for each in needles)]


def test_only_the_job_knows_it(system: System, tmp_path: Path) -> None:
    wanted = hashlib.sha256(VALUE.encode()).hexdigest()
    go = tmp_path / "go"
    with system.client() as client:
        ring = Path(client.init_secrets())
        client.put_secret("TOKEN", VALUE)
        pool = client.create_pool("sim", slots_per_vm=2, secrets={"prefixes": ["TOK"]}).submit()
        short = client.submit(JobSpec(HASH, shell=True), pool="sim")
        assert short.result(timeout_s=60).stdout.decode().split()[0] == wanted
        script = f"{HASH} until test -e {go}; do sleep 0.05; done"
        long = client.submit(
            JobSpec(script, shell=True, follow=True, inputs=[(__file__, "x")]), pool="sim"
        )
        eventually("it runs", lambda: long.refresh().state == "RUNNING")
        assert _told(system.database_url, tmp_path) == []
        seen = _told(system.database_url, tmp_path, "until test -e")  # what is looked for is found
        assert "the database" in seen
        assert any(place.startswith("/proc/") for place in seen)
        client.rotate_secrets()
        go.touch()
        assert long.result(timeout_s=60).stdout.decode().split()[0] == wanted
        again = client.submit(JobSpec(HASH, shell=True), pool="sim")
        assert again.result(timeout_s=60).stdout.decode().split()[0] == wanted
        assert _told(system.database_url, tmp_path) == []
        # Without the key a job fails, and says why.
        shutil.move(ring, ring.with_suffix(".away"))
        lost = client.submit(JobSpec(HASH, shell=True), pool="sim").wait(60)
        assert lost.reason != "OK"
        assert "secrets cannot be had: there is no key ring" in (lost.message or "")
        assert pool.update().state != "FAILURE"
