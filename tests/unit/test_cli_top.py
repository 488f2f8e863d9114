"""`remuda top` on a screen that is not there, over a system that is made up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import DataTable, Input, RichLog, Static, TabbedContent

from remuda.cli.app import root
from remuda.cli.top.app import Top
from remuda.cli.top.screens import Confirm, Log, Words, _Lines
from remuda.client.overview import Overview
from remuda.client.vms import VmInfo
from remuda.errors import DatabaseUnavailable, IllegalTransition
from tests.unit.cli import stand_in

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)
DEADLINE_S = 20.0


def a_pool(number: int, name: str, **columns: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "state": "FULLY_EXECUTING",
        "is_elastic": True,
        "elastic_minimum_slots": 0,
        "elastic_maximum_slots": 8,
        "instance_count": 1,
        "vms": 1,
        "slots": 2,
        "busy_slots": 1,
        "waiting_jobs": 3,
        "live_jobs": 1,
        "provider": "local",
        "message": None,
        **columns,
    }


def a_vm(number: int, pool: str) -> VmInfo:
    given = {
        "id": number,
        "name": f"{pool}-{number}",
        "pool": pool,
        "state": "RUNNING",
        "draining": False,
        "slots": 2,
        "busy_slots": 1,
        "leased_slots": 0,
        "jobs": 1,
        "load": 0.5,
        "heartbeat_age_s": 1.5,
        "address": {},
        "created_at": NOON,
    }
    return VmInfo(**{name: given.get(name) for name in VmInfo.__dataclass_fields__})  # type: ignore[arg-type]


def a_job(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": f"job-{number}",
        "pool": "sim",
        "owner": "alice",
        "state": "RUNNING",
        "reason": None,
        "exit_code": None,
        "signal": None,
        "vm": "sim-1",
        "epoch": 1,
        "cores": 1,
        "submitted_at": NOON,
        "started_at": NOON + timedelta(seconds=2),
        "ended_at": None,
        **columns,
    }


class FakeSystem:
    """A client whose system changes as the test says, and that remembers what was asked of it."""

    def __init__(self) -> None:
        self.pools = [a_pool(1, "sim"), a_pool(2, "[red]x[/red]")]
        self.jobs = [a_job(1), a_job(2), a_job(3)]
        self.looks: list[dict[str, Any]] = []
        self.asked: list[tuple[str, Any]] = []
        self.trouble: Exception | None = None
        self.output = threading.Event()

    def lookout(self) -> Any:
        return self

    def __enter__(self) -> FakeSystem:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout_s: float) -> None:
        threading.Event().wait(min(timeout_s, 0.02))

    def look(self, **scope: Any) -> Overview:
        self.looks.append(scope)
        if self.trouble is not None:
            raise self.trouble
        vms = [a_vm(1, "sim"), a_vm(2, "[red]x[/red]")]
        return Overview(NOON, self.pools, vms, self.jobs, [0] * 54 + [5] * 6)

    def pool(self, name: str) -> Any:
        return SimpleNamespace(id=1, name=name, explain=lambda: [f"{name} has 2 slots."])

    def explain(self, job_id: int) -> list[str]:
        return [f"It runs, job {job_id}."]

    def cancel(self, job_id: int) -> None:
        self.asked.append(("cancel", job_id))

    def drain_vm(self, vm_id: int) -> None:
        self.asked.append(("drain", vm_id))
        raise IllegalTransition("VM sim-1 is STOPPING and cannot be drained")

    def follow(self, job_id: int, *, over: threading.Event) -> Iterator[tuple[str, bytes]]:
        yield "stdout", b"one\ntw"
        yield "stderr", b"\x1b[2Jsly\n"
        assert self.output.wait(DEADLINE_S)
        yield "stdout", b"o\n"


Use = Callable[[Top, Pilot[None]], Awaitable[None]]


def on_screen(system: FakeSystem, use: Use, **options: Any) -> None:
    """Open the view at 110×30 and use it."""

    async def run() -> None:
        top = Top(system, interval_s=0.05, **options)  # type: ignore[arg-type]
        async with top.run_test(size=(110, 30)) as pilot:
            await until(pilot, lambda: top.query_one("#pools-table", DataTable).row_count > 0)
            await use(top, pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Let the view go on until the condition holds."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await pilot.pause(0.01)


async def opened(top: Top, pilot: Pilot[None], name: str) -> None:
    """Wait until that table is the open one, and keys go to it."""
    table = top.query_one(f"#{name}-table", DataTable)
    await until(pilot, lambda: top.focused is table)
    assert top.query_one(TabbedContent).active == name


async def shown(top: Top, pilot: Pilot[None], kind: type[Screen[Any]]) -> None:
    """Wait until a screen of that kind is in front, with all that is on it."""
    await until(pilot, lambda: isinstance(top.screen, kind) and top.screen.is_mounted)


def rows(top: Top, name: str) -> list[list[str]]:
    table = top.query_one(f"#{name}-table", DataTable)
    return [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]


def text(top: Top, part: str) -> str:
    return str(top.query_one(part, Static).content)


def test_all_is_there_and_names_are_no_markup() -> None:
    async def use(top: Top, _pilot: Pilot[None]) -> None:
        assert [row[0] for row in rows(top, "pools")] == ["sim", "[red]x[/red]"]
        assert rows(top, "vms")[0][:4] == ["1", "sim-1", "sim", "RUNNING"]
        assert [row[0] for row in rows(top, "jobs")] == ["1", "2", "3"]
        assert "6 jobs waiting" in text(top, "#head")
        assert "5.0 ended/s" in text(top, "#head")

    on_screen(FakeSystem(), use)


def test_enter_looks_into_and_escape_back() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        await opened(top, pilot, "vms")
        await until(pilot, lambda: system.looks[-1]["pool_id"] == 1)
        await until(pilot, lambda: [row[0] for row in rows(top, "pools")] == ["sim"])
        await pilot.press("enter")
        await opened(top, pilot, "jobs")
        await until(pilot, lambda: system.looks[-1]["vm_id"] == 1)
        assert text(top, "#scope") == "all › pool sim › VM sim-1"
        await pilot.press("escape")
        await opened(top, pilot, "vms")
        await pilot.press("escape")
        await opened(top, pilot, "pools")
        await until(pilot, lambda: system.looks[-1]["pool_id"] is None)
        assert text(top, "#scope") == "all"

    on_screen(system, use)


def test_the_cursor_stays_on_its_row() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await opened(top, pilot, "jobs")
        await pilot.press("down")
        await until(pilot, lambda: top._chosen("jobs") == "2")
        system.jobs = [a_job(3), a_job(4), a_job(2)]
        await until(pilot, lambda: [row[0] for row in rows(top, "jobs")] == ["3", "4", "2"])
        assert top._chosen("jobs") == "2"

    on_screen(system, use)


def test_a_job_is_cancelled_only_when_that_is_confirmed() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await opened(top, pilot, "jobs")
        await pilot.press("c")
        await shown(top, pilot, Confirm)
        await pilot.press("n")
        await opened(top, pilot, "jobs")
        await pilot.press("c")
        await shown(top, pilot, Confirm)
        await pilot.press("y")
        await until(pilot, lambda: system.asked == [("cancel", 1)])
        system.jobs = [a_job(1, state="TERMINATED", reason="CANCELLED", ended_at=NOON)]
        await until(pilot, lambda: "CANCELLED" in rows(top, "jobs")[0])
        await pilot.press("c")
        assert not isinstance(top.screen, Confirm)  # there is nothing to cancel

    on_screen(system, use)
    assert system.asked == [("cancel", 1)]


def test_a_refused_drain_is_told() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await opened(top, pilot, "vms")
        await pilot.press("d")
        await shown(top, pilot, Confirm)
        await pilot.press("y")
        await until(pilot, lambda: any("STOPPING" in n.message for n in top._notifications))

    on_screen(system, use)
    assert system.asked == [("drain", 1)]


def test_a_jobs_output_is_followed() -> None:
    system = FakeSystem()

    def lines(top: Top) -> list[str]:
        return [strip.text.rstrip() for strip in top.screen.query_one(RichLog).lines]

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await opened(top, pilot, "jobs")
        await pilot.press("l")
        await shown(top, pilot, Log)
        await until(pilot, lambda: lines(top) == ["one", r"\x1b[2Jsly"])
        system.output.set()
        await until(pilot, lambda: lines(top)[2:] == ["two", "— the job has ended —"])
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(top.screen, Log))

    on_screen(system, use)


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [("1", "pools", "sim has"), ("2", "vms", "sim has"), ("3", "jobs", "job 1")],
)
def test_why_is_told(key: str, name: str, said: str) -> None:
    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press(key)
        await opened(top, pilot, name)
        await pilot.press("e")
        await shown(top, pilot, Words)
        assert said in str(top.screen.query_one(Static).content)

    on_screen(FakeSystem(), use)


def test_names_are_found_and_time_stands_still() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await opened(top, pilot, "jobs")
        await pilot.press("slash")
        await until(pilot, lambda: isinstance(top.focused, Input))
        await pilot.press(*"job-2", "enter")
        await opened(top, pilot, "jobs")
        await until(pilot, lambda: [row[0] for row in rows(top, "jobs")] == ["2"])
        await until(pilot, lambda: system.looks[-1]["part"] == "job-2")
        await pilot.press("escape")
        await until(pilot, lambda: text(top, "#scope") == "all")
        await pilot.press("space")
        await until(pilot, lambda: "paused" in text(top, "#scope"))
        system.jobs = []
        seen = len(system.looks)
        await until(pilot, lambda: len(system.looks) > seen + 2)
        assert len(rows(top, "jobs")) == 3
        await pilot.press("space")
        await until(pilot, lambda: not rows(top, "jobs"))

    on_screen(system, use)


def test_an_outage_is_told_and_survived() -> None:
    system = FakeSystem()

    async def use(top: Top, pilot: Pilot[None]) -> None:
        system.trouble = DatabaseUnavailable("the database does not answer")
        await until(pilot, lambda: "does not answer" in text(top, "#head"))
        system.trouble = None
        await until(pilot, lambda: "2 pools" in text(top, "#head"))

    on_screen(system, use)


def test_bytes_become_printable_lines() -> None:
    lines = _Lines()
    assert lines.more("ä\n".encode()[:1]) == []
    assert lines.more("ä\n".encode()[1:] + b"b\r\n\xffc") == ["ä", "b"]
    assert lines.rest() == ["�c"]
    assert lines.rest() == []


@pytest.mark.parametrize("options", [["--once"], []])  # without a terminal they are the same
def test_once_it_is_printed(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    stand_in(monkeypatch, FakeSystem())
    result = CliRunner().invoke(root, ["top", *options])
    assert result.exit_code == 0, result.output
    assert "2 pools" in result.output.splitlines()[0]
    assert "job-3" in result.output


def test_too_short_an_interval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, FakeSystem())
    result = CliRunner().invoke(root, ["top", "--interval", "10ms"])
    assert result.exit_code == 2
