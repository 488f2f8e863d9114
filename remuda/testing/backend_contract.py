"""What every backend must do.

A package that adds a backend runs this suite on it:

    from remuda.testing import BackendContract, Place
    from remuda.workers.backends import VmAddress

    class TestMine(BackendContract):
        @pytest.fixture
        def place(self):
            vm_id, address = ...  # a VM of yours with two slots, its runner started
            terminate = lambda: ...
            yield Place(MyBackend(), VmAddress(1, "vm", "mine", address), terminate)
            terminate()

If VMs are dear, return from `place` what a fixture of wider scope made, and give `doomed` a VM of its
own for each test that destroys it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.errors import DataStagingError, OutputNotAvailable, VmUnreachable
from remuda.testing.commands import Act
from remuda.testing.place import Place, Site, output
from remuda.testing.request_contract import RequestContract
from remuda.workers.backends.base import InputFile, OutputFile
from remuda.workers.channel import Channel


class BackendContract(RequestContract):
    """The contract of `Backend`, on a real VM. Override `place`."""

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        """Give the VM on which the tests run, and remove it."""
        raise NotImplementedError("override the fixture `place`")

    @pytest.fixture
    def doomed(self, place: Place) -> Place:
        """Give a VM that the test destroys; override it if `place` is shared by tests."""
        return place

    @pytest.fixture
    def site(self, place: Place) -> Iterator[Site]:
        site = Site(place)
        yield site
        site.tidy()

    @pytest.fixture
    def channel(self, site: Site) -> Iterator[Channel]:
        channel = site.connect()
        yield channel
        channel.close()

    # ---- running

    def test_a_channel_says_what_the_vm_is(self, channel: Channel) -> None:
        hello = channel.hello
        assert (hello["slots"], channel.closed) == (2, False)
        assert hello["memory_bytes"] > 0
        assert hello["architecture"]

    def test_a_batch_runs(self, site: Site, channel: Channel) -> None:
        jobs = [site.job(Act(stdout=f"{n}\n", exit_code=n % 3)) for n in range(1202)]
        states = site.submit(channel, *jobs)
        assert states.keys() == {job.attempt_id for job in jobs}
        assert set(states.values()) <= {"queued", "running", "exited"}
        for n in (0, 600, 1201):
            entry = site.exit(jobs[n])
            assert (entry["st"], output(entry)) == (n % 3, f"{n}\n".encode())
        for job in jobs:
            site.exit(job)
        numbers = sorted(site.entries)
        assert numbers == list(range(numbers[0], numbers[0] + 2 * len(jobs)))

    @pytest.mark.parametrize(
        ("act", "ends"),
        [
            (Act(), ("OK", 0, None)),
            (Act(exit_code=200), ("NONZERO", 200, None)),
            (Act(signal=10), ("SIGNALLED", None, 10)),
        ],
    )
    def test_how_jobs_end(
        self, site: Site, channel: Channel, act: Act, ends: tuple[str, int | None, int | None]
    ) -> None:
        entry = site.run(channel, act)
        assert (entry["why"], entry["st"], entry["sig"]) == ends
        assert entry["started"]
        assert entry["s"] <= entry["x"]

    def test_repeating_starts_nothing_twice(self, site: Site, channel: Channel) -> None:
        job = site.job(Act(stdout="once"))
        for _ in range(3):
            site.submit(channel, job)
            site.backend.post_jobs(channel, site.vm, [job], floor=job.attempt_id)
        assert site.exit(job)["why"] == "OK"
        assert site.submit(channel, job) == {job.attempt_id: "exited"}
        site.backend.free(channel, site.vm, [job.attempt_id])
        site.backend.free(channel, site.vm, [job.attempt_id])
        assert site.submit(channel, job) == {job.attempt_id: "stale"}
        channel.request("status")  # what was pushed before is here now
        assert site.starts(job) == 1

    def test_an_older_epoch_starts_nothing(self, site: Site, channel: Channel) -> None:
        old = site.job(Act(sleep_s=1000))
        site.submit(channel, old)
        site.start(old)
        new = site.job(Act(), job_id=old.job_id, epoch=2)
        assert site.submit(channel, new)[new.attempt_id] in ("queued", "running", "exited")
        assert site.exit(old)["why"] == "CANCELLED"
        assert site.exit(new)["why"] == "OK"
        late = site.job(Act(), job_id=old.job_id, epoch=1)
        assert site.submit(channel, late) == {late.attempt_id: "stale"}
        assert site.exit(old)["n"] < site.start(new)["n"]

    def test_nothing_new_starts_below_the_floor(self, site: Site, channel: Channel) -> None:
        below, first = site.job(), site.job()
        floor = first.attempt_id
        assert site.backend.submit_jobs(channel, site.vm, [first], floor=floor)
        states = site.backend.submit_jobs(channel, site.vm, [below], floor=0)
        assert states == {below.attempt_id: "stale"}

    def test_jobs_see_their_environment(self, site: Site, channel: Channel) -> None:
        names = ["MINE", "REMUDA_JOB_ID", "REMUDA_EPOCH", "REMUDA_CORES"]
        job = site.job(Act(print_env=names), env={"MINE": "ü $x"}, cores=2)
        site.submit(channel, job)
        text = f"MINE=ü $x\nREMUDA_JOB_ID={job.job_id}\nREMUDA_EPOCH=1\nREMUDA_CORES=2\n"
        assert output(site.exit(job)).decode() == text

    def test_what_asks_for_too_much_does_not_start(self, site: Site, channel: Channel) -> None:
        entry = site.run(channel, cores=3)
        assert (entry["why"], entry["started"]) == ("SUBMISSION", False)
        assert site.run(channel, memory_bytes=1 << 60)["why"] == "SUBMISSION"

    def test_walltime_is_enforced(self, site: Site, channel: Channel) -> None:
        entry = site.run(channel, Act(sleep_s=1000), walltime_s=0.2)
        assert (entry["why"], entry["sig"]) == ("WALLTIME", 15)
        assert "walltime" in entry["msg"]

    # ---- files

    def test_files_go_in_and_out(self, site: Site, channel: Channel, tmp_path: Path) -> None:
        source, other = tmp_path / "source ü%20#?", tmp_path / "other"
        source.write_bytes(bytes(range(256)) * 1000)
        other.write_text("other")
        inputs = (
            InputFile("in/data", source.as_uri()),
            InputFile("more", str(other), mode=0o755),
            InputFile("out/keep", "file://localhost" + other.as_uri()[7:]),
        )
        outputs = (OutputFile("out/big"), OutputFile("maybe", optional=True))
        act = Act(stdout="done\n", join={"out/big": ["in/data", "in/data", "more"]})
        job = site.job(act, inputs=inputs, outputs=outputs)
        site.submit(channel, job)
        entry, a = site.exit(job), job.attempt_id
        assert (entry["why"], entry["f"]) == ("OK", {"out/big": 512005})
        target = tmp_path / "target"
        target.write_text("old")
        assert site.backend.fetch(channel, site.vm, a, "out/big", target) == 512005
        assert target.read_bytes() == source.read_bytes() * 2 + b"other"
        memory = io.BytesIO()
        assert site.backend.fetch(channel, site.vm, a, "stdout", memory) == 5
        assert memory.getvalue() == b"done\n"
        assert site.backend.fetch(channel, site.vm, a, "stderr", io.BytesIO()) == 0
        for name in ("maybe", "../1/run", "/etc/hostname", "in", "./stdout"):
            with pytest.raises(OutputNotAvailable):
                site.backend.fetch(channel, site.vm, a, name, tmp_path / "none")
        assert not [p for p in tmp_path.iterdir() if p.name.endswith((".part", "none"))]
        site.backend.free(channel, site.vm, [a])
        with pytest.raises(OutputNotAvailable):
            site.backend.fetch(channel, site.vm, a, "out/big", memory)

    def test_long_output_is_fetched_whole(
        self, site: Site, channel: Channel, tmp_path: Path
    ) -> None:
        job = site.job(Act(lines=1_000_000, stderr="x"))
        site.submit(channel, job)
        size, a = site.exit(job)["os"], job.attempt_id
        assert site.backend.fetch(channel, site.vm, a, "stdout", tmp_path / "out") == size
        numbers = (tmp_path / "out").read_text().splitlines()
        assert numbers == [str(n) for n in range(1, 1_000_001)]
        piece = site.backend.peek(channel, site.vm, a, "stdout", offset=-8, size=7)
        assert piece == (b"1000000", size - 8, size)
        assert site.backend.peek(channel, site.vm, a, "stdout", offset=size + 9)[0] == b""

    def test_a_target_that_cannot_be_written(
        self, site: Site, channel: Channel, tmp_path: Path
    ) -> None:
        job = site.job(Act(stdout="x"))
        site.submit(channel, job)
        site.exit(job)
        for target in (tmp_path / "no" / "folder", tmp_path):
            with pytest.raises(DataStagingError):
                site.backend.fetch(channel, site.vm, job.attempt_id, "stdout", target)

    def test_an_input_that_is_missing_fails_its_attempt_alone(
        self, site: Site, channel: Channel
    ) -> None:
        urls = ["file:///no/such", "nothing://bucket/key", "relative"]
        bad = [site.job(inputs=(InputFile("x", url),)) for url in urls]
        good = site.job()
        site.submit(channel, good, *bad)
        assert site.exit(good)["why"] == "OK"
        assert {site.exit(job)["why"] for job in bad} == {"STAGING"}

    def test_an_output_that_is_missing_fails_the_job(self, site: Site, channel: Channel) -> None:
        entry = site.run(channel, outputs=(OutputFile("a"), OutputFile("b", optional=True)))
        assert (entry["why"], entry["miss"], entry["st"]) == ("STAGING", ["a"], 0)
        assert site.run(channel, outputs=(OutputFile("b", optional=True),))["why"] == "OK"

    # ---- ending, coming back

    def test_cancelling_and_recalling(self, site: Site, channel: Channel) -> None:
        jobs = [site.job(Act(sleep_s=1000), cores=2) for _ in range(3)]
        one, two, three = (job.attempt_id for job in jobs)
        unknown = 1 << 40
        site.submit(channel, *jobs)
        recalled = site.backend.recall_jobs(channel, site.vm, [one, three, unknown])
        assert recalled == [three]
        ended = site.backend.cancel_jobs(channel, site.vm, [one, two, unknown], grace_s=0)
        assert ended == [unknown]
        assert [site.exit(job)["why"] for job in jobs[:2]] == ["CANCELLED", "CANCELLED"]
        assert site.submit(channel, jobs[2]) == {three: "stale"}

    def test_cancelling_changes_nothing_that_is_over(self, site: Site, channel: Channel) -> None:
        job = site.job()
        site.submit(channel, job)
        before = site.exit(job)
        assert site.backend.cancel_jobs(channel, site.vm, [job.attempt_id]) == []
        assert site.submit(channel, job) == {job.attempt_id: "exited"}
        assert (site.exit(job), before["why"]) == (before, "OK")

    def test_who_ignores_being_asked_is_killed(self, site: Site, channel: Channel) -> None:
        job = site.job(Act(ignore_term=True, stdout="deaf", sleep_s=1000))
        site.submit(channel, job)
        a = job.attempt_id
        site.wait(lambda: site.backend.peek(channel, site.vm, a, "stdout")[2], "it is deaf")
        site.backend.cancel_jobs(channel, site.vm, [a], grace_s=0.1)
        assert (site.exit(job)["why"], site.exit(job)["sig"]) == ("CANCELLED", 9)

    def test_a_watcher_comes_back(self, site: Site) -> None:
        channel = site.connect()
        first, second = site.job(), site.job()
        site.submit(channel, first)
        seen = site.exit(first)["n"]
        channel.close()
        assert site.closed.wait(site.place.patience_s)
        plain = site.backend.connect(site.vm)
        site.submit(plain, second)
        channel = site.connect(since=seen)
        assert site.exit(second)["why"] == "OK"
        assert sorted(site.entries) == list(range(seen - 1, seen + 3))
        channel.close()
        plain.close()

    def test_a_dead_runner_is_revived(self, doomed: Place) -> None:
        site = Site(doomed)
        channel, job = site.connect(), site.job(Act(stdout="not lost", sleep_s=1000))
        site.submit(channel, job)
        seen, a = site.start(job)["n"], job.attempt_id
        site.wait(lambda: site.backend.peek(channel, site.vm, a, "stdout")[2], "it wrote")
        doomed.kill_runner(channel)
        assert site.closed.wait(doomed.patience_s)
        with pytest.raises(VmUnreachable, match="does not answer"):
            site.connect()
        site.backend.revive(site.vm)
        site.backend.revive(site.vm)
        channel = site.connect(since=seen)
        assert site.exit(job)["why"] == "LOST"
        assert base64.b64decode(site.exit(job)["o"]) == b"not lost"
        assert site.submit(channel, job) == {job.attempt_id: "exited"}
        channel.close()

    def test_a_vm_that_is_gone(self, doomed: Place) -> None:
        site = Site(doomed)
        channel = site.connect()
        doomed.terminate()
        assert site.closed.wait(doomed.patience_s)
        with pytest.raises(VmUnreachable):
            channel.request("status")
        with pytest.raises(VmUnreachable, match="gone"):
            site.connect()
        with pytest.raises(VmUnreachable, match="gone"):
            site.backend.revive(site.vm)
