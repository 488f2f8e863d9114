"""The offers that `remuda pool create` takes, from files and from the line."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from remuda.cli.offers_file import OffersFile

ONE = {"name": "eu", "settings": {"region": "eu"}, "price": 0.5}


def read(value: object) -> list[dict[str, object]]:
    return OffersFile().convert(value, None, None)


def test_every_way_to_write_them(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[offers]]\nname = "eu"\nprice = 0.5\nsettings = { region = "eu" }\n'
    )
    (tmp_path / "b.json").write_text(json.dumps({"offers": [ONE]}))
    (tmp_path / "c.json").write_text(json.dumps([ONE]))
    for value in (
        *(str(tmp_path / name) for name in ("a.toml", "b.json", "c.json")),
        json.dumps(ONE),
        json.dumps([ONE]),
        [ONE],
    ):
        assert read(value) == [ONE]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("/no/such/file", "No such file"),
        ("{", "Expecting property name"),
        ("7.json", "No such file"),
        ('{"offers": 7}', "must be a list"),
        ('{"name": "a", "region": "eu"}', "has no key region"),
        ('[{"name": "a"}, {"name": "a"}]', r"offers\[1\] is called 'a'"),
    ],
)
def test_what_is_wrong_is_told(value: str, match: str) -> None:
    with pytest.raises(click.BadParameter, match=match):
        read(value)
