"""A whole system on EC2, as moto has it: instances boot by their user data, jobs run, one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from remuda import JobSpec
from tests.guests import Guests, guests
from tests.invariants import broken
from tests.sshd import free_port, keygen, ordinary_user
from tests.stores import moto_server
from tests.system import eventually, running_system


@pytest.fixture
def cloud() -> Iterator[tuple[str, Guests]]:
    """A region, and machines behind its instances."""
    with moto_server() as url:
        api = boto3.session.Session().client("ec2", region_name="us-east-1", endpoint_url=url)
        with guests(api, user=ordinary_user(), port=free_port()) as machines:
            yield url, machines


def test_jobs_outlive_their_instances(
    tmp_path: Path, database_url: str, cloud: tuple[str, Guests]
) -> None:
    """Each VM is believed by its host key alone; one that vanishes is replaced; nothing is left."""
    url, machines = cloud
    keygen(tmp_path / "pool_key")
    canary = machines.api.run_instances(ImageId="ami-00000000", MinCount=1, MaxCount=1)
    canary_id = canary["Instances"][0]["InstanceId"]
    settings: dict[str, Any] = {
        "region": "us-east-1",
        "endpoint_url": url,
        "instance_type": "t3.small",
        "key_file": str(tmp_path / "pool_key"),
        "user": machines.user,
        "port": machines.port,
        "address": "private",
        "subnets": [machines.subnet()],
    }
    with running_system(tmp_path, database_url=database_url) as system, system.client() as client:
        pool = client.create_pool(
            "burst",
            provider="ec2",
            image="ami-0123456789abcdef0",
            settings=settings,
            slots_per_vm=2,
            instance_count=2,
            heartbeat_s=1,
        )
        pool.submit()
        jobs = client.submit_array(JobSpec(["sh", "-c", "echo {index}"]), 30, pool=pool)
        results = [job.result(timeout_s=60) for job in jobs]
        assert [r.stdout for r in results] == [b"%d\n" % i for i in range(30)]

        slow = client.submit_array(JobSpec(["sleep", "0.5"]), 16, pool=pool)
        eventually("some run", lambda: client.counts(pool=pool).get("RUNNING", 0) >= 3)
        lost = next(vm_id for vm_id in machines.up if vm_id != canary_id)
        machines.api.terminate_instances(InstanceIds=[lost])
        client.wait(slow, timeout_s=90)
        assert {job.reason for job in client.jobs(pool=pool)} == {"OK"}
        assert broken(system.query) == {}

        pool.close()
        pool.wait_closed(timeout_s=60)
        assert list(machines.running()) == [canary_id]
