"""Pools made by hooks: of VMs reached by SSH, and of what runs no jobs and is only leased."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remuda import Client, JobSpec, NoResources
from remuda.errors import BadInput, TransientProviderError
from remuda.models import vm_life, watches
from remuda.tasks.machines import terminate_vm
from remuda.workers.onvm.commands import stop
from tests.integration.yard import Yard, yard
from tests.sshd import running_sshd

__all__ = ["yard"]


def test_a_board_from_its_hook_to_its_end(yard: Yard, tmp_path: Path) -> None:
    hooks = {
        "cmd_new": f'mkdir "{tmp_path}/$REMUDA_PROVIDER_ID" && echo board=$REMUDA_VM_NUMBER',
        "cmd_delete": f'rm -r "{tmp_path}/$REMUDA_PROVIDER_ID"',
    }
    with Client(yard.runtime.settings, owner="alice") as client:
        with pytest.raises(BadInput, match="cannot run a preparation"):
            client.create_pool(
                "odd", provider="command", backend="none", settings=hooks, preparation=["true"]
            )
        pool = client.create_pool("boards", provider="command", backend="none", settings=hooks)
        pool.submit()
        yard.pool_id = pool.id
        [vm] = yard.vms()
        assert yard.launch(vm)["state"] == "RUNNING"
        with pytest.raises(NoResources, match="run no jobs"):
            client.submit(JobSpec(["true"]), pool=pool)
        lease = client.acquire(pools=["boards"])
        assert lease.vm.details["data"] == {"board": "0"}
        assert (lease.vm.address, lease.vm.port) == ("", None)  # above all not this machine
        name = lease.vm.details["name"]
        assert (tmp_path / name).is_dir()
        lease.release()
        # Nobody listens to it, and nobody takes its silence for death.
        yard.sql("UPDATE vms SET heartbeat_at = now() - interval '1 day'")
        runtime = yard.runtime
        runtime.transact(lambda c: vm_life.note_sweep(c, "declare_stalled", gap_s=10))
        yard.sql("UPDATE sweeps SET since = now() - interval '1 day'")
        assert runtime.transact(lambda c: watches.claim_watches(c, "w", ttl_s=60)) == []
        assert runtime.transact(vm_life.silent_vms) == []
        yard.sql("UPDATE vms SET state = 'STOPPING', error = 'it burns'")
        (tmp_path / name).rename(tmp_path / "aside")
        for _ in range(2):  # a delete that fails is told, once, beside what was wrong before
            with pytest.raises(TransientProviderError):
                terminate_vm(runtime, vm)
            said = client.vm(vm).error
            assert said is not None
            assert said.startswith("it burns; not terminated yet: cmd_delete ended with exit code")
            assert said.count("not terminated yet") == 1
        (tmp_path / "aside").rename(tmp_path / name)
        assert terminate_vm(runtime, vm)
        assert not (tmp_path / name).exists()
        assert client.vm(vm).error == "it burns"


def test_a_vm_from_a_hook_is_reached_by_ssh(yard: Yard, tmp_path: Path) -> None:
    """What cmd_new prints is enough: the runner is brought there, and answers."""
    with running_sshd() as host:
        host.kill()  # a session is to begin in its home, as it does on a machine of its own
        host.configure('ForceCommand cd; eval "$SSH_ORIGINAL_COMMAND"')
        host.start()
        (tmp_path / "told").write_text(json.dumps(host.entry()))
        hooks = {"cmd_new": f"cat {tmp_path}/told", "cmd_delete": "true"}
        with Client(yard.runtime.settings, owner="alice") as client:
            pool = client.create_pool("hosts", provider="command", settings=hooks)
            pool.submit()
            assert pool.info()["backend"] == "ssh"
            yard.pool_id = pool.id
        [vm] = yard.vms()
        found = yard.launch(vm)
        assert (found["state"], found["error"]) == ("RUNNING", None)
        assert found["facts"]["python"]
        home = host.home / found["address"]["home"]
        assert (home / "runner.json").exists()
        yard.sql("UPDATE vms SET state = 'STOPPING'")
        assert terminate_vm(yard.runtime, vm)
        stop(str(home))  # a real machine would be gone
