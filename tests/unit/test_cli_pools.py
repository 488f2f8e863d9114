"""The pool and vm commands over a client that only remembers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from remuda.cli.pool import _policy
from remuda.client.vms import VmInfo
from remuda.errors import BadInput, InstanceNotFound, Refused, UnknownPool, WaitTimeout
from remuda.retries import RetryPolicy, RetryRule, retry_row
from tests.unit.cli import stand_in

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)

_KNOWN: dict[str, Any] = {
    "id": 3,
    "name": "sim-3",
    "pool": "sim",
    "provider": "local",
    "state": "RUNNING",
    "draining": False,
    "slots": 2,
    "busy_slots": 1,
    "leased_slots": 1,
    "jobs": 1,
    "address": {"home": "/x"},
    "load": 0.123,
    "heartbeat_at": NOON,
    "heartbeat_age_s": 0.5,
    "created_at": NOON,
    "image": "default",
    "facts": {"cores": 2},
    "check_failures": 0,
}
_FIELDS: dict[str, Any] = {item.name: _KNOWN.get(item.name) for item in fields(VmInfo)}
VM = VmInfo(**_FIELDS)


@dataclass
class FakePool:
    """A pool's row."""

    name: str
    fields: dict[str, Any]
    calls: list[tuple[str, Any]]
    wrong: bool = False

    @property
    def state(self) -> str:
        return str(self.fields["state"])

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.fields.get("settings", {}))

    def info(self) -> dict[str, Any]:
        return self.fields

    def update(self) -> FakePool:
        return self

    def setup_elastic(self, **arguments: Any) -> None:
        if self.wrong:
            raise BadInput("no")
        self.calls.append(("setup_elastic", arguments))
        self.fields |= {
            "is_elastic": True,
            "elastic_minimum_slots": arguments.get("minimum_total_slots", 0),
            "elastic_maximum_slots": arguments["maximum_total_slots"],
        }

    def submit(self) -> FakePool:
        self.fields["state"] = "SUBMITTED"
        return self

    def set(self, **fields: Any) -> None:
        self.calls.append(("set", fields))

    def close(self, *, now: bool) -> None:
        self.calls.append(("close", now))
        self.fields |= {"state": "CLOSING", "live_jobs": 2}

    def wait_closed(self, timeout_s: float | None) -> None:
        if timeout_s == 0:
            raise WaitTimeout("pool sim is still CLOSING")
        self.fields |= {"state": "CLOSED", "live_jobs": 0}

    def delete(self) -> None:
        self.calls.append(("delete", self.name))

    def wait_deleted(self, timeout_s: float | None, *, on_progress: Callable[..., None]) -> None:
        for left in ({"vms": 1, "unowned": 2}, {"vms": 0, "unowned": 0}, {"vms": 0, "unowned": 0}):
            on_progress(left)
        if timeout_s == 0:
            raise WaitTimeout("pool sim is not wholly gone yet")

    def update_image(self, image: str, *, max_unavailable: int | None) -> None:
        self.calls.append(("update_image", (image, max_unavailable)))

    def rollout(self) -> dict[str, Any]:
        return {"image": "new", "under_way": False, "current": 2, "outdated": 1, "running": 1}

    def wait_updated(self, timeout_s: float | None, *, on_progress: Callable[..., None]) -> None:
        on_progress({**self.rollout(), "message": "no luck"})
        if timeout_s == 0:
            raise WaitTimeout("pool sim has VMs of another image")

    def confirm_loss(self) -> None:
        self.calls.append(("confirm_loss", self.name))

    def explain(self) -> list[str]:
        return ["Because."]


@dataclass
class FakeClient:
    """Pools by name and one VM."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    by_name: dict[str, FakePool] = field(default_factory=dict)
    wrong: bool = False

    def create_pool(self, name: str, **fields: Any) -> FakePool:
        self.calls.append(("create_pool", (name, fields)))
        row = {"name": name, "state": "UNSUBMITTED", "is_elastic": False, "instance_count": 1,
               "live_jobs": 0, "busy_slots": 0, "slots": 0, **fields}  # fmt: skip
        self.by_name[name] = FakePool(name, row, self.calls, self.wrong)
        return self.by_name[name]

    def pool(self, name: str) -> FakePool:
        if name not in self.by_name:
            raise UnknownPool(f"there is no pool {name!r}", hint="pools: none yet")
        return self.by_name[name]

    def pools(self, *, all: bool) -> list[FakePool]:
        return list(self.by_name.values())

    def counts(self, pool: FakePool) -> dict[str, int]:
        return {"NEW": 0, "RUNNING": 2}

    def vms(
        self, *, state: Sequence[str] | None = None, all: bool = False, **more: Any
    ) -> list[VmInfo]:
        given = {name: value for name, value in more.items() if value}
        self.calls.append(("vms", (state, all, given) if given else (state, all)))
        return [VM]

    def count(self, kind: str, *, by: str, **filters: Any) -> list[dict[str, Any]]:
        self.calls.append(("count", (kind, by, filters)))
        return [{"pool": "sim", "state": "RUNNING", "count": 2}]

    def vm_history(self, vm_id: int, *, newest: int) -> dict[str, Any]:
        self.calls.append(("vm_history", (vm_id, newest)))
        beat = {
            "at": NOON,
            "state": "RUNNING",
            "load": 0.5,
            "running_jobs": 1,
            "queued_jobs": 2,
            "memory_free_bytes": 1 << 30,
            "disk_free_bytes": 1 << 40,
            "transferred_files": 3,
            "transferred_bytes": 4 << 20,
            "uptime_s": 90.0,
        }
        event = {"at": NOON, "to_state": "ERROR", "detail": {"error": "gone"}}
        return {"vm": {"id": vm_id}, "image": {}, "events": [event], "heartbeats": [beat]}

    def vm(self, vm_id: int) -> VmInfo:
        if vm_id != VM.id:
            raise InstanceNotFound(f"there is no VM {vm_id}")
        return VM

    def drain_vm(self, vm_id: int) -> None:
        self.calls.append(("drain", vm_id))

    def terminate_vm(self, vm_id: int, *, now: bool) -> bool:
        self.calls.append(("terminate", (vm_id, now)))
        return now


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def remuda(line: str) -> Result:
    return CliRunner().invoke(root, shlex.split(line), prog_name="remuda")


def test_the_quickstarts_pool(client: FakeClient) -> None:
    result = remuda(
        "pool create sim --provider local --slots-per-vm 2 --min-slots 0 --max-slots 8"
        " --idle-time 30"
    )
    assert (result.exit_code, result.stdout) == (0, "pool sim is SUBMITTED: 0..8 slots\n")
    assert client.calls == [
        ("create_pool", ("sim", {"provider": "local", "backend": None, "image": "default",
                                 "slots_per_vm": 2})),
        ("setup_elastic", {"minimum_total_slots": 0, "maximum_total_slots": 8,
                           "minimum_idle_time_seconds": 30.0, "resize_period": 1.0}),
    ]  # fmt: skip


def test_a_pool_of_fixed_size_with_everything(client: FakeClient) -> None:
    result = remuda(
        "pool create fix --provider ec2 --image ubuntu --backend ssh --vms 2 --memory-per-vm 4G"
        " --isolation owner --heartbeat 2s --stalling-interval 1m --tag a --tag b"
        " --setting region=eu-1 --setting spot=true --no-submit --json"
    )
    assert result.exit_code == 0
    assert [pool["state"] for pool in json.loads(result.stdout)] == ["UNSUBMITTED"]
    assert client.calls[0][1][1] == {
        "provider": "ec2",
        "backend": "ssh",
        "image": "ubuntu",
        "instance_count": 2,
        "memory_bytes_per_vm": 4 << 30,
        "isolation": "owner",
        "heartbeat_s": 2.0,
        "stalling_interval_s": 60.0,
        "tags": ["a", "b"],
        "settings": {"region": "eu-1", "spot": True},
    }


def test_elastic_defaults_depend_on_the_provider(client: FakeClient) -> None:
    remuda("pool create far --provider ec2 --max-slots 8 --resize-factor 0.5 --min-idle-slots 1")
    assert client.calls[1][1] == {
        "maximum_total_slots": 8,
        "resize_factor": 0.5,
        "minimum_idle_slots": 1,
        "resize_period": 90.0,
    }


def test_a_refused_pool_leaves_nothing_behind(client: FakeClient) -> None:
    client.wrong = True
    result = remuda("pool create sim --max-slots 8")
    assert (result.exit_code, result.stderr) == (2, "remuda: error: no\n")
    assert client.calls[-1] == ("delete", "sim")


def test_set(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool set sim --max-slots 6 --idle-time 2m --tag x").exit_code == 0
    assert client.calls[-1] == (
        "set",
        {
            "tags": ["x"],
            "is_elastic": True,
            "elastic_maximum_slots": 6,
            "elastic_minimum_idle_time_s": 120.0,
        },
    )
    assert remuda("pool set sim --vms 3").exit_code == 0
    assert client.calls[-1] == ("set", {"instance_count": 3, "is_elastic": False})
    assert remuda("pool set nope --vms 3").exit_code == 1


def test_list_and_show(client: FakeClient) -> None:
    assert json.loads(remuda("pool list --json").stdout) == []
    pool = client.create_pool("sim", slots_per_vm=2)
    pool.setup_elastic(maximum_total_slots=8)
    lines = remuda("pool list").stdout.splitlines()
    assert lines[1].split()[:4] == ["sim", "UNSUBMITTED", "0..8", "slots"]
    shown = remuda("pool show sim").stdout
    assert "0..8 slots" in shown
    assert "RUNNING=2" in shown
    found = json.loads(remuda("pool show sim --json").stdout)
    assert found[0]["elastic"]["maximum_total_slots"] == 8
    assert (found[0]["jobs"], found[0]["vms_by_state"]) == (
        {"NEW": 0, "RUNNING": 2},
        {"RUNNING": 1},
    )


def test_close(client: FakeClient) -> None:
    client.create_pool("sim")
    result = remuda("pool close sim")
    assert (result.exit_code, result.stdout) == (0, "pool sim is CLOSING\n")
    assert result.stderr == "2 jobs still to end; --now cancels\n"
    assert remuda("pool close sim --now --wait").stdout == "pool sim is CLOSED\n"
    late = remuda("pool close sim --timeout 0")
    assert (late.exit_code, late.stderr) == (1, "remuda: error: pool sim is still CLOSING\n")


def test_delete_and_explain(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool explain sim").stdout == "Because.\n"
    deleted = remuda("pool delete sim")
    assert deleted.stdout == "pool sim is deleted\n"
    assert deleted.stderr == "left: 1 VM and 2 machines without a VM\nits provider is asked\n"
    assert remuda("pool delete sim --no-wait").stdout == "pool sim is being deleted\n"
    assert remuda("pool delete sim --timeout 0").exit_code == 124


def test_update_and_confirm_loss(client: FakeClient) -> None:
    client.create_pool("sim")
    assert remuda("pool update sim --image new").stdout == "new VMs of pool sim are made of new\n"
    updated = remuda("pool update sim --image new --rolling --max-unavailable 2")
    assert updated.stdout == "pool sim is updated to new\n"
    assert updated.stderr == "1 of 3 VMs run from new; a launch failed: no luck\n"
    assert remuda("pool update sim --image new --rolling --timeout 0").exit_code == 124
    assert remuda("pool update sim --image new --no-wait").exit_code == 2
    assert remuda("pool confirm-loss sim").stdout == "the loss of pool sim is confirmed\n"
    assert [call for call in client.calls if call[0] in ("update_image", "confirm_loss")] == [
        ("update_image", ("new", None)),
        ("update_image", ("new", 2)),
        ("update_image", ("new", 1)),
        ("confirm_loss", "sim"),
    ]
    assert remuda("pool explain nope").stderr == (
        "remuda: error: there is no pool 'nope'\nhint: pools: none yet\n"
    )


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


def test_hosts_are_for_static_pools(client: FakeClient, tmp_path: Path) -> None:
    """They are not left out silently, and a static pool is not made without."""
    file = tmp_path / "hosts.json"
    file.write_text('[{"address": "10.0.0.5"}]')
    assert "--provider static" in remuda(f"pool create lab --hosts {file}").stderr
    assert "--hosts" in remuda("pool create lab --provider static").stderr
    assert client.calls == []
    made = remuda(f"pool create lab --provider static --hosts {file}")
    assert made.exit_code == 0
    assert client.calls[0][1][1]["settings"]["hosts"][0]["address"] == "10.0.0.5"


def test_a_pools_policy_is_shown() -> None:
    row = retry_row(RetryPolicy(max_retries=2, delay_s=0.5, rules=[RetryRule(exit_codes=[1])]))
    assert _policy(row) == "max_retries=2, delay_s=0.5, rules=1"
    assert _policy(None) == ""
