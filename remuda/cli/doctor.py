"""`remuda doctor`: every check by itself, with what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import doctor_more, health
from remuda.cli.base import Command
from remuda.cli.output import format_size, print_json, printable
from remuda.cli.types import json_option
from remuda.errors import DatabaseUnavailable, RemudaError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from remuda.config import Settings

_LOW_DISK_BYTES = 1 << 30
_NO_DISK_BYTES = 64 << 20
_SKEW_WARN_S = 2.0
_PING_S = 3.0
_FIRST_SWEEP_S = 6.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Check:
    """What one check found; `advice` is empty when there is nothing to do."""

    name: str
    status: str  # ok, warn, fail
    detail: str
    advice: str = ""


@click.command("doctor", cls=Command, short_help="Check everything one by one and say what to do.")
@click.option("--providers", is_flag=True, help="Also ask each open pool's provider, from here.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, providers: bool, as_json: bool) -> None:
    """Check settings, folders, database, clocks, broker, queues, worker, beat, pools, VMs, keys
    and secrets.

    Each line is ok, warn or fail and says what to do. Exits with 1 if anything fails. Starts
    nothing. With --providers it asks clouds and hosts too: do that where workers run.
    """
    found = []
    for check in checks(providers=providers):
        found.append(check)
        if not as_json:
            _print(check)
    if as_json:
        print_json([asdict(check) for check in found])
    ctx.exit(1 if any(check.status == "fail" for check in found) else 0)


def checks(*, providers: bool = False) -> Iterator[Check]:
    """Run the checks in order; those that make no sense after a failed one are left out."""
    yield _python()
    settings = yield from _settings()
    if settings is None:
        return
    yield _folder("data folder", settings.data_dir)
    yield _folder("state folder", settings.state_dir)
    storage = _guarded("storage", lambda: _storage(settings))
    if storage.status == "fail" and not storage.advice:
        storage = replace(
            storage, advice="is REMUDA_STORAGE_URL right, and may this user write there?"
        )
    yield storage
    yield from _database(settings, providers=providers)
    broker = _guarded("broker", lambda: _broker(settings))
    yield broker
    if broker.status == "ok":
        yield from _workers(settings)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RemudaError as error:
        return Check(name, "fail", error.message, error.hint)
    except Exception as error:
        first = (str(error).strip() or "no message").split("\n", 1)[0]
        return Check(name, "fail", f"{type(error).__name__}: {first}")


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _settings() -> Generator[Check, None, Settings | None]:
    from remuda.config import config_file, load_settings

    try:
        settings = load_settings()
    except RemudaError as error:
        yield Check("settings", "fail", error.message, error.hint)
        return None
    file = config_file()
    given = [name for name in sorted(os.environ) if name.startswith("REMUDA_")]
    source = ", ".join(([str(file)] if file.exists() else []) + given) or "defaults only"
    known = [f"REMUDA_{name.upper()}" for name in type(settings).model_fields]
    meant = {
        name: close[0]
        for name in given
        if name not in known and (close := get_close_matches(name, known, 1, cutoff=0.85))
    }
    if meant:
        advice = "; ".join(f"{name}: is {right} meant?" for name, right in meant.items())
        yield Check("settings", "warn", f"{source}; no setting: {', '.join(meant)}", advice)
    else:
        yield Check("settings", "ok", source)
    return settings


def _folder(name: str, folder: Path) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return Check(name, "fail", f"{there} is not a folder", "move it, or set another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        advice = f"make {there} writable, or set REMUDA_DATA_DIR and REMUDA_STATE_DIR"
        return Check(name, "fail", f"{there} is not writable", advice)
    space = shutil.disk_usage(there)
    detail = f"{folder}, {format_size(space.free)} free"
    if space.free < _NO_DISK_BYTES:
        return Check(name, "fail", detail, "the disk is full: free some space")
    if space.free < _LOW_DISK_BYTES:
        return Check(name, "warn", detail, "the disk is getting full")
    return Check(name, "ok", detail)


def _storage(settings: Settings) -> Check:
    from remuda.storage import Storage

    storage = Storage(settings.storage)
    if settings.storage_url is None and not settings.data_dir.exists():
        return Check("storage", "ok", "a folder of the data folder, made when first needed")
    probe = f"written by remuda doctor at {time.time():.3f}".encode()
    with storage.writing("doctor") as file:
        file.write(probe)
    detail, url = health.safe_url(settings.storage), storage.url("doctor")
    if storage.read(url) != probe:
        return Check("storage", "fail", f"{detail} does not give back what was written")
    path = storage.local_path(url)
    if path is not None:
        path.unlink(missing_ok=True)
    return Check("storage", "ok", f"{detail}, written and read back")


def _database(settings: Settings, *, providers: bool) -> Iterator[Check]:
    try:
        with health.database(settings) as engine:
            yield _server(engine)
            yield _skew(engine)
            schema = _guarded("schema", lambda: _schema(engine))
            yield schema
            if schema.status == "ok":
                yield _guarded("beat", lambda: _beat(engine, settings))
                yield _guarded("pools", lambda: Check("pools", *doctor_more.pools(engine)))
                yield _guarded("VMs", lambda: Check("VMs", *doctor_more.unended(engine)))
                yield _guarded("keys", lambda: Check("keys", *doctor_more.keys(engine)))
                yield _guarded(
                    "secrets", lambda: Check("secrets", *doctor_more.secrets(engine, settings))
                )
            if schema.status == "ok" and providers:
                for kind, finding in doctor_more.providers(engine, settings):
                    yield Check(f"{kind} VMs", *finding)
    except DatabaseUnavailable as error:
        advice = "is PostgreSQL up there, and REMUDA_DATABASE_URL right?"
        yield Check(
            "database", "fail", error.message, "`remuda up`" if settings.embedded else advice
        )
    except RemudaError as error:
        yield Check("database", "fail", error.message, error.hint)


def _server(engine: Engine) -> Check:
    found = health.query(engine, "SELECT current_setting('server_version') AS version")[0]
    detail = f"PostgreSQL {found['version']} at {health.safe_url(str(engine.url))}"
    if int(str(found["version"]).split(".", 1)[0]) < 14:
        return Check("database", "fail", detail, "use PostgreSQL 14 or newer")
    return Check("database", "ok", detail)


def _skew(engine: Engine) -> Check:
    before = time.time()
    found = health.query(engine, "SELECT extract(epoch FROM clock_timestamp())::float8 AS now")[0]
    skew = found["now"] - (before + time.time()) / 2
    detail = f"{skew:+.3f} s between the database's clock and this machine's"
    if abs(skew) > _SKEW_WARN_S:
        return Check("clock", "warn", detail, "set both by NTP; times shown may confuse")
    return Check("clock", "ok", detail)


def _schema(engine: Engine) -> Check:
    return Check("schema", "ok", f"revision {health.check_schema(engine)}")


def _beat(engine: Engine, settings: Settings) -> Check:
    age_s = health.last_sweep_age_s(engine)
    here = any(p.name == "beat" and p.running for p in health.processes(settings))
    deadline = time.monotonic() + (_FIRST_SWEEP_S if here else 0)
    while (age_s is None or age_s > health.SWEEP_LATE_S) and time.monotonic() < deadline:
        time.sleep(0.2)  # it may have been started this moment
        age_s = health.last_sweep_age_s(engine)
    if age_s is None:
        return Check("beat", "fail", "no sweep has ever run", "`remuda up`, or `remuda beat`")
    detail = f"the last sweep was {age_s:.0f} s ago"
    if age_s > health.SWEEP_LATE_S:
        return Check("beat", "fail", detail, "`remuda up`, or start `remuda beat` and a worker")
    return Check("beat", "ok", detail)


def _broker(settings: Settings) -> Check:
    health.check_broker(settings)
    return Check("broker", "ok", health.broker_url(settings))


def _workers(settings: Settings) -> Iterator[Check]:
    served: dict[str, set[str]] = {}

    def worker() -> Check:
        served.update(health.served_queues(timeout_s=_PING_S))
        if not served:
            advice = f"`remuda up`, or `remuda worker`; see {settings.state_dir / 'log'}"
            return Check("worker", "fail", f"none answered in {_PING_S:g} s", advice)
        return Check("worker", "ok", f"{', '.join(sorted(served))} answered")

    yield _guarded("worker", worker)
    if served:
        yield _guarded("queues", lambda: Check("queues", *doctor_more.queues(settings, served)))


def _print(check: Check) -> None:
    status: Any = click.style(f"{check.status:<4}", fg=_COLOURS[check.status])
    click.echo(f"{status}  {check.name:<12}  {printable(check.detail)}")
    if check.advice:
        click.echo(f"{'':<20}→ {printable(check.advice)}")
