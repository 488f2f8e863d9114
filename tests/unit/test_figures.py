"""What processes measure of themselves: added up, kept over restarts, one file for each at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import values

from remuda.tasks import figures
from remuda.tasks.figures import Figures
from remuda.tasks.serving import ProcessesCollector


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)


def told(folder: Path) -> dict[tuple[str, str], float]:
    """Return what is exported, by name and label."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in ProcessesCollector(folder).collect()
        for sample in family.samples
    }


def test_several_processes_are_added_up(tmp_path: Path) -> None:
    kept = [Figures(tmp_path), Figures(tmp_path)]
    for number, one in enumerate(kept):
        one.sweep_failures.labels("dispatch").inc(number + 1)
    assert told(tmp_path)["remuda_sweep_failures_total", "dispatch"] == 3
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == ["0.lock", "1.lock"]
    for one in kept:
        one.close()


def test_the_next_process_goes_on_with_the_files(tmp_path: Path) -> None:
    for _ in range(5):
        kept = Figures(tmp_path)
        kept.placement_s.observe(0.2)
        kept.close()
    assert told(tmp_path)["remuda_placement_duration_seconds_count", ""] == 5
    assert told(tmp_path)["remuda_placement_duration_seconds_sum", ""] == pytest.approx(1.0)
    assert len(list(tmp_path.glob("*.lock"))) == 1


def test_a_forked_child_has_a_file_of_its_own(tmp_path: Path) -> None:
    kept = Figures(tmp_path)
    kept.events_dropped.inc(1)
    child = os.fork()
    if child == 0:
        try:
            kept.events_dropped.inc(10)
            kept.events_dropped.inc(10)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    kept.events_dropped.inc(1)
    assert told(tmp_path)["remuda_monitor_events_dropped_total", ""] == 22
    kept.close()


def test_without_a_folder_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(figures, "_figures", None)
    (tmp_path / "file").touch()
    figures.keep(tmp_path / "file")
    assert figures.figures() is None
    assert "no figures are kept" in caplog.text
    with figures.timed_placement():
        pass
    assert told(tmp_path / "none") == {}


def test_jobs_inherit_nothing_of_it(tmp_path: Path) -> None:
    before = dict(os.environ)
    Figures(tmp_path).close()
    assert dict(os.environ) == before
