"""Workers killed with SIGKILL at the worst moments of a VM's life: nothing leaks, nobody else's suffers."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from remuda.config import Settings, load_settings
from remuda.models.database import rows
from remuda.models.vm_life import insert_vms
from remuda.tasks import launching, ledger, machines, messages
from remuda.tasks.runtime import Runtime
from remuda.workers.onvm.processes import runner_pid
from remuda.workers.providers.base import VmSpec
from remuda.workers.providers.local import LocalProvider
from tests.integration.builders import assert_sound, make_jobs, make_pool

# A worker that dies by its own hand just before, or just after, a call to its provider.
WORKER = """
import os, signal, sys
from remuda.tasks import launching, machines
from remuda.tasks.runtime import Runtime
from remuda.config import load_settings
from remuda.workers.providers.local import LocalProvider
call, when, vm = sys.argv[1], sys.argv[2], int(sys.argv[3])
inner = getattr(LocalProvider, call)
def dying(self, *args):
    if when == "after":
        inner(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(LocalProvider, call, dying)
runtime = Runtime(load_settings())
(launching.spawn_vm if call == "spawn" else machines.terminate_vm)(runtime, vm)
"""


@pytest.fixture
def runtime(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """The worker that comes after."""
    settings = load_settings(
        database_url=database_url,
        data_dir=tmp_path / "data",
        state_dir=tmp_path / "state",
        unowned_grace_s=0,
    )
    made = Runtime(settings)
    monkeypatch.setattr(messages, "_send", lambda *_: None)
    yield made
    made.transact(assert_sound)
    made.close()


@pytest.fixture
def canary(runtime: Runtime) -> Iterator[dict[str, Any]]:
    """A machine of another installation in the same place, that nothing here may touch."""
    provider = LocalProvider(runtime.settings)
    name = provider.spawn(VmSpec(name="canary", pool=str(uuid.uuid4()), slots=1), "canary")
    home = provider.root / name
    seen = {"pid": runner_pid(str(home)), "about": (home / "vm.json").read_bytes()}
    yield seen
    assert runner_pid(str(home)) == seen["pid"]
    assert (home / "vm.json").read_bytes() == seen["about"]
    provider.terminate(name)


def die(settings: Settings, call: str, when: str, vm: int) -> None:
    """Have a worker die at that moment."""
    environment = {
        **os.environ,
        "REMUDA_DATABASE_URL": settings.database_url.get_secret_value(),  # type: ignore[union-attr]
        "REMUDA_DATA_DIR": str(settings.data_dir),
        "REMUDA_STATE_DIR": str(settings.state_dir),
    }
    done = subprocess.run(
        [sys.executable, "-c", WORKER, call, when, str(vm)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr


def homes(runtime: Runtime) -> list[str]:
    """Return the machines there are but the canary."""
    found = LocalProvider(runtime.settings).list("")
    return [vm.provider_id for vm in found if vm.token != "canary"]


def vm_of(runtime: Runtime, vm_id: int) -> dict[str, Any]:
    return dict(
        runtime.transact(lambda c: rows(c, "SELECT * FROM vms WHERE id = :id", id=vm_id))[0]
    )


def sweep(runtime: Runtime) -> None:
    runtime.transact(lambda c: c.execute(text("UPDATE sweeps SET last_run_at = 'epoch'")))
    ledger.reconcile_vms(runtime, every_s=0)


@pytest.mark.parametrize(
    ("call", "when"),
    [("spawn", "before"), ("spawn", "after"), ("terminate", "before"), ("terminate", "after")],
)
@pytest.mark.parametrize("fate", ["goes on", "is stopped"])
def test_a_worker_dies_between(
    runtime: Runtime, canary: dict[str, Any], call: str, when: str, fate: str
) -> None:
    """Between record and launch, launch and record, terminate and confirm."""

    def make(connection: Any) -> int:
        pool = make_pool(connection, heartbeat_s=0.5)
        make_jobs(connection, pool, 2)
        return insert_vms(connection, pool, 1)[0]

    vm = runtime.transact(make)
    if call == "terminate":
        assert launching.spawn_vm(runtime, vm)
        runtime.transact(lambda c: c.execute(text("UPDATE vms SET state = 'STOPPING'")))
    die(runtime.settings, call, when, vm)
    assert vm_of(runtime, vm)["state"] == ("NEW" if call == "spawn" else "STOPPING")
    assert len(homes(runtime)) == int((call, when) in (("spawn", "after"), ("terminate", "before")))
    sweep(runtime)  # it is on its way: nobody's machine may be taken for a stray
    assert (
        runtime.transact(lambda c: rows(c, "SELECT * FROM unowned_machines WHERE pool_id > 0"))
        == []
    )
    if call == "spawn" and fate == "goes on":
        runtime.transact(lambda c: c.execute(text("UPDATE vms SET next_try_at = NULL")))
        assert launching.spawn_vm(runtime, vm)
        assert homes(runtime) == [vm_of(runtime, vm)["provider_id"]]  # one, not two
    if vm_of(runtime, vm)["state"] != "STOPPING":
        runtime.transact(lambda c: c.execute(text("UPDATE vms SET state = 'STOPPING'")))
    assert machines.terminate_vm(runtime, vm)
    assert vm_of(runtime, vm)["state"] == "HALTED"
    assert homes(runtime) == []
    sweep(runtime)
    query = "SELECT * FROM unowned_machines"
    assert all(row["pool_id"] is None for row in runtime.transact(lambda c: rows(c, query)))


def test_a_row_that_is_lost_leaves_no_machine(runtime: Runtime, canary: dict[str, Any]) -> None:
    """Killed after the launch, and the database set back to before it: a stray, ended as one."""

    def make(connection: Any) -> int:
        return insert_vms(connection, make_pool(connection, heartbeat_s=0.5), 1)[0]

    vm = runtime.transact(make)
    die(runtime.settings, "spawn", "after", vm)
    runtime.transact(
        lambda c: c.execute(text("UPDATE vms SET token = gen_random_uuid(), state = 'STOPPING'"))
    )
    assert machines.terminate_vm(runtime, vm)
    assert len(homes(runtime)) == 1
    sweep(runtime)
    assert homes(runtime) == []
    query = "SELECT * FROM unowned_machines WHERE pool_id IS NOT NULL"
    [booked] = runtime.transact(lambda c: rows(c, query))
    assert booked["gone_at"] is not None
