"""Spans of time, strictly read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remuda.errors import BadInput
from remuda.timespan import span_of, span_text

YEAR_S = 31_536_000


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("00:10:00", 600.0),
        ("23:59:59", 86399.0),
        ("1.00:00:00", 86400.0),
        ("10.01:02:03", 867723.0),
        (timedelta(minutes=3), 180.0),
        (90, 90.0),
        ("", None),
        (None, None),
        ("00:00:00", None),
        (timedelta(0), None),
    ],
)
def test_spans(given: Any, seconds: float | None) -> None:
    assert span_of("ttl", given, most_s=YEAR_S) == seconds


@pytest.mark.parametrize(
    "given",
    ["00:00:00junk", "junk", "1:00:00", "24:00:00", "00:60:00", "00:00:60", "-1.00:00:00", " 00:00:10",
     "00:00:10\n", "00:10", "1.2.03:04:05", "٠٠:00:10", "366.00:00:00", "9" * 5000, b"00:00:10",
     timedelta(seconds=-1), timedelta(days=366), -1, float("nan"), float("inf"), True, [], {}],
)  # fmt: skip
def test_what_is_no_span_is_refused_by_name(given: Any) -> None:
    with pytest.raises(BadInput, match="ttl must be a span"):
        span_of("ttl", given, most_s=YEAR_S)


@pytest.mark.parametrize("text", ["00:10:00", "1.00:00:00", "10.01:02:03", ""])
def test_they_are_written_as_they_are_read(text: str) -> None:
    assert span_text(span_of("ttl", text, most_s=YEAR_S)) == text
