"""`remuda array`, and the options of `job submit` for arrays and dependencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda import JobSpec
from remuda.cli.app import root
from remuda.client.arrays import Progress
from remuda.client.parameters import read
from remuda.dependencies import ArrayRef
from remuda.errors import BadInput
from tests.unit.cli import stand_in
from tests.unit.fake_client import NOON, FakeClient, FakeJob


class FakeArray:
    """Six jobs, some of which failed."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.failed = 2

    def info(self) -> dict[str, Any]:
        return {
            "id": 12, "name": "six", "owner": "alice", "size": 6, "max_running": 4,
            "created_at": NOON, "mean_wall_s": 1.5, "blocked": 0, "queued": 1, "running": 1,
            "succeeded": 2, "failed": self.failed, "ended": 4, "eta_s": 3.0,
        }  # fmt: skip

    def progress(self) -> Progress:
        info = self.info()
        return Progress(**{name: info[name] for name in Progress.__slots__})

    def reasons(self) -> dict[str, int]:
        return {"OK": 2, "NONZERO": 2}

    def cancel(self, indices: list[int] | None) -> int:
        self.calls.append(indices)
        return 1

    def resubmit(self, indices: list[int] | None, *, pool: str | None) -> FakeArray:
        self.calls.append((indices, pool))
        return self

    def limit(self, most: int | None) -> None:
        self.calls.append(most)


class Arrays(FakeClient):
    """A client with one array."""

    def __init__(self) -> None:
        super().__init__()
        self.one = FakeArray()

    def array(self, array: int) -> FakeArray:
        return self.one

    def arrays(self, **filters: Any) -> list[dict[str, Any]]:
        return [self.one.info()]

    def submit_array(self, spec: JobSpec, indices: Any, **more: Any) -> list[Any]:
        self.calls.append(("submit_array", (spec, indices, more)))
        self.add(FakeJob(101, "NEW", None, None, array=12))
        return [self.rows[101]]

    def submit_many(self, specs: list[JobSpec], **more: Any) -> list[Any]:
        self.calls.append(("submit_many", (specs, more)))
        self.add(FakeJob(101, "NEW", None, None, array=12))
        return [self.rows[101]]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    made = Arrays()
    stand_in(monkeypatch, made)
    return made


def remuda(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(root, list(arguments), prog_name="remuda", input=stdin)


def test_list_and_show(client: Arrays) -> None:
    lines = remuda("array", "list").stdout.splitlines()
    assert lines[1].split()[:10] == ["12", "six", "alice", "6", "0", "1", "1", "2", "2", "3s"]
    assert json.loads(remuda("array", "list", "--json").stdout)[0]["failed"] == 2
    assert "at most      4 at once" in remuda("array", "show", "12").stdout
    assert json.loads(remuda("array", "show", "--json", "12").stdout)[0]["reasons"]["OK"] == 2


def test_wait(client: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `job wait`, of the jobs of one array; of none there is no waiting."""
    asked: list[Any] = []

    def told(_: Any, wanted: list[int], **more: Any) -> int:
        asked.append((wanted, more))
        return 124

    monkeypatch.setattr("remuda.cli.array.wait_and_tell", told)
    assert remuda("array", "wait", "12", "--timeout", "1s").exit_code == 124
    assert asked == [([], {"array": 12, "timeout_s": 1.0})]


def test_parts(client: Arrays) -> None:
    assert remuda("array", "cancel", "12", "7").stdout == "cancelled 1 job\n"
    assert remuda("array", "cancel", "12").exit_code == 0
    assert remuda("array", "resubmit", "12", "0-2", "--pool", "big").stdout == "array 12: 6 jobs\n"
    assert remuda("array", "limit", "12", "5").exit_code == 0
    assert remuda("array", "limit", "12", "0").exit_code == 0
    assert client.one.calls == [[7], None, ([0, 1, 2], "big"), 5, None]


def test_submit_with_parameters(client: Arrays, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("seed\n1\n")
    words = ["--param", "seed=1,2", "--param", "rate=0.1", "--max-running", "5", "--", "x"]
    assert remuda("job", "submit", *words).stdout == "array 12: jobs 101\n"
    _, indices, more = next(call for name, call in client.calls if name == "submit_array")
    assert indices is None
    assert more["parameters"] == {"seed": ["1", "2"], "rate": ["0.1"]}
    assert more["max_running"] == 5
    assert remuda("job", "submit", "--array-from", str(table), "x").exit_code == 0
    assert remuda("job", "submit", "--max-running", "2", "x").exit_code == 2
    for wrong in (["--param", "a=1", "--array", "3"], ["--param", "a=1", "--param", "a=2"]):
        assert remuda("job", "submit", *wrong, "x").exit_code == 2


def test_submit_after(client: Arrays) -> None:
    assert remuda("job", "submit", "--after", "7:end", "--after", "array:3:any", "x").exit_code == 0
    spec, _ = client.calls[0][1]
    assert [(a.target, a.condition, a.quantifier) for a in spec.afters] == [
        (7, "end", "all"),
        (ArrayRef(3), "success", "any"),
    ]
    assert remuda("job", "submit", "--after", "prep", "x").exit_code == 2
    assert remuda("job", "submit", "--after", "7:maybe", "x").exit_code == 2


def test_submit_dag(client: Arrays) -> None:
    jobs = [
        {"name": "a", "command": ["x"]},
        {"command": "y z", "after": ["a"], "outputs": [["o", "p"]]},
    ]
    for text in (json.dumps(jobs), "\n".join(map(json.dumps, jobs))):
        done = remuda("job", "submit-dag", "-", "--pool", "sim", stdin=text)
        assert (done.exit_code, done.stdout) == (0, "array 12: jobs 101\n")
        specs, more = next(c for name, c in reversed(client.calls) if name == "submit_many")
        assert [spec.afters[0].target for spec in specs[1:]] == ["a"]
        assert more["pool"] == "sim"
    for wrong in ("", "[", '[{"name": "a"}]', '[{"command": "x", "wen": 1}]', "[1]",
                  '[{"command": "x", "cores": 0}]'):  # fmt: skip
        assert remuda("job", "submit-dag", "-", stdin=wrong).exit_code == 2


def test_files_of_jobs_that_cannot_be_read(client: Arrays, tmp_path: Path) -> None:
    """Neither odd bytes nor deep nesting is a bug of Remuda; a hint is about what is wrong."""
    for content, said in ((b"\xff\xfe", "UTF-8"), (b"[" * 100_000, "neither a JSON list")):
        (tmp_path / "jobs.json").write_bytes(content)
        done = remuda("job", "submit-dag", str(tmp_path / "jobs.json"))
        assert done.exit_code == 2
        assert said in done.stderr
    wrong = remuda("job", "submit-dag", "-", stdin='{"command": "x", "cores": 0}')
    assert "condition" not in wrong.stderr
    (tmp_path / "rows.jsonl").write_bytes(b"[" * 100_000)
    with pytest.raises(BadInput, match="not JSON"):
        list(read(tmp_path / "rows.jsonl"))
    assert "'x'" in remuda("job", "cancel", "--array", "1:x").stderr
