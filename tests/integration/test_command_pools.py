"""Pools made by hooks: of VMs reached by SSH, and of what runs no jobs and is only leased."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from remuda import Client, JobSpec, NoResources
from remuda.cli import connect
from remuda.cli.app import root
from remuda.errors import BadInput, TransientProviderError
from remuda.models import leases, vm_life, watches
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
        assert lease.data() == "board=0\n"
        assert yard.runtime.transact(lambda c: leases.data(c, lease.id, uuid4())) == ""
        lease.release()
        assert lease.data() == ""
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


@pytest.mark.parametrize("printed", ["address=10.0.0.7\nvnc=5901\n", "board=7\n", ""])
def test_the_command_of_a_lease_has_what_the_hook_printed(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setenv("REMUDA_VM_DATA", "of another lease")
    (tmp_path / "printed").write_text(printed)
    hooks = {"cmd_new": f"cat {tmp_path}/printed", "cmd_delete": "true"}
    with Client(yard.runtime.settings, owner="alice") as client:
        pool = client.create_pool("boards", provider="command", backend="none", settings=hooks)
        pool.submit()
        yard.pool_id = pool.id
        [vm] = yard.vms()
        assert yard.launch(vm)["state"] == "RUNNING"
        monkeypatch.setattr(connect, "open_client", lambda: nullcontext(client))
        told = f'printf %s "$REMUDA_VM_DATA." > {tmp_path}/told'
        words = ["acquire", "--pool", "boards"]
        done = CliRunner().invoke(root, [*words, "--", "sh", "-c", told])
        assert (done.exit_code, done.output) == (0, "")
        assert (tmp_path / "told").read_text() == f"{printed}."
        assert "DATA" not in CliRunner().invoke(root, words).output


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
