"""What the commands print: tables for people, plain columns for pipes, JSON for programs."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import click

Row = Mapping[str, Any]

_GOOD = {"OK", "RUNNING", "FULLY_EXECUTING", "ok", "up"}
_BAD = {"ERROR", "FAILURE", "STALLED", "LOST", "NONZERO", "SIGNALLED", "WALLTIME", "fail", "down"}
_MIDDLE = {"NEW", "SUBMITTED", "STOPPING", "TERMINATING", "CLOSING", "warn", "CANCELLED"}


class Column(NamedTuple):
    """One column of a table: its heading, and the row's key or a function of the row."""

    heading: str
    value: str | Callable[[Row], Any]
    right: bool = False


def print_json(value: object) -> None:
    """Print JSON: UTF-8, times in ISO 8601 and UTC."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def print_rows(columns: Sequence[Column], rows: Iterable[Row], *, as_json: bool) -> None:
    """Print the rows: all their keys as one JSON array, or the columns as a table."""
    if as_json:
        print_json([dict(row) for row in rows])
        return
    cells = [[cell(_value(column, row)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
    else:
        _plain_table(columns, cells)


def print_details(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print a thing's properties, one a line, leaving out the empty ones."""
    shown = [(name, cell(value)) for name, value in pairs]
    shown = [(name, text) for name, text in shown if text]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        click.echo(f"{name:<{width}}  {text}")


def cell(value: object) -> str:
    """Return a value as people read it; nothing a terminal would obey is left in it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(k))}={cell(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(cell(item) for item in value)
    return printable(str(value))


def printable(text: str) -> str:
    """Return the text with control characters, which could move a cursor, written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def format_time(value: datetime | None) -> str:
    """Return a time as `2025-01-31 23:59:59Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if value is not None else ""


def format_size(size: int | None) -> str:
    """Return bytes as `512M` (powers of 1024, as the options read them)."""
    if size is None:
        return ""
    number, unit = float(size), ""
    for unit in ("", "K", "M", "G", "T", "P"):
        if abs(number) < 1024 or unit == "P":
            break
        number /= 1024
    return (
        f"{number:.0f}{unit}" if number >= 100 or number == int(number) else f"{number:.1f}{unit}"
    )


def format_duration(seconds: float | None) -> str:
    """Return seconds as `1h30m`, `2d`, `12s`, `2.5s` below ten of them, `3ms` below one."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.9995:
        return f"{max(1, round(seconds * 1000))}ms"
    if seconds < 10:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + "s"
    left, text = round(seconds), ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text


def elapsed(start: datetime | None, end: datetime | None) -> float | None:
    """Return the seconds from `start` to `end`, or until now when that is not over."""
    if start is None:
        return None
    return max(0.0, ((end or datetime.now(UTC)) - start).total_seconds())


def count(number: int, noun: str) -> str:
    """Return `1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ranges(ids: Iterable[int]) -> str:
    """Return ids as `101..200,305`: what the job commands take back, one range an argument."""
    runs: list[list[int]] = []
    for number in sorted(set(ids)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def note(text: str) -> None:
    """Say something on stderr: stdout is for what was asked."""
    click.echo(text, err=True)


def write_whole(file: BinaryIO, data: bytes) -> None:
    """Write all the bytes now; an unbuffered stdout or an interrupted write takes only some."""
    left = memoryview(data)
    while left:
        taken = cast("int | None", file.write(left))
        if taken is None:  # a non-blocking pipe that is full
            select.select([], [file], [])
        left = left[taken or 0 :]
    file.flush()


def style(text: str) -> str:
    """Return the colour a state is shown in, "" for none."""
    if text in _GOOD:
        return "green"
    if text in _BAD:
        return "red"
    return "yellow" if text in _MIDDLE else ""


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    return str(value)


def _value(column: Column, row: Row) -> Any:
    return column.value(row) if callable(column.value) else row.get(column.value)


def _plain_table(columns: Sequence[Column], cells: list[list[str]]) -> None:
    lines = [[column.heading for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        text = "  ".join(
            part.rjust(width) if column.right else part.ljust(width)
            for part, width, column in zip(line, widths, columns, strict=True)
        )
        click.echo(text.rstrip())


def _rich_table(columns: Sequence[Column], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left")
    for line in cells:
        table.add_row(*(Text(part, style=style(part)) for part in line))
    Console(highlight=False).print(table)
