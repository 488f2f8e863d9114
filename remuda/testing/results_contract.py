"""The part of the contract of a Resource about what jobs leave: results, and pieces of files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from remuda.errors import (
    DataStagingError,
    OutputNotAvailable,
)
from remuda.models.states import JobState, Reason
from remuda.spec_files import Output
from remuda.testing.commands import Act
from remuda.testing.place import Place, wait_until
from remuda.testing.resource_fixtures import Make, ResourceFixtures
from remuda.workers.lrms.resource import Resource


class ResultsContract(ResourceFixtures):
    """get_results and peek."""

    def test_results_are_saved_and_nothing_is_overwritten(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        act = Act(stdout="out", stderr="err", write={"a": "1", "d/b": "22"}, executable=["a"])
        outputs = ["a", ("d/b", "e/c"), Output("maybe", optional=True)]
        app = make(act, outputs=outputs, stdout="log", stderr="log.err")
        with pytest.raises(OutputNotAvailable):
            resource.get_results(app, tmp_path)
        self.run(place, resource, app)
        with pytest.raises(DataStagingError, match="no directory"):
            resource.get_results(app, tmp_path / "none")
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "c").write_text("mine")
        with pytest.raises(DataStagingError, match="already there"):
            resource.get_results(app, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]
        assert app.execution.state == JobState.TERMINATING
        saved = resource.get_results(app, tmp_path, overwrite=True)
        assert set(saved) == {"a", "d/b", "stdout", "stderr"}
        texts = {name: (tmp_path / name).read_text() for name in ("a", "e/c", "log", "log.err")}
        assert texts == {"a": "1", "e/c": "22", "log": "out", "log.err": "err"}
        assert (tmp_path / "a").stat().st_mode & 0o100
        assert not (tmp_path / "log").stat().st_mode & 0o100
        assert (app.execution.state, app.execution.reason) == (JobState.TERMINATED, Reason.OK)
        assert resource.get_results(app, tmp_path) == saved
        (tmp_path / "log").write_text("mine now")
        with pytest.raises(DataStagingError, match="already there"):
            resource.get_results(app, tmp_path)
        assert (tmp_path / "log").read_text() == "mine now"

    def test_results_never_leave_the_directory(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        inside, outside = tmp_path / "inside", tmp_path / "outside"
        inside.mkdir()
        outside.mkdir()
        (inside / "d").symlink_to(outside)
        app = make(Act(write={"d/a": "1"}), outputs=["d/a"])
        self.run(place, resource, app)
        with pytest.raises(DataStagingError, match="leads out"):
            resource.get_results(app, inside, overwrite=True)
        assert list(outside.iterdir()) == []

    def test_what_is_missing_fails_the_job(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        app = make(Act(write={"a": "1"}), outputs=["a", "b", Output("c", optional=True)])
        self.run(place, resource, app)
        assert set(resource.get_results(app, tmp_path)) == {"a"}
        run = app.execution
        assert (run.reason, run.exit_code, run.missing) == (Reason.STAGING, 0, ["b"])
        assert (run.state, (tmp_path / "a").read_text()) == (JobState.TERMINATED, "1")

    def test_what_is_there_can_be_had_while_it_runs(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        act = Act(write={"a": "1"}, stdout="here", sleep_s=1000)
        app = make(act, outputs=["a", "later"], stdout="log")
        resource.submit_job(app)
        self.until(place, resource, app, JobState.RUNNING)
        wait_until(lambda: resource.peek(app, "stdout", io.BytesIO()), "it has written")
        saved = resource.get_results(app, tmp_path)
        assert set(saved) == {"a", "stdout"}
        assert (app.execution.state, app.execution.missing) == (JobState.RUNNING, [])

    def test_pieces_of_files(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        app = make(Act(stdout="0123456789", write={"f": "abc"}), outputs=["f"])
        with pytest.raises(OutputNotAvailable):
            resource.peek(app, "stdout", io.BytesIO())
        self.run(place, resource, app)

        def piece(name: str, **how: int) -> bytes:
            file = io.BytesIO()
            assert resource.peek(app, name, file, **how) == len(file.getvalue())
            return file.getvalue()

        assert piece("stdout") == b"0123456789"
        assert piece("stdout", offset=3, size=4) == b"3456"
        assert piece("stdout", offset=-4, size=2) == b"67"
        assert piece("stdout", offset=-99) == b"0123456789"
        assert piece("stdout", offset=99) == piece("stdout", size=0) == b""
        assert piece("f", offset=1) == b"bc"
        assert resource.peek(app, "f", tmp_path / "f", size=1) == 1
        with pytest.raises(OutputNotAvailable):
            resource.peek(app, "none", tmp_path / "f")
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
        assert (tmp_path / "f").read_text() == "a"
