"""What every backend must do, each over the real thing. A new backend adds a fixture parameter."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import BadInput, DataStagingError, OutputNotAvailable, VmUnreachable
from remuda.workers import backends
from remuda.workers.backends import (
    Backend,
    InputFile,
    OutputFile,
    StartJob,
    VmAddress,
    get_backend,
)
from remuda.workers.channel import Channel
from remuda.workers.providers import Provider, VmSpec, get_provider
from tests.contract.test_providers import living
from tests.sshd import sshd
from tests.unit.vm import output, wait_dead, wait_until

__all__ = ["sshd"]


@dataclass
class Site:
    """A backend, a VM of its kind, and all that its watcher heard."""

    backend: Backend
    provider: Provider
    vm_id: str
    vm: VmAddress
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)

    def connect(self, *, since: int = 0) -> Channel:
        self.closed.clear()
        return self.backend.connect(
            self.vm,
            watch=True,
            since=since,
            on_push=self.heard,
            on_close=lambda _: self.closed.set(),
        )

    def heard(self, channel: Channel, message: dict[str, Any]) -> None:
        self.entries.update({entry["n"]: entry for entry in message.get("entries", ())})

    def exit(self, attempt: int) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            every = list(self.entries.values())
            return [e for e in every if e["t"] == "exit" and e["a"] == attempt]

        entry: dict[str, Any] = wait_until(found, f"attempt {attempt} ends")[0]
        return entry


def start(attempt: int, *command: str, **more: Any) -> StartJob:
    return StartJob(attempt, attempt, 1, command, **more)


@pytest.fixture(params=["local", "ssh"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    settings = Settings(data_dir=tmp_path / "data")
    folder, provider = tmp_path, get_provider("local", settings)
    if request.param == "ssh":
        host = request.getfixturevalue("sshd")
        folder, provider = host.home, get_provider("static", settings, {"hosts": [host.entry()]})
    vm_id = provider.spawn(VmSpec("vm", "sim", 2, heartbeat_s=0.2), "1")
    address = provider.describe([vm_id])[vm_id].address
    vm = VmAddress(1, "vm", request.param, address)
    yield Site(get_backend(request.param), provider, vm_id, vm)
    provider.terminate(vm_id)
    assert living(folder) == []


@pytest.fixture
def channel(site: Site) -> Iterator[Channel]:
    channel = site.connect()
    yield channel
    channel.close()


class TestContract:
    def test_a_channel_says_what_the_vm_is(self, channel: Channel) -> None:
        assert (channel.hello["slots"], channel.closed) == (2, False)

    def test_a_batch_runs(self, site: Site, channel: Channel) -> None:
        jobs = [start(a, "sh", "-c", f"echo {a}; exit {a % 3}") for a in range(1, 1203)]
        states = site.backend.submit_jobs(channel, site.vm, jobs, floor=1)
        assert states.keys() == set(range(1, 1203))
        assert set(states.values()) <= {"queued", "running", "exited"}
        for a in (1, 600, 1202):
            assert (site.exit(a)["st"], output(site.exit(a))) == (a % 3, f"{a}\n".encode())

    def test_repeating_starts_nothing_twice(
        self, site: Site, channel: Channel, tmp_path: Path
    ) -> None:
        mark = tmp_path / "mark"
        job = start(1, "sh", "-c", f"echo >> '{mark}'")
        for _ in range(3):
            site.backend.submit_jobs(channel, site.vm, [job], floor=1)
            site.backend.post_jobs(channel, site.vm, [job], floor=1)
        assert site.exit(1)["why"] == "OK"
        assert site.backend.submit_jobs(channel, site.vm, [job], floor=1) == {1: "exited"}
        site.backend.free(channel, site.vm, [1])
        assert site.backend.submit_jobs(channel, site.vm, [job], floor=1) == {1: "stale"}
        assert mark.read_text() == "\n"

    def test_files_go_in_and_out(self, site: Site, channel: Channel, tmp_path: Path) -> None:
        source, program = tmp_path / "source ü%20#?", tmp_path / "program"
        source.write_bytes(bytes(range(256)) * 1000)
        program.write_text("#!/bin/sh\ncat in/data in/data > out/big\necho done\n")
        inputs = (
            InputFile("in/data", source.as_uri()),
            InputFile("run", str(program), mode=0o755),
            InputFile("out/keep", "file://localhost" + program.as_uri()[7:]),
        )
        outputs = (OutputFile("out/big"), OutputFile("maybe", optional=True))
        job = start(1, "./run", inputs=inputs, outputs=outputs)
        site.backend.submit_jobs(channel, site.vm, [job], floor=1)
        entry = site.exit(1)
        assert (entry["why"], entry["f"]) == ("OK", {"out/big": 512000})
        target = tmp_path / "target"
        target.write_text("old")
        assert site.backend.fetch(channel, site.vm, 1, "out/big", target) == 512000
        assert target.read_bytes() == source.read_bytes() * 2
        memory = io.BytesIO()
        assert site.backend.fetch(channel, site.vm, 1, "stdout", memory) == 5
        assert memory.getvalue() == b"done\n"
        assert site.backend.fetch(channel, site.vm, 1, "stderr", io.BytesIO()) == 0
        for name in ("maybe", "../1/run", "/etc/hostname", "in", "./stdout"):
            with pytest.raises(OutputNotAvailable):
                site.backend.fetch(channel, site.vm, 1, name, tmp_path / "none")
        assert not [p for p in tmp_path.iterdir() if p.name.endswith((".part", "none"))]
        site.backend.free(channel, site.vm, [1])
        with pytest.raises(OutputNotAvailable):
            site.backend.fetch(channel, site.vm, 1, "out/big", memory)

    def test_long_output_is_fetched_whole(
        self, site: Site, channel: Channel, tmp_path: Path
    ) -> None:
        job = start(1, "sh", "-c", "seq 1000000; seq 5 >&2")
        site.backend.submit_jobs(channel, site.vm, [job], floor=1)
        size = site.exit(1)["os"]
        assert site.backend.fetch(channel, site.vm, 1, "stdout", tmp_path / "out") == size
        numbers = (tmp_path / "out").read_text().splitlines()
        assert numbers == [str(n) for n in range(1, 1000001)]
        piece = site.backend.peek(channel, site.vm, 1, "stdout", offset=-8, size=7)
        assert piece == (b"1000000", size - 8, size)

    def test_a_target_that_cannot_be_written(
        self, site: Site, channel: Channel, tmp_path: Path
    ) -> None:
        site.backend.submit_jobs(channel, site.vm, [start(1, "echo", "x")], floor=1)
        site.exit(1)
        for target in (tmp_path / "no" / "folder", tmp_path):
            with pytest.raises(DataStagingError):
                site.backend.fetch(channel, site.vm, 1, "stdout", target)

    def test_an_input_that_is_missing_fails_its_attempt_alone(
        self, site: Site, channel: Channel
    ) -> None:
        urls = ["file:///no/such", "s3://bucket/key", "relative", "file://host/etc/hostname"]
        bad = [start(a, "true", inputs=(InputFile("x", url),)) for a, url in enumerate(urls, 10)]
        site.backend.submit_jobs(channel, site.vm, [start(1, "true"), *bad], floor=1)
        assert site.exit(1)["why"] == "OK"
        assert {site.exit(job.attempt_id)["why"] for job in bad} == {"STAGING"}

    def test_cancelling_and_recalling(self, site: Site, channel: Channel) -> None:
        jobs = [start(a, "sleep", "1000", cores=2) for a in (1, 2, 3)]
        site.backend.submit_jobs(channel, site.vm, jobs, floor=1)
        assert site.backend.recall_jobs(channel, site.vm, [1, 3, 9]) == [3]
        assert site.backend.cancel_jobs(channel, site.vm, [1, 2, 9], grace_s=0) == [9]
        assert [site.exit(a)["why"] for a in (1, 2)] == ["CANCELLED", "CANCELLED"]

    def test_a_watcher_comes_back(self, site: Site) -> None:
        channel = site.connect()
        site.backend.submit_jobs(channel, site.vm, [start(1, "true")], floor=1)
        site.exit(1)
        seen = max(site.entries)
        channel.close()
        assert site.closed.wait(20)
        plain = site.backend.connect(site.vm)
        site.backend.submit_jobs(plain, site.vm, [start(2, "true")], floor=1)
        channel = site.connect(since=seen)
        assert site.exit(2)["why"] == "OK"
        assert sorted(site.entries) == list(range(1, 5))
        channel.close()
        plain.close()

    def test_a_dead_runner_is_revived(self, site: Site) -> None:
        channel = site.connect()
        site.backend.submit_jobs(channel, site.vm, [start(1, "sleep", "1000")], floor=1)
        wait_until(lambda: any(e["t"] == "start" for e in site.entries.values()), "it started")
        seen = max(site.entries)
        os.kill(channel.hello["pid"], 9)
        assert site.closed.wait(20)
        wait_dead(channel.hello["pid"])
        with pytest.raises(VmUnreachable, match="does not answer"):
            site.connect()
        site.backend.revive(site.vm)
        site.backend.revive(site.vm)
        channel = site.connect(since=seen)
        assert site.exit(1)["why"] == "LOST"
        channel.close()

    def test_a_vm_that_is_gone(self, site: Site) -> None:
        channel = site.connect()
        site.provider.terminate(site.vm_id)
        assert site.closed.wait(20)
        with pytest.raises(VmUnreachable):
            channel.request("status")
        with pytest.raises(VmUnreachable, match="gone"):
            site.connect()
        with pytest.raises(VmUnreachable, match="gone"):
            site.backend.revive(site.vm)
        assert site.provider.list("") == []


class TestRegistry:
    def test_an_unknown_kind_names_the_known_ones(self) -> None:
        with pytest.raises(BadInput, match=r"no backend 'vapour'.*local"):
            get_backend("vapour")

    def test_a_package_adds_a_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = EntryPoint("mine", "remuda.workers.backends.local:LocalBackend", backends.GROUP)
        monkeypatch.setattr(backends, "entry_points", lambda group: EntryPoints([point]))
        get_backend.cache_clear()
        assert get_backend("mine") is get_backend("mine")
        get_backend.cache_clear()
