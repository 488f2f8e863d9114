"""Tables, JSON, and what people see of times, sizes and other people's text."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from remuda.cli.output import (
    Column,
    cell,
    elapsed,
    format_duration,
    format_size,
    print_details,
    print_json,
    print_rows,
    ranges,
)

NOON = datetime(2025, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def test_json_times_are_utc(capsys: pytest.CaptureFixture[str]) -> None:
    at = NOON.astimezone(timezone(timedelta(hours=5)))
    print_json([{"at": at, "path": Path("/x"), "raw": b"\xff", "none": None}])
    shown = json.loads(capsys.readouterr().out)
    assert shown == [
        {"at": "2025-01-31T12:00:00.123456Z", "path": "/x", "raw": "\ufffd", "none": None}
    ]


def test_rows_as_json_hold_every_key_and_an_empty_list_is_an_array(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = [Column("ID", "id")]
    print_rows(columns, [{"id": 1, "hidden": "x"}], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"id": 1, "hidden": "x"}]
    print_rows(columns, [], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("ID", "id", right=True), Column("NAME", "name"), Column("AT", "at")]
    rows = [{"id": 1, "name": "a"}, {"id": 100, "name": "long name", "at": NOON}]
    print_rows(columns, rows, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        " ID  NAME       AT",
        "  1  a",
        "100  long name  2025-01-31 12:00:00Z",
    ]


def test_nothing_of_a_jobs_name_reaches_the_terminal_as_a_command() -> None:
    assert cell("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert cell("grüße 日本") == "grüße 日本"


def test_cells() -> None:
    assert [cell(value) for value in (None, True, 1.5, 7, ["a", "b"], {"NEW": 2})] == [
        "", "yes", "1.5", "7", "a b", "NEW=2",
    ]  # fmt: skip


def test_details_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_details([("id", 7), ("name", ""), ("exit code", 0)])
    assert capsys.readouterr().out.splitlines() == ["id         7", "exit code  0"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, ""),
        (0, "0"),
        (1023, "1023"),
        (512 << 20, "512M"),
        (3 << 29, "1.5G"),
        (1 << 60, "1024P"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0s"),
        (0.25, "250ms"),
        (1e-9, "1ms"),
        (2.5, "2.5s"),
        (12.4, "12s"),
        (5400, "1h30m"),
        (172800, "2d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_elapsed() -> None:
    assert elapsed(None, NOON) is None
    assert elapsed(NOON, NOON + timedelta(seconds=3)) == 3


def test_ranges() -> None:
    assert ranges([3, 1, 2, 7, 9, 8, 20]) == "1..3,7..9,20"
    assert ranges([]) == ""
