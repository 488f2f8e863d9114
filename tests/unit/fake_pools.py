"""A client that only remembers, for the commands of pools and VMs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from remuda.client.vms import VmInfo
from remuda.errors import BadInput, InstanceNotFound, UnknownPool, WaitTimeout
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

    def delete(self, purge_resources: bool = False, *, purge_results: bool = False) -> None:
        purge = (purge_resources, purge_results)
        self.calls.append(("delete", (self.name, *purge) if any(purge) else self.name))

    @property
    def errors(self) -> list[str]:
        return ["no quota"]

    @property
    def execution_time_s(self) -> float:
        return 61.0

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

    def stdout(self, instance: int | str | None) -> bytes:
        return b"stdout of %s" % str(instance).encode()

    def stderr(self, instance: int | str | None) -> bytes:
        return b"stderr of %s" % str(instance).encode()

    def fresh_stdout(self, instance: int | str | None) -> bytes:
        return b"new of %s" % str(instance).encode()

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [{"name": "a", "url": "file:///a", "sha256": "1", "size": 3, "version": 2}]

    def update_resources(self, inputs: Sequence[Any]) -> int:
        self.calls.append(("update_resources", inputs))
        return len(inputs)

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

    def create_profile(self, name: str, **fields: Any) -> None:
        self.calls.append(("create_profile", (name, fields)))

    def profile(self, name: str) -> dict[str, Any]:
        return {"name": name, "description": "", "provider": "local", "backend": None,
                "image": "default", "fields": {"slots_per_vm": 4}, "pools": 1}  # fmt: skip

    def profiles(self) -> list[dict[str, Any]]:
        return [self.profile("big")]

    def delete_profile(self, name: str) -> None:
        self.calls.append(("delete_profile", name))

    def pool(self, name: str) -> FakePool:
        if name not in self.by_name:
            raise UnknownPool(f"there is no pool {name!r}", hint="pools: none yet")
        return self.by_name[name]

    def pools(self, *, all: bool, **filters: Any) -> list[FakePool]:
        self.calls.append(("pools", filters))
        return list(self.by_name.values())

    def leases(self, *, pool: FakePool) -> list[dict[str, Any]]:
        return [{"id": 1, "pool": pool.name}]

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
