"""Sizes, durations, indices, ids and assignments as people write them."""

from __future__ import annotations

import click
import pytest

from remuda.cli.provider_setting import ProviderSetting
from remuda.cli.types import (
    DURATION,
    DURATION_OR_ZERO,
    ISOLATIONS,
    JOB_IDS,
    JOB_STATES,
    MAX_IDS,
    SIZE,
    SPAN,
    VM_STATES,
    Assignment,
    Indices,
    Input,
    JsonValue,
)
from remuda.models.states import JobState, VmState


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("2GB", 2 * 10**9),
        ("1048576", 1 << 20),
        ("10B", 10),
        (" 64k ", 64 << 10),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "nan", "inf", "1e9", "12X", "0", "1 000", "9999999P", "٣M", "1,5G"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1w", 604800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("30", 30),
        ("0.5", 0.5),
        ("1H30M", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "nan", "1e3", "5x", "m", "30m1h", "1m1m", "11y", "5000w", "1h 30m"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["24:00:00", "1h:30", "1:00"])
def test_no_spans(text: str) -> None:
    with pytest.raises(click.BadParameter, match="nor a duration"):
        SPAN.convert(text, None, None)


def test_zero_duration_where_it_means_something() -> None:
    assert DURATION_OR_ZERO.convert("0", None, None) == 0


@pytest.mark.parametrize(
    ("text", "indices"),
    [("100", 100), ("0-3", [0, 1, 2, 3]), ("1-10:3", [1, 4, 7, 10]), ("3,5,8-9", [3, 5, 8, 9])],
)
def test_indices(text: str, indices: int | list[int]) -> None:
    assert Indices().convert(text, None, None) == indices


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "5-1", "1-10:0", "1,1", "a", "1-2-3", str(MAX_IDS + 1), f"0-{MAX_IDS}"]
)
def test_no_indices(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Indices().convert(text, None, None)


def test_job_ids() -> None:
    assert JOB_IDS.convert("7", None, None) == (7,)
    assert JOB_IDS.convert("7..9", None, None) == (7, 8, 9)
    for text in ("", "x", "-1", "9..7", "1..99999999", "1.5", "1..", "7-9"):
        with pytest.raises(click.BadParameter):
            JOB_IDS.convert(text, None, None)


def test_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "here=1")
    monkeypatch.delenv("ABSENT", raising=False)
    env = Assignment(from_environment=True)
    assert env.convert("A=b=c", None, None) == ("A", "b=c")
    assert env.convert("A=", None, None) == ("A", "")
    assert env.convert("GIVEN", None, None) == ("GIVEN", "here=1")
    for text in ("=x", "", "ABSENT"):
        with pytest.raises(click.BadParameter):
            env.convert(text, None, None)
    with pytest.raises(click.BadParameter):
        Assignment().convert("GIVEN", None, None)


def test_inputs(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("a=b", "w"):
        pass
    convert = Input().convert
    assert convert("tile.py", None, None) == "tile.py"
    assert convert("in.csv=data/x.csv", None, None) == ("in.csv", "data/x.csv")
    assert convert("a=b", None, None) == "a=b"
    assert convert("https://host/x?y=1", None, None) == "https://host/x?y=1"
    for text in ("=x", "x="):
        with pytest.raises(click.BadParameter):
            convert(text, None, None)


def test_json_values() -> None:
    convert = JsonValue().convert
    assert convert("n=8", None, None) == ("n", 8)
    assert convert("on=true", None, None) == ("on", True)
    assert convert("zone=eu-1", None, None) == ("zone", "eu-1")
    with pytest.raises(click.BadParameter):
        convert("alone", None, None)


def test_the_states_are_those_of_the_models() -> None:
    assert list(JOB_STATES) == [str(state) for state in JobState]
    assert list(VM_STATES) == [str(state) for state in VmState]
    assert set(ISOLATIONS) == {"shared", "owner", "sandbox", "single_use"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("cmd_delete=true", "true"),
        ("cmd_livecheck=false", "false"),
        ("cmd_new=/srv/new --size=2", "/srv/new --size=2"),
        ('cmd_new=["/srv/new", "2"]', ["/srv/new", "2"]),
        ('cmd_delete="true"', "true"),
        ("flavor=1.10", "1.10"),
        ("launch_template_version=3", "3"),
        ("uri=1", "1"),
        ("spot=true", True),
        ("port=22", 22),
        ("memory_bytes=1048576", 1048576),
        ("new_timeout_s=5", 5),
        ("flavor=null", None),
        ("delete=true", True),
        ("of_a_plugin=true", True),
    ],
)
def test_settings_of_providers(given: str, read: object) -> None:
    assert ProviderSetting().convert(given, None, None) == (given.partition("=")[0], read)
