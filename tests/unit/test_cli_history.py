"""`remuda history`: what is asked for, and how it is told: plot, picture, table, JSON, CSV."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli import plotting
from remuda.cli.app import root
from remuda.cli.history import OVERVIEW
from remuda.client.history import History
from remuda.models.history import METRICS
from tests.unit.cli import stand_in

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def made(
    metric: str = "running_vms", *, by: str | None = None, keys: tuple[str, ...] = ("",), n: int = 3
) -> History:
    """Return a history that grows, of each key by its number more."""
    found = METRICS[metric]
    series: dict[str, dict[str, list[float | None]]] = {
        key: {told: [float(i * (k + 1)) for i in range(n)] for told in found.values}
        for k, key in enumerate(keys)
    }
    times = [NOON + timedelta(minutes=i) for i in range(n)]
    return History(metric, found.unit, found.help, by, 60, times, series)


@dataclass
class FakeClient:
    """Answers with what `made` makes."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def history(self, metric: str, **given: Any) -> History:
        self.calls.append((metric, given))
        by = given["by"]
        return made(metric, by=by, keys=("a", "b") if by else ("",))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def remuda(*words: str) -> Result:
    return CliRunner().invoke(root, ["history", *words], prog_name="remuda")


def test_what_is_asked_for(client: FakeClient) -> None:
    remuda(
        "--metric", "running_vms", "--by", "pool", "--since", "2h", "--bucket", "1m", "--pool", "a"
    )
    assert client.calls == [
        (
            "running_vms",
            {
                "by": "pool",
                "since": timedelta(hours=2),
                "until": timedelta(0),
                "bucket_s": 60,
                "pool": ["a"],
            },
        )
    ]
    client.calls.clear()
    remuda("--since", "2026-01-31T12:00", "--until", "2026-01-31 13:00+02:00", "--bucket", "0.5s")
    assert [metric for metric, _ in client.calls] == list(OVERVIEW)
    given = client.calls[0][1]
    assert (given["since"], given["bucket_s"]) == (NOON, 0.5)  # that the client refuses
    assert given["until"] == NOON - timedelta(hours=1)
    client.calls.clear()
    remuda("--by", "image")  # the overview divides what can be divided
    assert {metric: given["by"] for metric, given in client.calls} == {
        metric: "image" if "image" in METRICS[metric].by else None for metric in OVERVIEW
    }


@pytest.mark.parametrize("words", ["--since x", "--since -1h", "--bucket 0", "--csv --json"])
def test_what_cannot_be_asked_for(client: FakeClient, words: str) -> None:
    assert (remuda(*words.split()).exit_code, client.calls) == (2, [])


@pytest.mark.parametrize("option", ["--since", "--until"])
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("2026-13-45", ": month must be in 1..12"),
        ("2026-02-30", ": day is out of range for month"),
        ("2026-01-31T25:00", ": hour must be in 0..23"),
        ("2026-1-1", ""),
        ("yesterday", ""),
    ],
)
def test_what_is_neither_a_time_nor_a_duration(
    client: FakeClient, option: str, given: str, why: str
) -> None:
    result = remuda(option, given)
    told = " ".join(result.stderr.replace("\u2502", " ").split())
    neither = f"'{given}' is neither a duration such as 90s, 10m, 1h30m or 2d nor a time such as"
    assert f"{neither} 2026-01-31T12:00{why}" in told
    assert (result.exit_code, client.calls) == (2, [])


def test_json_csv_and_a_table(client: FakeClient) -> None:
    words = ["--metric", "running_vms", "--by", "pool"]
    [found] = json.loads(remuda(*words, "--json").stdout)
    assert (found["metric"], found["unit"], found["by"], found["bucket_s"]) == (
        "running_vms",
        "VMs",
        "pool",
        60,
    )
    assert found["points"][3] == {
        "time": "2026-01-31T12:01:00Z",
        "pool": "b",
        "avg": 2.0,
        "max": 2.0,
    }
    lines = remuda(*words, "--metric", "ended_jobs", "--csv").stdout.splitlines()
    assert lines[0] == "metric,time,pool,avg,max,sum"
    assert lines[4] == "running_vms,2026-01-31T12:01:00Z,b,2.0,2.0,"
    assert lines[-1] == "ended_jobs,2026-01-31T12:02:00Z,b,,,4.0"
    assert remuda(*words).stdout.splitlines()[1:3] == [
        "TIME                  POOL  AVG  MAX",
        "2026-01-31 12:00:00Z  a       0    0",
    ]


def test_the_metrics_are_listed(client: FakeClient) -> None:
    lines = remuda("--metric", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METRICS)
    assert client.calls == []


def test_a_plot_in_text(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    shown = remuda("--metric", "running_vms", "--by", "pool", "--plot").stdout
    lines = shown.splitlines()
    assert "running_vms: VMs that run, by pool" in lines[0]
    assert max(map(len, lines)) <= 90
    assert "\x1b" not in shown
    for text in (" a", " b", "12:00", "12:02", "VMs"):
        assert text in shown


def test_a_plot_of_nothing() -> None:
    empty = made("wait_s", n=2)
    empty.series[""].update({name: [None, None] for name in ("p50", "p90", "p99")})
    assert "nothing in this time" in plotting.terminal_plot(empty)
    assert "nothing in this time" in plotting.terminal_plot(made(by="pool", keys=()))


def test_only_the_largest_are_drawn() -> None:
    many = made(by="pool", keys=tuple(f"p{n}" for n in range(20)))
    lines, left_out = plotting.lines_of(many)
    assert ([name for name, _ in lines], left_out) == ([f"p{n}" for n in range(19, 11, -1)], 12)
    assert "and 12 more" in plotting.terminal_plot(many, colour=False)
    hostile = made(by="owner", keys=("$x^\x1b[31m",))
    assert "\x1b" not in plotting.terminal_plot(hostile, colour=False)


def test_bytes_are_shown_in_a_unit_that_reads_well() -> None:
    found = made("transferred_bytes", n=2)
    found.series[""]["sum"] = [0.0, float(3 << 30)]
    lines, unit = plotting.scaled(found, plotting.lines_of(found)[0])
    assert (lines, unit) == ([("sum", [0.0, 3.0])], "GiB")


def test_a_picture(client: FakeClient, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    result = remuda("--by", "owner", "--png", str(path))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"wrote {path}\n")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10  # lines were drawn
    missing = remuda("--png", str(tmp_path / "no" / "a.png"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)
