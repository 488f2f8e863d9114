"""The job commands over a client that only remembers: parsing, printing, exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from click.testing import CliRunner

from remuda.cli.app import root
from remuda.retries import RetryPolicy
from tests.unit.fake_client import FakeClient, FakeJob, client, remuda

__all__ = ["client"]


def test_the_quickstarts_array(client: FakeClient) -> None:
    line = """remuda job submit --pool sim --name tile --array 100 --input tile.py
        --output '{index}.txt' --cores 1 --memory 512M --walltime 10m -- python3 tile.py '{index}'
    """
    result = remuda(*shlex.split(line)[1:])
    assert (result.exit_code, result.stdout) == (0, "array 12: jobs 101..103,107\n")
    name, (spec, indices, pool, array_name) = client.calls[0]
    assert (name, indices, pool, array_name) == ("submit_array", 100, "sim", "tile")
    assert list(spec.command) == ["python3", "tile.py", "{index}"]
    assert (spec.cores, spec.memory_bytes, spec.walltime_s) == (1, 512 << 20, 600)


def test_one_job_prints_its_id(client: FakeClient) -> None:
    result = remuda("job", "submit", "--shell", "--key", "k", "--join", "--", "echo", "$HOME")
    assert (result.exit_code, result.stdout) == (0, "5\n")
    spec, pool = client.calls[0][1]
    assert pool is None
    assert (spec.idempotency_key, spec.join_output) == ("k", True)


def test_submit_as_json(client: FakeClient) -> None:
    assert [job["id"] for job in json.loads(remuda("job", "submit", "--json", "x").stdout)] == [5]
    found = json.loads(remuda("job", "submit", "--json", "--array", "4", "x").stdout)
    assert [(job["id"], job["array"]) for job in found] == [
        (101, 12), (102, 12), (103, 12), (107, 12),
    ]  # fmt: skip


def test_a_job_that_fits_nowhere(client: FakeClient) -> None:
    client.full = True
    result = remuda("job", "submit", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "remuda: error: it can never run\nhint: --allow-pending submits it all the same\n"
    )
    assert remuda("job", "submit", "--allow-pending", "x").exit_code == 0


def test_bad_input_is_2_and_submits_nothing(client: FakeClient) -> None:
    for wrong in (["--output", "../x", "true"], ["--cores", "-1", "true"], ["--", ""]):
        result = remuda("job", "submit", *wrong)
        assert result.exit_code == 2
        assert result.stderr.startswith("remuda: error: ")
    assert client.calls == []


def test_list(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2, reason="SIGNALLED", exit_code=None, signal=9, name="a b"))
    result = remuda("job", "list", "--pool", "sim", "--state", "running", "--state", "NEW")
    assert (result.exit_code, client.calls[-1][1]["state"]) == (0, ["RUNNING", "NEW"])
    lines = remuda("job", "list").stdout.splitlines()
    assert lines[0].split() == [
        "ID", "NAME", "POOL", "STATE", "REASON", "EXIT", "TRIES", "VM", "SUBMITTED", "TIME",
    ]  # fmt: skip
    assert lines[2].split() == [
        "2", "a", "b", "sim", "TERMINATED", "SIGNALLED", "sig", "9", "1", "2025-01-31",
        "12:00:00Z", "1.5s",
    ]  # fmt: skip


def test_list_as_json_is_one_array_of_stable_keys(client: FakeClient) -> None:
    assert json.loads(remuda("job", "list", "--json").stdout) == []
    client.add(FakeJob(1))
    found = json.loads(remuda("job", "list", "--json", "--limit", "1").stdout)
    assert list(found[0]) == [
        "id", "name", "pool", "owner", "array", "index", "state", "reason", "exit_code", "signal",
        "message", "attempts", "vm", "cores", "memory_bytes", "walltime_s", "priority",
        "gpus", "architecture", "constraints", "sandbox", "tags", "max_queue_s",
        "submitted_at", "started_at", "ended_at", "wall_s", "user_s", "system_s", "max_rss_bytes",
        "peak_memory_bytes", "io_read_bytes", "io_write_bytes",
    ]  # fmt: skip
    assert found[0]["ended_at"] == "2025-01-31T12:00:02Z"


def test_a_cut_list_says_so(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2))
    result = remuda("job", "list", "--limit", "2")
    assert "the newest 2" in result.stderr


def test_wait_until_all_succeeded(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2, "RUNNING", None), FakeJob(3, "NEW", None))
    for arguments in (["--pool", "sim", "--timeout", "600"], ["1", "2..3"]):
        result = remuda("job", "wait", *arguments)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "3 jobs succeeded\n"


def test_wait_for_nothing(client: FakeClient) -> None:
    result = remuda("job", "wait", "--pool", "sim")
    assert (result.exit_code, result.stderr) == (0, "there are no jobs\n")


def test_wait_names_the_failures(client: FakeClient) -> None:
    client.add(FakeJob(1, name="fit", reason="NONZERO", exit_code=3, message="bad\x07 luck"))
    client.add(*(FakeJob(i, "RUNNING", "LOST") for i in range(2, 14)))
    result = remuda("job", "wait", "--pool", "sim")
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert lines[0] == "remuda: 13 jobs failed"
    assert lines[1] == r"  job 1 'fit': exit code 3, bad\x07 luck"
    assert lines[2] == "  job 2: LOST"
    assert lines[11:] == ["  and 3 more"]


def test_wait_gives_up(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2, "RUNNING", None), FakeJob(3, "NEW", None))
    client.timeout = True
    result = remuda("job", "wait", "--pool", "sim", "--timeout", "1s")
    assert result.exit_code == 124
    assert result.stderr == "remuda: the time is over: 2 of 3 jobs not ended\n"


def test_unknown_jobs(client: FakeClient) -> None:
    client.add(FakeJob(1))
    result = remuda("job", "wait", "1", "5..9")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        1,
        "remuda: error: there is no job 5..9",
    )
    assert "there is no array 4" in remuda("job", "wait", "--array", "4").stderr
    assert remuda("job", "show", "0").exit_code == 2


def test_cancel(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2, "RUNNING", None))
    result = remuda("job", "cancel", "1..2")
    assert (result.stdout, result.stderr) == ("cancelled 1 job\n", "1 job had already ended\n")
    result = remuda("job", "cancel", "--pool", "sim", "--array", "12:0-2,7", "--state", "new")
    assert (result.stdout, result.stderr) == ("cancelled 1 job\n", "")
    assert client.calls[-1] == (
        "cancel", {"pool": "sim", "array": 12, "indices": [0, 1, 2, 7], "states": ["NEW"]},
    )  # fmt: skip
    assert remuda("job", "cancel", "1..2", "--dry-run").stdout == "would cancel 1 job\n"


def test_what_reaches_far_is_asked_about(client: FakeClient) -> None:
    client.add(FakeJob(1, "RUNNING", None))
    asked = remuda("job", "cancel", "--tag", "night")
    assert (asked.exit_code, asked.stdout) == (130, "")
    assert "cancel 1 job? [y/N]" in asked.stderr
    assert client.calls == [("cancel", {"tag": "night"})]
    assert remuda("job", "cancel", "--tag", "night", "--yes").stdout == "cancelled 1 job\n"
    dry = remuda("job", "cancel", "--name", "fit-*", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "would cancel 1 job\n")
    assert remuda("job", "cancel").exit_code == 2
    assert remuda("job", "cancel", "1", "--tag", "night").exit_code == 2


def test_retry(client: FakeClient) -> None:
    client.add(FakeJob(1), FakeJob(2), FakeJob(3, "RUNNING", None))
    assert remuda("job", "retry", "1", "2").stdout == "1001\n1002\n"
    refused = remuda("job", "retry", "1", "3")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "job 3 is RUNNING" in refused.stderr
    assert remuda("job", "retry", "1", "1").exit_code == 2


def test_logs(client: FakeClient) -> None:
    client.add(FakeJob(1, stdout=b"\xffout", stderr=b"err"), FakeJob(2, "RUNNING", None))
    assert remuda("job", "logs", "1").stdout_bytes == b"\xffout"
    assert remuda("job", "logs", "--stderr", "1").stdout_bytes == b"err"
    assert remuda("job", "logs", "-f", "2").stdout == "one\ntwo\n"
    assert remuda("job", "logs", "-f", "--stderr", "2").stdout == "warn\n"
    assert remuda("job", "logs", "2").stdout == "stdout so far"
    client.add(FakeJob(3, "NEW", None))
    early = remuda("job", "logs", "3")
    assert (early.exit_code, early.stderr.splitlines()) == (
        1,
        ["remuda: error: job 3 is NEW", "hint: `remuda job logs -f 3` waits for it"],
    )
    assert remuda("job", "logs", "-f", "--attempt", "1", "2").exit_code == 2


def test_results(client: FakeClient, tmp_path: Path) -> None:
    client.add(FakeJob(1, files=("a", "b"), array=3), FakeJob(2, array=3))
    result = remuda("job", "results", "1", "--to", str(tmp_path))
    assert result.stdout.splitlines() == [str(tmp_path / "a"), str(tmp_path / "b")]
    result = remuda("job", "results", "--array", "3", "--by-id", "--to", str(tmp_path))
    assert result.stdout.splitlines() == [str(tmp_path / "1" / "a"), str(tmp_path / "1" / "b")]
    assert result.stderr == "job 2 left no files\n"
    assert remuda("job", "results", "1").stdout == "/own/a\n/own/b\n"
    assert remuda("job", "results").exit_code == 2
    assert remuda("job", "results", "1", "--overwrite").exit_code == 2
    client.add(FakeJob(8, reason="NONZERO"))
    failed = remuda("job", "results", "8")
    assert failed.stderr == "remuda: error: job 8 failed\nhint: --to DIR copies what it left\n"
    client.add(FakeJob(9, "RUNNING", None))
    early = remuda("job", "results", "1", "9", "--to", str(tmp_path))
    assert (early.exit_code, early.stdout) == (1, "")
    client.add(FakeJob(4, files=("taken",)))
    taken = remuda("job", "results", "4", "--to", str(tmp_path))
    assert (taken.exit_code, taken.stderr.splitlines()[1]) == (1, "hint: --overwrite replaces it")
    assert remuda("job", "results", "4", "--to", str(tmp_path), "--overwrite").exit_code == 0


def test_explain_prints_nothing_a_terminal_would_obey(client: FakeClient) -> None:
    assert remuda("job", "explain", "1").stdout.splitlines() == ["It waits.", r"Bad\x1b[2Jname"]


def test_explain_as_json(client: FakeClient) -> None:
    assert json.loads(remuda("job", "explain", "1", "--json").stdout) == {
        "reasons": [{"kind": "queue", "text": "It waits.", "blocks": False}],
        "start_s": 1.5,
        "basis": "a guess",
    }


def test_a_retry_policy(client: FakeClient, tmp_path: Path) -> None:
    """From a file or as JSON; no retries asked for are none, whatever the pool says."""
    file = tmp_path / "policy.json"
    file.write_text('{"max_retries": 3, "rules": [{"exit_codes": [2], "max_retries": 0}]}')
    for given in (str(file), file.read_text()):
        done = CliRunner().invoke(root, ["job", "submit", "--retry-policy", given, "--", "x"])
        assert done.exit_code == 0
        spec = client.calls[-1][1][0]
        assert isinstance(spec.retry, RetryPolicy)
        assert spec.retry.max_retries == 3
        assert spec.retry.rule_for("NONZERO", 2) is not None
    for words, policy in (([], None), (["--retries", "0"], RetryPolicy())):
        CliRunner().invoke(root, ["job", "submit", *words, "--", "x"])
        assert client.calls[-1][1][0].retry == policy
    before = len(client.calls)
    (tmp_path / "odd.json").write_bytes(b"\xff")
    for wrong, said in (
        ("none.json", "No such file"),
        (str(tmp_path), "directory"),
        (str(tmp_path / "odd.json"), "not JSON"),
        ("{", "not JSON"),
        ('{"max_retries": 1, "max_retries": 2}', "there twice"),
        ('{"tries": 1}', "no tries"),
        ('{"delay_s": NaN}', "delay_s"),
        ('{"a":' * 100_000, "not JSON"),
    ):
        done = CliRunner().invoke(root, ["job", "submit", "--retry-policy", wrong, "--", "x"])
        assert done.exit_code == 2
        assert said in done.stderr
    both = ["job", "submit", "--retries", "1", "--retry-policy", "{}", "--", "x"]
    assert CliRunner().invoke(root, both).exit_code == 2
    assert len(client.calls) == before
