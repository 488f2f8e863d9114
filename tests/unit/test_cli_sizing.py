"""`remuda pool policies` and `decisions`: read from files and the line, shown, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from remuda.cli.pool_sizing import PoliciesFile
from remuda.policy_rows import policies_of, policy_row
from tests.unit.cli import stand_in
from tests.unit.fake_pools import NOON
from tests.unit.fake_pools import FakeClient as FakePools

NIGHT = {"name": "night", "kind": "fixed", "slots": 4}
TOML = """
[[policies]]
name = "day"
kind = "queue"
maximum_total_slots = 20
periods = [{ days = ["mon", "tue", "wed"], from = 08:00:00, to = "18:00" }]

[[policies]]
name = "night"
kind = "fixed"
slots = 4
"""


class FakeClient:
    """One pool."""

    def __init__(self) -> None:
        self.set: list[Any] = []

    def pool(self, _name: str) -> FakeClient:
        return self

    def set_policies(self, policies: list[dict[str, Any]]) -> None:
        self.set = policies

    def policies(self) -> list[dict[str, Any]]:
        return [policy_row(policy) for policy in policies_of(self.set)]

    def decisions(self, *, limit: int) -> list[dict[str, Any]]:
        return [
            {"at": NOON, "step": "grow", "policy": "day", "alive": 0, "target": limit,
             "grow_vms": 2, "close_vms": 0, "drain_vms": 0, "reason": "growing by 2 VMs"}
        ]  # fmt: skip


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def run(*words: str) -> Result:
    return CliRunner().invoke(root, ["pool", *words])


def test_they_are_read_from_toml_and_shown(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "week.toml").write_text(TOML)
    done = run("policies", "sim", "--policies", str(tmp_path / "week.toml"))
    assert done.exit_code == 0, done.output
    assert [policy["name"] for policy in client.set] == ["day", "night"]
    assert "0 to 20 slots by demand" in done.output
    assert "mon-wed 08:00-18:00 (UTC)" in done.output
    assert "4 slots, always" in done.output
    assert json.loads(run("policies", "sim", "--json").output) == client.policies()
    assert "its own size rules" in run("policies", "sim", "--clear").output
    assert client.set == []
    assert run("policies", "sim", "--clear", "--policies", json.dumps(NIGHT)).exit_code == 2


def test_every_way_to_write_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"policies": [NIGHT]}))
    for value in (json.dumps(NIGHT), json.dumps([NIGHT]), str(tmp_path / "a.json"), [NIGHT]):
        assert PoliciesFile().convert(value, None, None) == [NIGHT]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("/no/such/file.toml", "No such file"),
        ("{", "Expecting property name"),
        ('{"policies": 7}', "must be a list"),
        ('{"name": "a", "kind": "fixed", "slots": NaN}', r"policies\[0\].slots"),
        (
            '[{"name": "a", "kind": "fixed", "slots": 1, "periods": [{"from": "22:00", "to": "06:00"}]}]',
            r"periods\[0\].to .*two periods",
        ),
    ],
)
def test_what_is_wrong_is_told(value: str, match: str) -> None:
    with pytest.raises(click.BadParameter, match=match):
        PoliciesFile().convert(value, None, None)


def test_decisions_are_listed(client: FakeClient) -> None:
    done = run("decisions", "sim", "--limit", "7")
    assert done.output.splitlines()[0].split()[:3] == ["AT", "STEP", "POLICY"]
    assert "growing by 2 VMs" in done.output
    assert json.loads(run("decisions", "sim", "--json").output)[0]["target"] == 50
    assert run("decisions", "sim", "--limit", "0").exit_code == 2


def test_pools_are_created_and_set_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePools()
    stand_in(monkeypatch, fake)
    told = ("--policies", json.dumps(NIGHT), "--group", "cloud", "--datacenter", "FR",
            "--offer-order", "cheapest")  # fmt: skip
    expected = {
        "policies": [NIGHT],
        "sizing_group": "cloud",
        "datacenter": "FR",
        "offer_order": "cheapest",
    }
    assert run("create", "sim", *told).exit_code == 0
    assert run("set", "sim", *told).exit_code == 0
    [created] = [fields for name, (_, fields) in fake.calls[:1] if name == "create_pool"]
    [changed] = [fields for name, fields in fake.calls if name == "set"]
    assert expected.items() <= created.items()
    assert changed == expected
    assert run("set", "sim", "--offer-order", "dearest").exit_code == 2
