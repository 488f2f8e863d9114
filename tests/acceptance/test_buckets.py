"""A system that keeps everything in a bucket of Google Cloud Storage: inputs, outputs, the storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import JobFailed, JobSpec
from remuda.stores import pull, push
from tests.invariants import broken
from tests.stores import gs_server
from tests.system import running_system


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket."""
    with gs_server() as url:
        yield url


def test_inputs_outputs_and_storage_in_a_bucket(
    bucket: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = os.urandom(9 << 20)
    Path("own").write_bytes(data[::-1])
    Path("given").write_bytes(data)
    push("given", f"{bucket}/given/x.bin")
    spec = JobSpec(
        "sha256sum < x.bin; cp x.bin there.bin; cp own here.bin; seq 100000",
        shell=True,
        inputs=[f"{bucket}/given/x.bin", "own"],
        outputs=[("there.bin", f"{bucket}/run{{index}}/model.bin"), "here.bin"],
        output_dir="results/{index}",
    )
    storage = {"storage_url": f"{bucket}/storage"}
    with running_system(tmp_path, database_url=database_url, **storage) as system:
        with system.client() as client:
            client.create_pool("sim", slots_per_vm=4, heartbeat_s=1).submit()
            jobs = client.submit_array(spec, 4, pool="sim")
            line = f"{hashlib.sha256(data).hexdigest()}  -\n".encode()
            for index, job in enumerate(jobs):
                result = job.result(timeout_s=120)
                assert result.stdout.startswith(line + b"1\n2\n")
                assert result.stdout.endswith(b"\n100000\n")
                assert result.urls == {"there.bin": f"{bucket}/run{index}/model.bin"}
                assert Path(result.outputs["here.bin"]).read_bytes() == data[::-1]
                assert job.peek("here.bin", -3) == data[:3][::-1]
            pull(f"{bucket}/run3/model.bin", "model")
            assert Path("model").read_bytes() == data
            for wrong in (
                JobSpec(["true"], inputs=[f"{bucket}/none"]),
                JobSpec("echo > x", shell=True, outputs=[("x", "gs://none-such/x")]),
            ):
                with pytest.raises(JobFailed, match="nothing at gs://") as caught:
                    client.submit(wrong, pool="sim").result(timeout_s=60)
                assert caught.value.reason == "STAGING"
        assert broken(system.query) == {}
