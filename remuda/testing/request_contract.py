"""The part of the backends' contract about jobs that run: each request a VM says it supports.

A VM's `hello` lists its features. What is not listed is refused, and changes nothing; what is
listed does what is written here.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from remuda.errors import BackendError
from remuda.testing.commands import Act
from remuda.testing.place import Site, output
from remuda.workers.backends.base import OutputFile, StartJob
from remuda.workers.channel import Channel

ALL = frozenset({"extend", "files", "prepare", "resume", "signal", "suspend"})


class RequestContract:
    """Suspend, resume, extend, signal, files and prepare; directories, prologues, patterns."""

    # What VMs of this backend must support: narrow it for one that cannot do all.
    features: ClassVar[frozenset[str]] = ALL

    def asks(self, channel: Channel, do: str, **fields: Any) -> dict[str, Any]:
        """Make a request that the VM says it supports."""
        assert do in channel.hello["features"], f"this VM does not support {do}"
        return channel.request(do, **fields)

    def sleeper(self, site: Site, channel: Channel, **fields: Any) -> StartJob:
        """Return a job that runs for long."""
        job = site.job(Act(stdout="here", sleep_s=1000), **fields)
        site.submit(channel, job)
        site.wait(
            lambda: site.backend.peek(channel, site.vm, job.attempt_id, "stdout")[2], "it runs"
        )
        return job

    def test_the_features_are_told(self, site: Site, channel: Channel) -> None:
        told = set(channel.hello["features"])
        assert self.features <= told
        job = self.sleeper(site, channel)
        for do in (ALL | {"no_such_request"}) - told:
            with pytest.raises(BackendError):
                channel.request(do, a=job.attempt_id)
        assert site.submit(channel, job) == {job.attempt_id: "running"}

    def test_a_job_is_suspended_and_resumed(self, site: Site, channel: Channel) -> None:
        if "suspend" not in self.features:
            return
        began = time.monotonic()
        job = self.sleeper(site, channel, walltime_s=60)
        a = job.attempt_id
        for _ in range(2):
            assert self.asks(channel, "suspend", a=a)["suspended"] is True
        wall_s = time.monotonic() - began + 0.2
        self.asks(channel, "extend", a=a, wall=wall_s)
        stopped = site.wait(
            lambda: (s := self.asks(channel, "suspend", a=a)["stopped_s"]) > wall_s + 0.1 and s,
            "its walltime would be over",
        )
        for _ in range(2):
            answer = self.asks(channel, "resume", a=a)
            assert answer["suspended"] is False
            assert answer["stopped_s"] >= stopped
        entry = site.exit(job)
        assert entry["why"] == "WALLTIME"
        assert entry["x"] - entry["s"] >= wall_s + stopped

    def test_a_suspended_job_can_be_cancelled(self, site: Site, channel: Channel) -> None:
        if "suspend" not in self.features:
            return
        job = self.sleeper(site, channel)
        self.asks(channel, "suspend", a=job.attempt_id)
        site.backend.cancel_jobs(channel, site.vm, [job.attempt_id], grace_s=5)
        assert site.exit(job)["why"] == "CANCELLED"

    def test_walltime_is_extended_and_shortened(self, site: Site, channel: Channel) -> None:
        if "extend" not in self.features:
            return
        for last in (False, False, False, True):
            began = time.monotonic()
            job = self.sleeper(site, channel, walltime_s=60)
            soon_s = time.monotonic() - began + 0.5
            self.asks(channel, "extend", a=job.attempt_id, wall=soon_s)
            try:
                self.asks(channel, "extend", a=job.attempt_id, wall=soon_s + 0.3)
                break
            except BackendError:  # on a busy machine its time may be over before
                if last:
                    raise
        entry = site.exit(job)
        assert (entry["why"], entry["x"] - entry["s"] >= soon_s + 0.3) == ("WALLTIME", True)
        endless = self.sleeper(site, channel)
        self.asks(channel, "extend", a=endless.attempt_id, wall=0.1)
        assert site.exit(endless)["why"] == "WALLTIME"
        for a in (job.attempt_id, 1 << 40):
            with pytest.raises(BackendError):
                channel.request("extend", a=a, wall=10)

    def test_a_job_is_signalled(self, site: Site, channel: Channel) -> None:
        if "signal" not in self.features:
            return
        job = self.sleeper(site, channel)
        self.asks(channel, "signal", a=job.attempt_id, signal=12)
        assert (site.exit(job)["why"], site.exit(job)["sig"]) == ("SIGNALLED", 12)
        with pytest.raises(BackendError):
            channel.request("signal", a=job.attempt_id, signal=12)

    def test_what_only_runs_cannot_be_asked_of_the_rest(self, site: Site, channel: Channel) -> None:
        entry = site.run(channel)
        for do in ("suspend", "resume"):
            with pytest.raises(BackendError):
                channel.request(do, a=entry["a"])
            with pytest.raises(BackendError):
                channel.request(do, a=1 << 40)

    def test_files_are_listed_while_it_runs(self, site: Site, channel: Channel) -> None:
        if "files" not in self.features:
            return
        act = Act(write={"a": "123", "d/b": "x"}, executable=["a"], stdout="here", sleep_s=1000)
        job = site.job(act, outputs=(OutputFile("a"),))
        site.submit(channel, job)
        a = job.attempt_id
        site.wait(
            lambda: (
                len(self.asks(channel, "files", a=a)["files"]) == 2
                and self.asks(channel, "files", a=a)["files"][0][2] & 0o100
            ),
            "both are there",
        )
        answer = self.asks(channel, "files", a=a)
        found = {name: (size, mode) for name, size, mode, _ in answer["files"]}
        assert {name: size for name, (size, _) in found.items()} == {"a": 3, "d/b": 1}
        assert (found["a"][1] & 0o100, found["d/b"][1] & 0o100) == (0o100, 0)
        assert answer["more"] is False
        with pytest.raises(BackendError):
            channel.request("files", a=1 << 40)

    # ---- what a job may ask for

    def test_it_runs_in_its_directory(self, site: Site, channel: Channel) -> None:
        entry = site.run(
            channel, Act(write={"x": "1"}), workdir="some/where", outputs=(OutputFile("**"),)
        )
        assert (entry["why"], entry["f"]) == ("OK", {"some/where/x": 1})

    def test_a_prologue_comes_first(self, site: Site, channel: Channel) -> None:
        first = site.words(Act(stdout="first ", write={"x": "text"}))
        act = Act(join={"y": ["x"]}, stdout="second")
        entry = site.run(channel, act, prologue=first, workdir="d", outputs=(OutputFile("d/y"),))
        assert (entry["why"], entry["f"], output(entry)) == ("OK", {"d/y": 4}, b"first second")

    def test_a_prologue_that_fails_is_all_there_is(self, site: Site, channel: Channel) -> None:
        failing = site.words(Act(exit_code=3))
        entry = site.run(channel, Act(stdout="never"), prologue=failing)
        assert (entry["why"], output(entry)) == ("NONZERO", b"")
        assert "prologue" in entry["msg"]

    def test_an_epilogue_sees_how_it_ended(self, site: Site, channel: Channel) -> None:
        last = site.words(Act(print_env=["REMUDA_EXIT_CODE", "REMUDA_SIGNAL"]))
        entry = site.run(channel, Act(exit_code=5), epilogue=last)
        assert (entry["why"], entry["st"]) == ("NONZERO", 5)
        assert output(entry) == b"REMUDA_EXIT_CODE=5\nREMUDA_SIGNAL=\n"
        entry = site.run(channel, Act(signal=12), epilogue=last)
        assert (entry["why"], entry["sig"]) == ("SIGNALLED", 12)
        assert output(entry) == b"REMUDA_EXIT_CODE=\nREMUDA_SIGNAL=12\n"

    def test_an_epilogue_that_fails_hides_nothing(self, site: Site, channel: Channel) -> None:
        failing = site.words(Act(exit_code=7))
        entry = site.run(channel, Act(), epilogue=failing)
        assert entry["why"] == "NONZERO"
        assert "epilogue" in entry["msg"]
        entry = site.run(channel, Act(exit_code=5), epilogue=failing)
        assert (entry["why"], entry["st"]) == ("NONZERO", 5)

    def test_outputs_are_found_by_patterns(self, site: Site, channel: Channel) -> None:
        names = ["a.csv", "b.csv", "c.txt", "d/e.csv", "d/f/g.csv", "h"]
        act = Act(write=dict.fromkeys(names, "x"), executable=["b.csv"])
        cases = {
            "*.csv": {"a.csv", "b.csv"},
            "?.csv": {"a.csv", "b.csv"},
            "[b-c].*": {"b.csv", "c.txt"},
            "d/**": {"d/e.csv", "d/f/g.csv"},
            "**/*.csv": {"a.csv", "b.csv", "d/e.csv", "d/f/g.csv"},
            "d/": {"d/e.csv", "d/f/g.csv"},
            "**": set(names),
        }
        jobs = [(site.job(act, outputs=(OutputFile(p),)), found) for p, found in cases.items()]
        site.submit(channel, *(job for job, _ in jobs))
        for job, found in jobs:
            entry = site.exit(job)
            assert (job.outputs[0].name, set(entry["f"])) == (job.outputs[0].name, found)
            assert entry["why"] == "OK"
            assert set(entry.get("fx", ())) == {"b.csv"} & found
        entry = site.run(channel, act, outputs=(OutputFile("*.png"), OutputFile("*", True)))
        assert (entry["why"], entry["miss"]) == ("STAGING", ["*.png"])
        assert site.run(channel, outputs=(OutputFile("**"),))["why"] == "OK"

    def test_a_vm_is_prepared_once(self, site: Site, channel: Channel) -> None:
        if "prepare" not in self.features:
            return
        key = f"key-{site.job().attempt_id}"
        words = site.words(Act(stdout="ready\n", exit_code=4))
        ask = {"c": words, "env": {}, "timeout": 60, "key": key}
        for _ in range(2):
            site.wait(
                lambda: self.asks(channel, "prepare", **ask)["state"] == "done", "it is prepared"
            )
        answer = self.asks(channel, "prepare", **ask)
        assert (answer["st"], answer["sig"], answer["timed_out"]) == (4, None, False)
        assert answer["out"] == "ready\n"
        site.wait(
            lambda: any(message.get("push") == "prepared" for message in list(site.pushed)),
            "the watcher hears of it",
        )
