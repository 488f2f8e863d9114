"""The vm commands over a client that only remembers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from remuda.errors import Refused
from tests.unit.fake_pools import VM, FakeClient, client, remuda

__all__ = ["client"]


def test_vm_list(client: FakeClient) -> None:
    result = remuda("vm list --state running --all")
    assert client.calls == [("vms", (["RUNNING"], True))]
    assert result.stdout.splitlines()[1].split() == [
        "3", "sim-3", "sim", "RUNNING", "2", "2", "1", "0.12", "500ms", "2025-01-31", "12:00:00Z",
    ]  # fmt: skip
    found = json.loads(remuda("vm list --json").stdout)
    assert (found[0]["address"], found[0]["heartbeat_at"]) == (
        {"home": "/x"},
        "2025-01-31T12:00:00Z",
    )


def test_vms_by_any_field(client: FakeClient) -> None:
    words = "--pool a --pool b --older 10m --where load=0.5.. --where id=1,2 --where draining=no"
    remuda(f"vm list {words} --where image=none --sort -created_at --limit 50 --start 5")
    assert client.calls == [
        (
            "vms",
            (
                None,
                False,
                {
                    "pool": ["a", "b"],
                    "older_s": 600.0,
                    "load": (0.5, None),
                    "id": [1, 2],
                    "sort": "-created_at",
                    "limit": 50,
                    "start": 5,
                },
            ),
        )
    ]
    assert remuda("vm count --by pool,state --newer 1h").stdout.split() == [
        "POOL", "STATE", "COUNT", "sim", "RUNNING", "2",
    ]  # fmt: skip
    assert client.calls[-1] == ("count", ("vms", "pool,state", {"newer_s": 3600.0}))


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("load", "is not FIELD=VALUE"),
        ("nothing=1", "have no field 'nothing'"),
        ("id=x", "id: 'x' is no whole number"),
        ("load=a..b", "load: 'a' is no number"),
        ("created_at=noon", "created_at: 'noon' is no time"),
        ("draining=perhaps", "neither true nor false"),
    ],
)
def test_filters_that_are_none(client: FakeClient, where: str, told: str) -> None:
    result = remuda(f"vm list --where {where}")
    assert (result.exit_code, client.calls) == (2, [])
    assert told in result.stderr
    assert remuda("vm list --where id=1 --where id=2").exit_code == 2


def test_vm_history(client: FakeClient) -> None:
    lines = remuda("vm history 3 --beats 5").stdout.splitlines()
    assert client.calls == [("vm_history", (3, 5))]
    assert lines[1].split() == ["2025-01-31", "12:00:00Z", "ERROR", "gone"]
    assert lines[4].split()[2:] == ["RUNNING", "0.50", "1", "2", "1G", "1T", "3", "4M", "1m30s"]
    assert json.loads(remuda("vm history sim-3 --json").stdout)[0]["vm"] == {"id": 3}


def test_a_draining_vm_shows_it(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "vms", lambda **_: [replace(VM, draining=True)])
    assert "RUNNING draining" in remuda("vm list").stdout


def test_vms_by_id_or_name(client: FakeClient) -> None:
    assert "sim-3" in remuda("vm show 3").stdout
    assert json.loads(remuda("vm show sim-3 --json").stdout)[0]["id"] == 3
    assert remuda("vm show 4").stderr == "remuda: error: there is no VM 4\n"
    assert remuda("vm show sim-4").exit_code == 1
    assert remuda("vm drain 3 sim-3").stdout == "VM sim-3 is draining\n"
    assert remuda("vm terminate sim-3").stdout == "VM sim-3 goes after 1 job\n"
    assert remuda("vm terminate sim-3 --now").stdout == "VM sim-3 goes\n"


def test_a_refused_termination(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(vm_id: int, *, now: bool) -> bool:
        raise Refused("VM 3 is HALTED")

    monkeypatch.setattr(client, "terminate_vm", refuse)
    result = remuda("vm terminate 3")
    assert (result.exit_code, result.stderr) == (1, "remuda: error: VM 3 is HALTED\n")
