"""Files of jobs, all the way: from the submit to the VM, from the VM to where they are wanted."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import (
    ANY_OUTPUT,
    AlreadyExists,
    Client,
    DataStagingError,
    Input,
    JobFailed,
    JobSpec,
    Output,
)
from remuda.stores import pull, push
from tests.database import fresh_database
from tests.invariants import broken
from tests.stores import s3_server
from tests.system import System, running_system


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module", params=["folder", "bucket"])
def system(
    request: pytest.FixtureRequest,
    server_url: str,
    template: str,
    bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    """A running system with a pool, its storage in a folder, or in a bucket."""
    folder = tmp_path_factory.mktemp("system")
    more = {"storage_url": f"{bucket}/storage"} if request.param == "bucket" else {}
    with (
        fresh_database(server_url, template) as url,
        running_system(folder, database_url=url, **more) as running,
    ):
        with running.client() as client:
            client.create_pool("sim", provider="local", slots_per_vm=4, heartbeat_s=1).submit()
        yield running


@pytest.fixture
def client(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    with system.client() as made:
        yield made
    assert broken(system.query) == {}


def test_trees_go_there_and_come_back(client: Client, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("data/a.csv", "data/b.csv", "data/.hidden", "data/deep/c.csv", "other.csv"):
        (tmp_path / name).write_text(name)
    program = tmp_path / "data" / "run"
    program.write_text("#!/bin/sh\nmkdir -p out/sub; cat data/*.csv > out/all; cp $0 out/sub/run\n")
    program.chmod(0o755)
    spec = JobSpec(
        ["./data/run"],
        inputs=["data", ("*.csv", "more/")],
        outputs=["out/", ("out/a?l", "flat"), Output("none/*", optional=True)],
        output_dir="results/{index}",
    )
    [job] = client.submit_array(spec, [5], pool="sim")
    result = job.result(timeout_s=60)
    home = tmp_path / "results" / "5" / "out"
    assert result.outputs == {"out/all": home / "all", "out/sub/run": home / "sub" / "run"}
    assert (home / "all").read_text() == "data/a.csvdata/b.csv"
    assert os.access(home / "sub" / "run", os.X_OK)
    assert not os.access(home / "all", os.X_OK)
    assert not (home.parent / "none").exists()

    with pytest.raises(DataStagingError, match=r"would both be 'data/a\.csv'"):
        client.submit(JobSpec(["true"], inputs=["data/", "data/*.csv"]), pool="sim")
    listing = JobSpec("find . -type f | sort", shell=True, inputs=["data/", ("**/o*", "top")])
    assert client.submit(listing, pool="sim").result(60).stdout.decode().split() == [
        "./data/.hidden",
        "./data/a.csv",
        "./data/b.csv",
        "./data/deep/c.csv",
        "./data/run",
        "./top/other.csv",
    ]


def test_any_output(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("in")
    (tmp_path / "changed").write_text("old")
    spec = JobSpec(
        "mkdir d; echo x > d/.y; echo new > changed",
        shell=True,
        inputs=["in", "changed"],
        outputs=[ANY_OUTPUT],
    )
    outputs = client.submit(spec, pool="sim").result(60).outputs
    assert {name: path.read_text() for name, path in outputs.items()} == {
        "d/.y": "x\n",
        "changed": "new\n",
    }


def test_urls_are_read_and_written_where_the_job_is(
    client: Client, bucket: str, tmp_path: Path
) -> None:
    data = os.urandom(9 << 20)
    (tmp_path / "x").write_bytes(data)
    push(tmp_path / "x", f"{bucket}/given/x.bin")
    spec = JobSpec(
        "sha256sum < x.bin; sha256sum < there/y; cp x.bin out.bin; mkdir p; echo {index} > p/n",
        shell=True,
        inputs=[f"{bucket}/given/x.bin", Input(f"{bucket}/given/x.bin", "there/y")],
        outputs=[("out.bin", f"{bucket}/run{{index}}/model.bin"), ("p/", f"{bucket}/run{{index}}")],
    )
    jobs = client.submit_array(spec, 8, pool="sim")
    line = f"{hashlib.sha256(data).hexdigest()}  -\n"
    for index, job in enumerate(jobs):
        result = job.result(timeout_s=60)
        assert result.stdout.decode() == line * 2
        assert result.outputs == {}
        assert result.urls == {
            "out.bin": f"{bucket}/run{index}/model.bin",
            "p/n": f"{bucket}/run{index}/n",
        }
        pull(f"{bucket}/run{index}/n", tmp_path / "n")
        assert (tmp_path / "n").read_text() == f"{index}\n"
    pull(f"{bucket}/run7/model.bin", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data


def test_a_url_that_cannot_be_read_fails_its_job_alone(client: Client, bucket: str) -> None:
    bad = client.submit(JobSpec(["true"], inputs=[f"{bucket}/no/such"]), pool="sim")
    worse = client.submit(
        JobSpec("echo > x", shell=True, outputs=[("x", "s3://none-such/x")]), pool="sim"
    )
    good = client.submit(JobSpec(["true"]), pool="sim")
    assert good.result(60).reason == "OK"
    with pytest.raises(JobFailed, match="nothing at s3://") as caught:
        bad.result(60)
    assert caught.value.reason == "STAGING"
    with pytest.raises(JobFailed, match="s3://none-such") as caught:
        worse.result(60)
    assert caught.value.reason == "STAGING"


def test_what_is_there_is_not_overwritten_unless_wanted(client: Client, tmp_path: Path) -> None:
    def submit(**more: object) -> JobSpec:
        return JobSpec(
            "echo {index}-a > a; echo b > b",
            shell=True,
            outputs=["b", ("a", "sub/a")],
            output_dir="out",
            **more,  # type: ignore[arg-type]
        )

    [first] = client.submit_array(submit(), [1], pool="sim")
    first.result(60)
    assert (tmp_path / "out/sub/a").read_text() == "1-a\n"
    (tmp_path / "out/b").unlink()
    [second] = client.submit_array(submit(overwrite=False), [2], pool="sim")
    with pytest.raises(AlreadyExists, match="out/sub/a"):
        second.result(60)
    assert not (tmp_path / "out/b").exists()
    [third] = client.submit_array(submit(), [3], pool="sim")
    third.result(60)
    assert (tmp_path / "out/sub/a").read_text() == "3-a\n"
    with pytest.raises(AlreadyExists):
        third.results(tmp_path / "out")
    assert third.results(tmp_path / "new")["a"].read_text() == "3-a\n"


def test_places_of_their_own(client: Client, tmp_path: Path) -> None:
    own = tmp_path / "own" / "x"
    spec = JobSpec("echo x > x; echo y > y", shell=True, outputs=[("x", own.as_uri()), "y"])
    outputs = client.submit(spec, pool="sim").result(60).outputs
    assert outputs["x"] == own
    assert own.read_text() == "x\n"
    assert outputs["y"].read_text() == "y\n"


def test_what_cannot_be_an_input_is_refused_at_submit(client: Client, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "out").symlink_to("/etc/hostname")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "a").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    wrong = {
        "none*": r"no file matches the input 'none\*'",
        "nothing/*": "there is no directory 'nothing/'",
        "tree/": "tree/out.*leads out",
        "tree/*": "tree/out.*leads out",
        "loop": "loop/a.*Too many levels",
        "dangling": "no input file 'dangling'",
        "fifo": "no regular file",
        "socket": "no regular file",
        "fif?": "no regular file",
    }
    for name, message in wrong.items():
        with pytest.raises(DataStagingError, match=message):
            client.submit(JobSpec(["true"], inputs=[name]), pool="sim")
    with pytest.raises(DataStagingError, match="no regular file"):
        client.submit(JobSpec(["true"], inputs=[("/dev/zero", "zero")]), pool="sim")
    (tmp_path / "link").symlink_to("tree/out")  # named itself, its content is meant
    job = client.submit(JobSpec("cat link", inputs=["link"]), pool="sim")
    assert job.result(60).stdout == Path("/etc/hostname").read_bytes()


def test_the_limit_of_what_is_kept_of_the_output(client: Client) -> None:
    spec = JobSpec("seq 1000000", output_limit_bytes=1 << 20)
    job = client.submit(spec, pool="sim").wait(60)
    head, tail = job.stdout.split(b"\n[remuda: the middle of 6888896 bytes was cut out here]\n")
    assert len(head) + len(tail) <= 1 << 20
    assert head.startswith(b"1\n2\n")
    assert tail.endswith(b"999999\n1000000\n")
