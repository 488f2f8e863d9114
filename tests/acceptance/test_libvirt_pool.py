"""A whole system on virtual machines: jobs with files in them, the plug of one pulled, nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import BadInput, JobSpec
from tests.invariants import broken
from tests.libvirtd import Libvirtd, built_guest, libvirtd
from tests.system import System, eventually, running_system

__all__ = ["libvirtd"]

_BUSY = """SELECT v.provider_id FROM attempts a JOIN vms v ON v.id = a.vm_id
           WHERE a.state = 'STARTED' ORDER BY v.id"""
_NOT_IN_ORDER = """SELECT j.id, j.submitted_at, a.started_at, a.ended_at
                   FROM jobs j JOIN attempts a ON a.job_id = j.id
                   WHERE a.state = 'COLLECTED' AND NOT (j.submitted_at < a.started_at
                     AND a.started_at < a.ended_at AND a.ended_at <= clock_timestamp())"""
BOOT_S = 180.0  # an emulated machine costs ten seconds of a core, which other tests want, too


@pytest.fixture
def system(tmp_path: Path, database_url: str, libvirtd: Libvirtd) -> Iterator[System]:
    """A running system that ends before its libvirt does."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


@pytest.mark.timeout(600)
def test_jobs_run_in_virtual_machines(system: System, libvirtd: Libvirtd, tmp_path: Path) -> None:
    """A VM whose plug is pulled under its jobs is replaced, and they run again.

    Their clocks are an hour fast: nothing that is told of the VMs or the jobs is off by it.
    """
    settings = libvirtd.settings(built_guest(), clock_s=3600, user="remuda", cores=2)
    (tmp_path / "in").write_text("the input\n")
    with system.client() as client:
        pool = client.create_pool(
            "farm",
            provider="libvirt",
            image="guest",
            settings=settings,
            slots_per_vm=2,
            instance_count=1,
            heartbeat_s=1,
        )
        pool.submit()
        spec = JobSpec(
            ["sh", "-c", "cat in > out; id -un; uname -n; date +%s; echo $REMUDA_VM; sleep 2"],
            inputs=[(str(tmp_path / "in"), "in")],
            outputs=["out"],
            output_dir=str(tmp_path / "results" / "{index}"),
            memory_bytes=64 << 20,
        )
        jobs = client.submit_array(spec, 10, pool=pool)
        eventually("jobs run", lambda: len(system.query(_BUSY)) == 2, timeout_s=BOOT_S)
        victim = system.query(_BUSY)[0]["provider_id"]
        os.kill(libvirtd.emulators()[victim], signal.SIGKILL)

        results = [job.result(timeout_s=BOOT_S) for job in jobs]
        assert {r.outputs["out"].read_text() for r in results} == {"the input\n"}
        assert {r.stdout.split()[0] for r in results} == {b"remuda"}
        assert all(r.usage.peak_memory_bytes or 0 > 0 for r in results)
        assert all(abs(int(r.stdout.split()[2]) - time.time() - 3600) < 600 for r in results)
        assert system.query(_NOT_IN_ORDER) == []
        assert all(2 <= (r.usage.wall_s or 0) < 30 for r in results)
        too_long = client.submit(JobSpec(["sleep", "1000"], walltime_s=2), pool=pool)
        assert too_long.wait(timeout_s=BOOT_S).reason == "WALLTIME"
        (lost,) = system.query("SELECT count(*) FROM attempts WHERE state = 'LOST'")
        assert lost["count"] == 2
        ended = system.query("SELECT state, error FROM vms WHERE provider_id = %(vm)s", vm=victim)
        assert "stopped" in ended[0]["error"]
        assert broken(system.query) == {}

        pool.close()
        pool.wait_closed(timeout_s=60)
    assert {row["state"] for row in system.query("SELECT state FROM vms")} == {"HALTED"}
    assert libvirtd.emulators() == {}
    assert list(libvirtd.store.iterdir()) == []


@pytest.mark.timeout(600)
def test_a_virtual_machine_restarts_and_ends_itself(system: System, libvirtd: Libvirtd) -> None:
    """What ran when it was restarted runs again, on the same VM; left alone it powers itself off."""
    boot_id = JobSpec(["cat", "/proc/sys/kernel/random/boot_id"])
    with system.client() as client:
        pool = client.create_pool(
            "farm",
            provider="libvirt",
            image="guest",
            settings=libvirtd.settings(built_guest(), user="root"),
            instance_count=1,
            heartbeat_s=1,
            slots_per_vm=1,
            reboot_command=["reboot"],
            dead_man_s=5,
            dead_man_command=["poweroff"],
        )
        pool.submit()
        before = client.submit(boot_id, pool=pool).result(timeout_s=BOOT_S).stdout
        again = 'test "$REMUDA_EPOCH" -gt 1 || sleep 1000'
        job = client.submit(JobSpec(again, shell=True, retries=0), pool=pool)
        eventually("it runs", lambda: system.query(_BUSY), timeout_s=BOOT_S)
        [vm] = client.vms(pool=pool)
        client.reboot_vm(vm.id)
        job.result(timeout_s=BOOT_S)
        after = client.submit(boot_id, pool=pool).result(timeout_s=BOOT_S).stdout
        assert before != after
        assert [row["vm_id"] for row in system.query("SELECT DISTINCT vm_id FROM attempts")] == [
            vm.id
        ]
        [emulator] = libvirtd.emulators().values()
        system.kill("beat")
        system.kill("worker")
        eventually("it is off", lambda: emulator not in libvirtd.emulators().values(), timeout_s=60)
        system.start_worker()
        system.start_beat()
        eventually(
            "it is given up and terminated",
            lambda: client.vm(vm.id).state == "HALTED",
            timeout_s=60,
        )
        assert broken(system.query) == {}
        pool.close(now=True)
        pool.wait_closed(timeout_s=60)
    assert libvirtd.emulators() == {}


def test_wrong_settings_are_refused_when_the_pool_is_made(
    system: System, libvirtd: Libvirtd
) -> None:
    """The message names the setting; nothing is made."""
    settings = libvirtd.settings(network="carrier pigeon")
    with system.client() as client:
        with pytest.raises(BadInput, match="network must be user"):
            client.create_pool("farm", provider="libvirt", image="blank", settings=settings)
        assert client.pools(all=True) == []
