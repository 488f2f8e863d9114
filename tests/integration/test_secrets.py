"""Secrets through the client: stored encrypted, given by name or prefix, rotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from remuda import BadInput, Client, JobSpec, Refused, UnknownPool
from remuda.config import load_settings
from remuda.errors import ConfigError, SecretUnreadable, UnknownSecret
from remuda.keyring import KeyRing
from remuda.models import starting
from remuda.models.database import rows
from remuda.tasks.runtime import Runtime
from remuda.tasks.secret_delivery import secrets_for
from remuda.tasks.start_jobs import start_job
from tests.integration.workbench import Workbench

VALUE = "correct-horse-battery"


@pytest.fixture
def ring(bench: Workbench) -> KeyRing:
    made = KeyRing(bench.settings)
    made.create()
    return made


def _given(bench: Workbench, job_id: int) -> dict[str, str]:
    """Return the environment a job would be started with."""
    _, vm = bench.live(job_id)
    runtime = Runtime(bench.settings)
    with bench.engine.begin() as connection:
        found = [r for r in starting.to_start(connection, vm) if r["job_id"] == job_id]
    [row] = found
    started = start_job(row, secrets_for(runtime, [row]))
    runtime.close()
    assert VALUE not in repr(started)
    return dict(started.env)


def test_the_owners_jobs_are_given_what_their_pool_says(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client:
        for name in ("TOKEN", "AWS_KEY", "AWS_ID", "OTHER"):
            client.put_secret(name, f"{VALUE} {name}")
        pool = client.create_pool("sim", secrets={"names": ["TOKEN"], "prefixes": ["AWS_"]})
        assert pool.secrets == {"names": ["TOKEN"], "prefixes": ["AWS_"]}
        bench.pool(constants={"AWS_ID": "constant", "X": "1"})
        herd = client.pool("herd")
        assert herd.secrets == {}
        plain = client.submit(JobSpec("true"), pool="herd")
        assert "TOKEN" not in _given(bench, plain.id)
        bench.end(plain.id)
        herd.secrets = {"names": ["TOKEN"], "prefixes": ["AWS_"]}
        herd.commit()
        with bench.engine.begin() as connection:
            connection.execute(
                text("UPDATE pools SET owner_id = (SELECT id FROM owners WHERE name = 'alice')")
            )
        mine = client.submit(JobSpec("true", environment={"AWS_KEY": "own"}), pool="herd")
        given = _given(bench, mine.id)
        assert (given["TOKEN"], given["AWS_ID"]) == (f"{VALUE} TOKEN", f"{VALUE} AWS_ID")
        assert given["AWS_KEY"] == "own"  # what the job says itself goes first
        assert "OTHER" not in given
        bench.end(mine.id)
        with Client(bench.settings, owner="bob") as bob:
            theirs = bob.submit(JobSpec("true"), pool="herd")
            assert "TOKEN" not in _given(bench, theirs.id)
        assert [(s["name"], s["pools"]) for s in client.secrets()] == [
            ("AWS_ID", ["herd", "sim"]), ("AWS_KEY", ["herd", "sim"]), ("OTHER", []),
            ("TOKEN", ["herd", "sim"])]  # fmt: skip


def test_the_newest_value_counts_and_is_nowhere_in_the_clear(
    bench: Workbench, ring: KeyRing
) -> None:
    with bench.client() as client:
        client.put_secret("TOKEN", "first")
        client.put_secret("TOKEN", VALUE)
        assert len(client.secrets()) == 1
        assert VALUE not in str(client.secrets())
        with bench.engine.begin() as connection:
            [row] = rows(connection, "SELECT * FROM secrets")
            assert VALUE.encode() not in bytes(row["stored"])
            assert ring.decrypt("alice", "TOKEN", bytes(row["stored"])) == VALUE


WRONG: list[tuple[Any, Any]] = [
    ("", VALUE), ("a b", VALUE), ("1A", VALUE), ("A-B", VALUE), ("x" * 201, VALUE),
    ("A\n", VALUE), ("REMUDA_X", VALUE), (5, VALUE), ("A=", VALUE), ("Ä", VALUE),
    ("A", ""), ("A", VALUE + "\0"), ("A", VALUE * 4000), ("A", b"bytes"), ("A", None),
    ("A", VALUE + "\ud800"),
]  # fmt: skip


def test_wrong_secrets_are_refused_and_nothing_of_them_is_told(
    bench: Workbench, ring: KeyRing
) -> None:
    with bench.client() as client:
        for name, value in WRONG:
            with pytest.raises(BadInput) as caught:
                client.put_secret(name, value)
            assert "horse" not in f"{caught.value!r} {caught.value}"
        assert client.secrets() == []


NOT_THERE: list[Any] = [
    {"names": ["NONE"]}, {"names": ["TOKEN", "NONE"]}, {"names": "TOKEN"}, {"name": ["TOKEN"]},
    ["TOKEN"], {"prefixes": [""]}, {"prefixes": ["a-"]}, {"names": [5]},
]  # fmt: skip


def test_secrets_that_do_not_exist_are_refused_at_the_call(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client:
        client.put_secret("TOKEN", VALUE)
        pool = client.create_pool("sim")
        for wrong in NOT_THERE:
            with pytest.raises(BadInput, match="secrets"):
                client.create_pool("other", secrets=wrong)
            with pytest.raises(BadInput, match="secrets"):
                pool.secrets = wrong
            with pytest.raises(BadInput, match="secrets"):
                pool.set(secrets=wrong)
        with pytest.raises(UnknownPool):
            client.pool("other")
        assert client.pool("sim").secrets == {}


def test_secrets_of_others_are_not_there(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client, Client(bench.settings, owner="bob") as bob:
        bob.put_secret("TOKEN", VALUE)
        assert client.secrets() == []
        with pytest.raises(BadInput, match="no secret TOKEN"):
            client.create_pool("sim", secrets={"names": ["TOKEN"]})
        with pytest.raises(UnknownSecret):
            client.delete_secret("TOKEN")
        bob.delete_secret("TOKEN")


def test_one_that_an_open_pool_names_stays(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client:
        client.put_secret("TOKEN", VALUE)
        pool = client.create_pool("sim", secrets={"names": ["TOKEN"]}).submit()
        with pytest.raises(Refused, match="sim"):
            client.delete_secret("TOKEN")
        pool.secrets = {}
        pool.commit()
        client.delete_secret("TOKEN")
        with pytest.raises(UnknownSecret):
            client.delete_secret("TOKEN")


def test_jobs_of_slurm_get_none(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client:
        client.put_secret("TOKEN", VALUE)
        fields: dict[str, Any] = {"settings": {"slurm": {}}, "backend": "slurm"}
        with pytest.raises(BadInput, match="Slurm"):
            client.create_pool("sim", secrets={"names": ["TOKEN"]}, **fields)
        pool = client.create_pool("sim", **fields)
        with pytest.raises(BadInput, match="Slurm"):
            pool.set(secrets={"names": ["TOKEN"]})
        assert client.pool("sim").secrets == {}
        plain = client.create_pool("plain", secrets={"names": ["TOKEN"]})
        with pytest.raises(BadInput, match="Slurm"):
            plain.set(settings={"slurm": {}})


def test_keys_are_rotated_under_all_secrets(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client, Client(bench.settings, owner="bob") as bob:
        client.put_secret("A", "1")
        bob.put_secret("B", "2")
        before = ring.path.read_text()
        assert client.rotate_secrets() == 2
        after = ring.path.read_text()
        assert len(after.split()) == 1
        assert after != before
        assert client.rotate_secrets("prepare") == 0
        assert len(ring.path.read_text().split()) == 2
        assert client.rotate_secrets("finish") == 2
        assert client.rotate_secrets("reencrypt") == 2
        assert len(ring.path.read_text().split()) == 1
        with pytest.raises(BadInput):
            client.rotate_secrets("later")  # type: ignore[arg-type]
        with bench.engine.begin() as connection:
            found = rows(
                connection,
                """SELECT o.name AS owner, s.name, s.stored FROM secrets s
                   JOIN owners o ON o.id = s.owner_id ORDER BY s.name""",
            )
        values = [ring.decrypt(r["owner"], r["name"], bytes(r["stored"])) for r in found]
        assert values == ["1", "2"]


def test_a_rotation_that_cannot_read_one_changes_none(bench: Workbench, ring: KeyRing) -> None:
    with bench.client() as client:
        client.put_secret("A", "1")
        client.put_secret("B", "2")
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE secrets SET stored = 'junk' WHERE name = 'B'"))
            before = rows(connection, "SELECT * FROM secrets ORDER BY id")
        with pytest.raises(SecretUnreadable, match="B"):
            client.rotate_secrets()
        with bench.engine.begin() as connection:
            assert rows(connection, "SELECT * FROM secrets ORDER BY id") == before
            [a] = rows(connection, "SELECT stored FROM secrets WHERE name = 'A'")
        assert ring.decrypt("alice", "A", bytes(a["stored"])) == "1"


def test_without_a_key_ring_nothing_is_stored(bench: Workbench, tmp_path: Path) -> None:
    with bench.engine.connect() as connection:
        url = connection.engine.url.render_as_string(hide_password=False)
    settings = load_settings(
        database_url=url, data_dir=tmp_path / "none", state_dir=tmp_path / "state"
    )
    with Client(settings, owner="alice") as client:
        with pytest.raises(ConfigError, match="key ring"):
            client.put_secret("TOKEN", VALUE)
        assert client.secrets() == []
        made = Path(client.init_secrets())
        assert made.stat().st_mode & 0o777 == 0o600
        client.put_secret("TOKEN", VALUE)
