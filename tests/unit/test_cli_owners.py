"""The owner commands over a client that only remembers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from tests.unit.cli import stand_in


@dataclass
class FakeClient:
    """Two owners, and what was set."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def set_owner(self, name: str, **given: Any) -> None:
        self.calls.append((name, given))

    def owners(self) -> list[dict[str, Any]]:
        row = {
            "members": 0, "usage_slot_s": 7200.0, "slots": 3, "queued": 12, "vms": 1, "leases": 0,
            "waiting": 0, "max_vms": None, "max_pools": None, "pools": 0, "weight": 2.5,
        }  # fmt: skip
        quotas = [
            {"pool": None, "max_slots": 64, "max_queued": 100},
            {"pool": "gpu", "max_slots": 4, "max_queued": None},
        ]
        return [
            {**row, "name": "alice", "group": "lab", "quotas": quotas},
            {**row, "name": "lab", "group": None, "members": 1, "quotas": []},
        ]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def owner(words: str) -> Result:
    return CliRunner().invoke(root, ["owner", *words.split()], prog_name="remuda")


def test_what_is_set_is_handed_on_and_told(client: FakeClient) -> None:
    told = owner("set alice --weight 2 --group lab --max-slots 64 --no-max-queued")
    assert told.stdout == "owner alice: weight 2, group lab, max slots 64, max queued none\n"
    assert (
        owner("set alice --pool gpu --max-slots 4").stdout
        == "owner alice in pool gpu: max slots 4\n"
    )
    assert owner("set alice --no-group --max-vms 0").exit_code == 0
    assert client.calls == [
        (
            "alice",
            {"pool": None, "weight": 2.0, "group": "lab", "max_slots": 64, "max_queued": None},
        ),
        ("alice", {"pool": "gpu", "max_slots": 4}),
        ("alice", {"pool": None, "group": None, "max_vms": 0}),
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("set alice", "say what to set"),
        ("set alice --max-slots 3 --no-max-slots", "--max-slots, or --no-max-slots"),
        ("set alice --group lab --no-group", "--group, or --no-group"),
        ("set alice --max-queued -1", "max-queued"),
        ("set alice --weight much", "weight"),
    ],
)
def test_what_cannot_be_meant_is_refused(client: FakeClient, words: str, told: str) -> None:
    refused = owner(words)
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert client.calls == []


def test_the_list(client: FakeClient) -> None:
    told = owner("list").stdout.splitlines()
    assert "64 slots, 100 queued, 4 slots in gpu" in told[1]
    assert "2.00 h" in told[1]
    assert "1 in it" in told[2]
    assert [row["name"] for row in json.loads(owner("list --json").stdout)] == ["alice", "lab"]
