"""up, down, status, doctor, the processes and db, on a machine where nothing is started."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from remuda import embedded, system
from remuda.cli import health, lifecycle
from remuda.cli.app import root
from remuda.cli.health import Process, safe_url
from remuda.config import Settings, load_settings
from remuda.errors import BrokerUnavailable, DatabaseUnavailable, Refused

SECRET = "s3cret"
WORKER = Process("worker", True, 11, 80 << 20, 1.5)
BEAT = Process("beat", True, 12, 70 << 20, 0.5)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("REMUDA_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("REMUDA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("REMUDA_STATE_DIR", str(tmp_path / "state"))


def remuda(line: str) -> Result:
    return CliRunner().invoke(root, shlex.split(line), prog_name="remuda")


def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a database and a broker, neither of which is there."""
    monkeypatch.setenv("REMUDA_DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1:1/x")
    monkeypatch.setenv("REMUDA_BROKER_URL", f"amqp://me:{SECRET}@127.0.0.1:1//")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:s3cret@db:5432/x?password=s3cret", "postgresql://db:5432/x"),
        ("amqp://me:s3cret@[::1]:5672//", "amqp://[::1]:5672//"),
        ("redis://:s3cret@host/0", "redis://host/0"),
        ("file:///a/b", "file:///a/b"),
        ("http://[bad", "(not a URL)"),
    ],
)
def test_shown_urls_hold_no_secret(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_nothing_up(tmp_path: Path) -> None:
    result = remuda("status")
    assert result.exit_code == 1
    assert "postgres  down" in result.stdout
    assert "database  down  there is no database yet" in result.stdout
    found = json.loads(remuda("status --json").stdout)
    assert (len(found), found[0]["up"], found[0]["broker"]["up"]) == (1, False, False)
    assert [process["name"] for process in found[0]["processes"]] == ["postgres", "worker", "beat"]
    down = remuda("down")
    assert (down.exit_code, down.stdout) == (0, "nothing was running\n")
    assert remuda("down --now").stdout == "nothing was running\n"
    assert list(tmp_path.iterdir()) == []  # looking makes nothing


def test_a_system_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    for line in ("status", "status --json", "doctor", "doctor --json"):
        result = remuda(line)
        assert result.exit_code == 1, line
        assert "127.0.0.1:1" in result.stdout, line
        assert SECRET not in result.output, line
    for line in ("job list", "db check", "db upgrade", "vm list --json", "up"):
        result = remuda(line)
        assert (result.exit_code, result.stdout) == (1, ""), line
        assert result.stderr.startswith("remuda: error: the database does not answer"), line
        assert "hint: " in result.stderr, line
        assert SECRET not in result.stderr, line


def test_status_of_a_working_system(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def database(settings: Settings) -> Iterator[Any]:
        class Engine:
            url = f"postgresql://me:{SECRET}@db/x"

        yield Engine()

    server = Process("postgres", True, 10, 50 << 20)
    monkeypatch.setattr(health, "database", database)
    monkeypatch.setattr(health, "processes", lambda settings: [server, WORKER, BEAT])
    monkeypatch.setattr(health, "check_schema", lambda engine: "1")
    monkeypatch.setattr(health, "check_broker", lambda settings: None)
    monkeypatch.setattr(health, "last_sweep_age_s", lambda engine: 1.0)
    monkeypatch.setattr(
        health, "counts", lambda engine: (Counter(RUNNING=2, NEW=1), Counter(RUNNING=1))
    )
    result = remuda("status")
    assert result.exit_code == 0
    assert (
        result.stdout.splitlines()
        == [
            "PROCESS   STATE  PID  MEMORY   CPU",
            "postgres  up      10     50M",
            "worker    up      11     80M  1.5s",
            "beat      up      12     70M  500ms",
            "",
            "database  up    postgresql://db/x",
            f"broker    up    filesystem://{load_settings().broker_dir}",
            "jobs      3 jobs: 2 RUNNING, 1 NEW",
            "VMs       1 VM: 1 RUNNING",
        ]
        or "500ms" in result.stdout
    )
    found = json.loads(remuda("status --json").stdout)[0]
    assert found["memory_bytes"] == 200 << 20
    assert found["jobs"] == {"RUNNING": 2, "NEW": 1}
    monkeypatch.setattr(health, "processes", lambda settings: [server, WORKER])
    monkeypatch.setattr(health, "check_broker", _no_broker)
    assert remuda("status").exit_code == 1


def _no_broker(settings: Settings) -> NoReturn:
    raise BrokerUnavailable("the broker does not answer")


def test_doctor_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    found = {check["name"]: check for check in json.loads(remuda("doctor --json").stdout)}
    assert found["settings"]["status"] == "ok"
    assert found["data folder"]["status"] == "ok"
    assert (found["state folder"]["status"], found["database"]["status"]) == ("fail", "fail")
    assert all(check["advice"] for check in found.values() if check["status"] == "fail")
    text = remuda("doctor").stdout
    assert "fail  state folder" in text
    assert "→ " in text


def test_doctor_says_what_to_do_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    monkeypatch.setenv("REMUDA_STORAGE_URL", "file:///proc/nope")
    found = {check["name"]: check for check in json.loads(remuda("doctor --json").stdout)}
    for name, setting in (("database", "REMUDA_DATABASE_URL"), ("storage", "REMUDA_STORAGE_URL")):
        assert found[name]["status"] == "fail"
        assert setting in found[name]["advice"]


def test_doctor_names_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMUDA_WORKER_CONCURRENCY", "many")
    result = remuda("doctor")
    assert result.exit_code == 1
    assert "worker_concurrency" in result.stdout
    other = remuda("job list")
    assert (other.exit_code, other.stderr.startswith("remuda: error: wrong settings")) == (1, True)


def test_doctor_names_a_misspelt_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMUDA_DATABSE_URL", "postgresql://db/x")
    monkeypatch.setenv("REMUDA_SOMETHING_ELSE", "1")  # whoever's it is
    found = {check["name"]: check for check in json.loads(remuda("doctor --json").stdout)}
    assert found["settings"]["status"] == "warn"
    assert found["settings"]["advice"] == "REMUDA_DATABSE_URL: is REMUDA_DATABASE_URL meant?"


def test_up_tells_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    running: list[Process] = [WORKER]
    monkeypatch.setattr(health, "processes", lambda settings: list(running))
    monkeypatch.setattr(
        system, "bring_up", lambda settings, processes: system.database_url(settings)
    )
    monkeypatch.setattr(embedded, "start_processes", lambda settings: running.append(BEAT))
    monkeypatch.setattr(health, "ping_workers", lambda timeout_s: ["embedded@here"])
    lines = remuda("up").stdout.splitlines()
    assert lines[:4] == [
        "worker    was running, process 11",
        "beat      started, process 12",
        "database  postgresql://127.0.0.1:1/x",
        "broker    amqp://127.0.0.1:1//",
    ]
    assert lines[-1].startswith("ready in ")
    monkeypatch.setattr(health, "ping_workers", lambda timeout_s: [])
    monkeypatch.setattr(lifecycle, "_READY_S", 0.01)
    silent = remuda("up")
    assert silent.exit_code == 1
    assert "the worker does not answer 0.01 s after its start" in silent.stderr
    monkeypatch.setattr(lifecycle, "_READY_S", 1e9)
    running.remove(WORKER)
    gone = remuda("up")
    assert (gone.exit_code, "the worker ended" in gone.stderr) == (1, True)
    assert remuda("up --no-processes").exit_code == 0


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({}, ""),
        ({"ended": 3, "vms": 0, "jobs": 0, "waiting": 0}, "ended 3 VMs\n"),
        (
            {"ended": 0, "vms": 2, "jobs": 3, "waiting": 1},
            "2 VMs go on with 3 jobs; `remuda up` re-attaches, `remuda down --now` ends them\n"
            "1 job waiting for the next `remuda up`\n",
        ),
    ],
)
def test_down_tells_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, int], told: str
) -> None:
    calls: list[str] = []

    def note(step: str, value: object = None) -> Any:
        calls.append(step)
        return value

    monkeypatch.setattr(health, "processes", lambda settings: [WORKER, BEAT])
    monkeypatch.setattr(lifecycle, "_wait_for_closing_pools", lambda: note("pools"))
    monkeypatch.setattr(
        embedded, "stop_processes", lambda settings, timeout_s: note("stop", ["worker"])
    )
    monkeypatch.setattr(lifecycle, "_end_vms", lambda settings, busy_too: note("vms", left))
    monkeypatch.setattr(system, "take_down", lambda settings, timeout_s: note("down"))
    result = remuda("down --timeout 5s")
    assert (result.exit_code, result.stdout) == (0, "stopped worker, beat\n" + told)
    assert result.stderr == "remuda: the worker did not end in 5s and was killed\n"
    assert calls == ["pools", "stop", "vms", "down"]


def test_down_leaves_a_shared_systems_vms_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    monkeypatch.setattr(health, "processes", lambda settings: [BEAT])
    monkeypatch.setattr(health, "ping_workers", lambda timeout_s, wanted: ["worker1@elsewhere"])
    monkeypatch.setattr(embedded, "stop_processes", lambda settings, timeout_s: [])
    monkeypatch.setattr(system, "take_down", lambda settings, timeout_s: [])
    assert remuda("down").stdout == "stopped beat\n"
    refused = remuda("down --now")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "would cancel their jobs too" in refused.stderr


def test_down_stops_the_processes_even_if_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(settings: Settings, busy_too: bool) -> NoReturn:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(health, "processes", lambda settings: [BEAT])
    monkeypatch.setattr(embedded, "stop_processes", lambda settings, timeout_s: [])
    monkeypatch.setattr(system, "take_down", lambda settings, timeout_s: [])
    monkeypatch.setattr(lifecycle, "_end_vms", away)
    result = remuda("down")
    assert (result.exit_code, result.stdout) == (0, "stopped beat\n")
    assert result.stderr == "remuda: VMs stay as they are: gone\n"


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("worker -Q jobs -c 16 --loglevel=DEBUG", ["-Q", "jobs", "-c", "16", "--loglevel=DEBUG"]),
        ("beat --max-interval 5", ["--max-interval", "5"]),
    ],
)
def test_processes_become_celery_with_the_callers_options_last(
    monkeypatch: pytest.MonkeyPatch, line: str, options: list[str]
) -> None:
    configured(monkeypatch)
    became: list[str] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: became.extend([path, *argv]))
    assert remuda(line).exit_code == 0
    kind = line.split(" ", 1)[0]
    assert became[:7] == [
        sys.executable, sys.executable, "-m", "celery", "-A", "remuda.tasks", kind,
    ]  # fmt: skip
    assert became[-len(options) :] == options


def test_a_worker_is_told_where_to_serve_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    became: list[str] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: became.extend(argv))
    assert remuda("worker --metrics 127.0.0.1:0 -Q jobs").exit_code == 0
    assert became[-3:] == ["--metrics=127.0.0.1:0", "-Q", "jobs"]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("''", "'' is not HOST:PORT"),
        ("here", "'here' is not HOST:PORT"),
        ("127.0.0.1:65536", "'127.0.0.1:65536' is not HOST:PORT"),
        ("192.0.2.1:9808", "cannot listen on 192.0.2.1:9808: Cannot assign requested address"),
        ("taken", "cannot listen on 127.0.0.1:{port}: Address already in use"),
    ],
)
def test_a_worker_does_not_start_where_it_could_not_serve_metrics(
    monkeypatch: pytest.MonkeyPatch, where: str, why: str
) -> None:
    monkeypatch.setattr(os, "execv", lambda path, argv: pytest.fail("it started"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        where = f"127.0.0.1:{port}" if where == "taken" else where
        result = remuda(f"worker --metrics {where}")
    assert (result.exit_code, result.stdout) == (2, "")
    told, hint = result.stderr.splitlines()
    assert told == "remuda: error: " + why.format(port=port)
    assert "--metrics" in hint


def test_demo_passes_its_options_and_exit_code_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import remuda.demo

    given: dict[str, Any] = {}

    def run(**options: Any) -> int:
        given.update(options)
        return 1

    monkeypatch.setattr(remuda.demo, "run", run)
    result = CliRunner().invoke(root, ["demo", "--tiles", "16", "--chaos", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert given == {"tiles": 16, "chaos": True, "out": tmp_path}


def test_a_demo_that_cannot_draw_says_so_before_it_starts_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = remuda(f"demo --out {tmp_path}/out")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "remuda: error: the demo draws with matplotlib and PIL, and there is no PIL here",
        "hint: pip install 'remuda[plot]'",
    ]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "data").exists()


def test_db_check_and_upgrade_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from remuda.models import migrate

    def behind(engine: object) -> NoReturn:
        raise Refused("the schema is at revision none", hint="run `remuda db upgrade`")

    configured(monkeypatch)
    monkeypatch.setattr(migrate, "check", behind)
    result = remuda("db check")
    assert (result.exit_code, result.stderr.splitlines()[1]) == (1, "hint: run `remuda db upgrade`")
    monkeypatch.setattr(migrate, "current", lambda engine: None)
    monkeypatch.setattr(migrate, "upgrade", lambda engine: None)
    monkeypatch.setattr(migrate, "head", lambda: "0009")
    assert remuda("db upgrade").stdout == "the schema is at 0009 (was: empty)\n"
