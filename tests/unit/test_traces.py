"""Traces: read from files, each wrong field named; made up, the same each time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remuda.errors import BadInput
from remuda.traces import PATTERNS, TraceRow, read_trace, synthetic_trace


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"submit_s": 10, "wall_s": 5, "cores": 2, "memory_bytes": "1G"},
        {"submit_s": 0, "wall_s": 1.5, "count": 2},
    ]
    as_csv, as_json = tmp_path / "a.csv", tmp_path / "a.jsonl"
    as_csv.write_text("submit_s,wall_s,cores,memory_bytes,count\n10,5,2,1G,\n0,1.5,,,2\n")
    as_json.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    expected = [TraceRow(0, 1.5), TraceRow(0, 1.5), TraceRow(10, 5, 2, 1 << 30)]
    assert read_trace(as_csv) == read_trace(as_json) == (expected, None)


def test_times_give_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("submitted_at,wall_s\n2026-01-05T09:00:30+01:00,5\n2026-01-05T08:00:00Z,7\n")
    found = read_trace(path)
    assert found.start == datetime(2026, 1, 5, 8, tzinfo=UTC)
    assert found.jobs == [TraceRow(0, 7), TraceRow(30, 5)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"wall_s": 1}, "line 1: submit_s"),
        ({"submit_s": 0}, "line 1: wall_s"),
        ({"submit_s": 0, "wall_s": 1, "priority": 1001}, "line 1: priority"),
        ({"submit_s": 0, "wall_s": 1, "priority": 0.5}, "line 1: priority"),
        ({"submit_s": -1, "wall_s": 1}, "submit_s"),
        ({"submit_s": 0, "wall_s": 0}, "wall_s must be a number above 0"),
        ({"submit_s": 0, "wall_s": float("nan")}, "wall_s"),
        ({"submit_s": 0, "wall_s": True}, "wall_s"),
        ({"submit_s": 0, "wall_s": "x" * 10_000}, "wall_s"),
        ({"submit_s": 0, "wall_s": 1, "cores": 1.5}, "cores must be a whole number"),
        ({"submit_s": 0, "wall_s": 1, "cores": 0}, "cores"),
        ({"submit_s": 0, "wall_s": 1, "memory_bytes": -1}, "memory_bytes"),
        ({"submit_s": 0, "wall_s": 1, "memory_bytes": "many"}, "memory_bytes"),
        ({"submit_s": 0, "wall_s": 1, "count": 10**9}, "count"),
        ({"submitted_at": "noon", "wall_s": 1}, "submitted_at must be a time"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(BadInput, match=match):
        read_trace(path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"", "neither .csv nor .jsonl"),
        ("a.csv", b"", "holds no job"),
        ("a.csv", b"submit_s,wall_s\n\xff,1\n", "no text"),
        ("a.jsonl", b"[1]", "must be an object"),
        ("a.jsonl", b"{", "is no JSON"),
        (
            "a.jsonl",
            b'{"submit_s": 0, "wall_s": 1}\n{"submitted_at": "2026-01-01", "wall_s": 1}',
            "both",
        ),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=match):
        read_trace(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_made_up_ones_are_the_same_each_time(pattern: str) -> None:
    found = synthetic_trace(jobs=50, cores=3, pattern=pattern, span_s=1000)
    assert found == synthetic_trace(jobs=50, cores=3, pattern=pattern, span_s=1000)
    assert found != synthetic_trace(jobs=50, cores=3, pattern=pattern, span_s=1000, seed=2)
    assert found.jobs == sorted(found.jobs)
    assert all(0 <= job.submit_s <= 1000 and 1 <= job.cores <= 3 for job in found.jobs)


@pytest.mark.parametrize(
    "wrong",
    [{"jobs": 0}, {"jobs": 2.0}, {"span_s": 0}, {"wall_s": float("nan")}, {"pattern": "x"},
     {"cores": True}, {"seed": -1}],
)  # fmt: skip
def test_made_up_ones_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        synthetic_trace(**wrong)
