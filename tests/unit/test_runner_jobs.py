"""What the runner makes of a job: results, output, files, limits, and nothing left behind."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.onvm.processes import describe_process
from tests.unit.vm import Line, Vm, a_vm, interpreters, job, output, wait_dead, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve().line()


@pytest.mark.parametrize("python", interpreters().values(), ids=list(interpreters()))
def test_every_python_runs_jobs_stages_files_cancels_and_recovers(
    python: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_text("data")
    for vm in a_vm(tmp_path / "vm", python=python):
        line = vm.serve().line()
        script = "cat in/x; echo error >&2; echo made > out; exit 200"
        entry = line.sh(1, script, out=[["out", False]], **{"in": [["in/x", str(source), 0o644]]})
        assert (entry["st"], entry["why"], entry["f"]) == (200, "NONZERO", {"out": 5})
        assert (output(entry), output(entry, "er")) == (b"data", b"error\n")
        assert line.run(2, "no-such-program")["st"] == 127
        assert line.run(3, "/bin/true")["why"] == "OK"
        line.start(job(4, "sleep", "1000"), job(5, "sleep", "1000"), job(6, "true"))
        line.started(5)
        line.ask("cancel", a=[4], grace=5)
        assert (line.exit(4)["sig"], line.exit(4)["why"]) == (15, "CANCELLED")
        assert line.exit(6)["why"] == "OK"
        assert line.sh(7, "setsid sleep 1000 & head -c 200000 /dev/zero")["os"] == 200000
        assert line.whole(7, "stdout") == bytes(200000)
        newest = line.entries[-1]["n"]
        sleeper = line.started(5)["pid"]
        vm.kill()
        again = vm.serve().line(since=newest)
        assert describe_process(sleeper) is None
        assert again.exit(5)["why"] == "LOST"
        assert again.start(job(5, "sleep", "1000"), job(6, "true")) == {
            "5": "exited",
            "6": "exited",
        }
        assert len(again.entries) == 1


@pytest.mark.parametrize(
    ("script", "st", "sig", "why"),
    [
        ("exit 0", 0, None, "OK"),
        ("exit 200", 200, None, "NONZERO"),
        ("exit 127", 127, None, "NONZERO"),
        ("kill -9 $$", None, 9, "SIGNALLED"),
        ("kill -PIPE $$", None, 13, "SIGNALLED"),
        ("kill -TERM $$", None, 15, "SIGNALLED"),
        ("exec >&- 2>&-; sleep 0.1; exit 3", 3, None, "NONZERO"),
    ],
)
def test_how_a_job_ends(line: Line, script: str, st: int | None, sig: int | None, why: str) -> None:
    entry = line.sh(1, script)
    assert (entry["st"], entry["sig"], entry["why"]) == (st, sig, why)
    assert entry["s"] <= entry["x"]
    assert entry["started"]
    assert "box" not in entry


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "./none", "", "/tmp"])
def test_a_command_that_does_not_exist_is_127(line: Line, name: str) -> None:
    entry = line.run(1, name)
    assert (entry["st"], entry["why"], entry["started"]) == (127, "NONZERO", False)
    assert "command not found" in entry["msg"]
    assert [e["t"] for e in line.entries] == ["exit"]


@pytest.mark.parametrize(("text", "mode"), [("#!/bin/sh\n", 0o644), ("no program", 0o755)])
def test_a_command_that_cannot_be_executed_is_126(
    line: Line, tmp_path: Path, text: str, mode: int
) -> None:
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(mode)
    entry = line.run(1, str(program))
    assert (entry["st"], entry["why"]) == (126, "NONZERO")
    assert entry["msg"]


@pytest.mark.parametrize(
    "fields",
    [
        {"c": []},
        {"c": "true"},
        {"c": ["true", 1]},
        {"c": ["true", "a\0b"]},
        {"c": ["true", "x" * 3_000_000]},
        {"c": ["true"], "env": {"A=B": "c"}},
        {"c": ["true"], "env": {"A": 1}},
        {"c": ["true"], "env": ["A"]},
        {"c": ["true"], "cores": -1},
        {"c": ["true"], "cores": "many"},
        {"c": ["true"], "cores": 3},
        {"c": ["true"], "mem": -1},
        {"c": ["true"], "mem": 1 << 60},
        {"c": ["true"], "wall": -1},
        {"c": ["true"], "wall": float("nan")},
        {"c": ["true"], "in": ["x"]},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_bad_job_is_refused_alone(line: Line, fields: dict[str, Any]) -> None:
    line.start(job(1, "true"), {"a": 2, "j": 2, "e": 1, **fields}, job(3, "true"))
    assert (line.exit(2)["why"], line.exit(2)["started"]) == ("SUBMISSION", False)
    assert line.exit(2)["msg"]
    assert line.exit(1)["why"] == line.exit(3)["why"] == "OK"


def test_output_is_what_was_written(line: Line) -> None:
    script = r"printf 'a\0\377\n'; echo e >&2"
    entry = line.sh(1, script)
    assert (output(entry), output(entry, "er")) == (b"a\0\xff\n", b"e\n")
    assert (entry["os"], entry["es"]) == (4, 2)
    joined = line.sh(2, "echo 1; echo 2 >&2; echo 3", join=True)
    assert output(joined) == b"1\n2\n3\n"
    assert "es" not in joined
    silent = line.sh(3, ":")
    assert (silent["os"], "o" in silent, "er" in silent) == (0, False, False)


def test_long_output_goes_to_a_file(vm: Vm, line: Line) -> None:
    entry = line.sh(1, "seq 100000; seq 100000 >&2")
    expected = "".join(f"{i}\n" for i in range(1, 100001)).encode()
    assert (entry["os"], entry["osp"], entry["esp"], entry["box"]) == (
        len(expected),
        True,
        True,
        True,
    )
    assert line.whole(1, "stdout") == line.whole(1, "stderr") == expected
    tail = line.ask("peek", a=1, file="stdout", offset=-7)
    assert base64.b64decode(tail["data"]) == b"100000\n"
    assert vm.boxes() == ["1.err", "1.out"]
    line.ask("free", a=[1])
    vm.wait_boxes()
    assert line.ask("peek", a=1, file="stdout")["code"] == "NOFILE"


def test_of_a_huge_output_the_head_and_the_tail_are_kept(vm: Vm, line: Line) -> None:
    limit = 4 << 20
    entry = line.sh(1, "seq 1 14000000 | head -c 104857600", limit=limit)
    assert entry["os"] == 100 << 20
    kept = (vm.home / "jobs" / "1.out").read_bytes()
    assert len(kept) <= limit
    head, tail = kept.split(b"\n[remuda: the middle of 104857600 bytes was cut out here]\n")
    assert head.startswith(b"1\n2\n3\n")
    assert min(len(head), len(tail)) > limit // 2 - 100
    numbers = [int(n) for n in tail.split(b"\n")[1:-1]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    line.ask("ack", n=entry["n"])
    assert line.run(2, "true")["why"] == "OK"


def test_output_is_seen_while_it_is_made(line: Line) -> None:
    line.start(job(1, "sh", "-c", "echo one; read x < /proc/self/fd/none; sleep 1000"))

    def first() -> bool:
        answer = line.ask("peek", a=1, file="stdout")
        return answer["ok"] and base64.b64decode(answer["data"]) == b"one\n"

    wait_until(first, "output of a running job")
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(1)["sig"] == 9


def test_output_is_followed_from_its_start(vm: Vm, line: Line) -> None:
    follower = vm.line(watch=False)
    go = vm.home / "go"
    script = f"echo one; until [ -e '{go}' ]; do sleep 0.01; done; seq 60000; echo end >&2"
    line.start(job(1, "sh", "-c", script, follow=True))
    while not any(m["push"] == "output" for m in line.pushed):
        line.read()
    assert follower.ask("follow", a=1)["ok"]
    go.touch()
    entry = line.exit(1)

    def pushed(to: Line, name: str, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunks = [m for m in to.pushed if m["push"] == "output" and m["s"] == name]
            data = b""
            for chunk in chunks:
                assert chunk["at"] == len(data)
                data += base64.b64decode(chunk["d"])
            if len(data) < size:
                to.read()
        return data

    expected = b"one\n" + "".join(f"{i}\n" for i in range(1, 60001)).encode()
    for to in (line, follower):
        assert pushed(to, "stdout", entry["os"]) == expected
        assert pushed(to, "stderr", entry["es"]) == b"end\n"
    assert follower.entries == []


@pytest.mark.parametrize(
    "left",
    [
        "sleep 1000 &",
        "setsid sleep 1000 &",
        "env -i setsid sleep 1000 &",
        "setsid sh -c 'setsid sleep 1000 & sleep 1000' &",
        "(trap '' TERM HUP; sleep 1000) &",
    ],
)
def test_what_a_job_leaves_running_is_killed(vm: Vm, line: Line, left: str) -> None:
    entry = line.sh(1, f"{left} echo hi")
    assert (output(entry), entry["why"]) == (b"hi\n", "OK")
    wait_until(lambda: vm.processes() == [vm.pid], "the sleepers are gone")
    children = Path(f"/proc/{vm.pid}/task/{vm.pid}/children")
    wait_until(lambda: children.read_text() == "", "no orphan is left")


def test_a_daemon_of_a_running_job_lives_as_long_as_the_job(vm: Vm, line: Line) -> None:
    pid_file, go = vm.home / "pid", vm.home / "go"
    write = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}"
    daemon = f"(setsid sh -c '{write}; exec sleep 1000' &)"
    line.start(job(1, "sh", "-c", f"{daemon}; until [ -e {go} ]; do sleep 0.01; done"))
    wait_until(pid_file.exists, "the daemon runs")
    assert line.run(2, "true")["why"] == "OK"  # another job's end must not touch it
    pid = int(pid_file.read_text())
    assert describe_process(pid)
    go.touch()
    assert line.exit(1)["why"] == "OK"
    wait_dead(pid)


def test_inputs_are_copied_in(vm: Vm, line: Line, tmp_path: Path) -> None:
    text, program = tmp_path / "a text", tmp_path / "program"
    text.write_text("text")
    program.write_text("#!/bin/sh\ncat deep/er/ü\nprintf x >> deep/er/ü\n")
    inputs = [["deep/er/ü", str(text), 0o644], ["run", str(program), 0o755]]
    entry = line.run(1, "./run", **{"in": inputs})
    assert (output(entry), entry["why"], entry["box"]) == (b"text", "OK", True)
    assert text.read_text() == "text"
    assert (vm.home / "jobs/1/deep/er/ü").read_text() == "textx"
    assert stat.S_IMODE((vm.home / "jobs/1/run").stat().st_mode) == 0o755
    line.ask("free", a=[1])
    line.ask("free", a=[1, 77])
    vm.wait_boxes()


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "", ".", "..", "a//b", "a/", "a\0b", "x" * 5000, "n" * 300]
)
def test_no_input_name_leads_out_of_the_sandbox(vm: Vm, line: Line, name: str) -> None:
    entry = line.run(1, "true", **{"in": [[name, "/etc/hostname", 0o644]]})
    assert (entry["why"], entry["started"], entry["st"]) == ("STAGING", False, None)
    assert entry["msg"]
    assert [e["t"] for e in line.entries] == ["exit"]
    assert not [p for p in (vm.home / "jobs").rglob("*") if p.is_file()]
    assert not (vm.home / "x").exists()


def test_inputs_that_are_no_readable_files(line: Line, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for attempt, source in enumerate(["/no/such", str(tmp_path), str(fifo), "s3://a/b", "x"], 1):
        assert line.run(attempt, "true", **{"in": [["x", source, 0o644]]})["why"] == "STAGING"
    twice = [["x", "/etc/hostname", 0o644]] * 2
    assert line.run(10, "true", **{"in": twice})["why"] == "STAGING"


def test_outputs_are_regular_files_inside_the_sandbox(line: Line) -> None:
    script = """
        printf abc > file; mkdir -p d/e folder; printf x > d/e/deep; mkfifo fifo
        ln -s file inner; ln -s /etc/hostname outer; ln -s /etc up; ln -s loop loop
    """
    names = ["file", "d/e/deep", "inner", "outer", "up/hostname", "loop", "fifo", "folder", "none"]
    names += ["../1/file", "/etc/hostname", "maybe"]
    entry = line.sh(1, script, out=[[name, name == "maybe"] for name in names])
    assert entry["f"] == {"file": 3, "d/e/deep": 1, "inner": 3}
    assert entry["miss"] == names[3:-1]
    assert (entry["why"], entry["st"]) == ("STAGING", 0)
    assert "outer" in entry["msg"]
    assert line.whole(1, "file") == line.whole(1, "./file") == b"abc"
    for name in ("outer", "up/hostname", "../1/file", "/etc/hostname", "folder", "fifo"):
        assert line.ask("peek", a=1, file=name)["code"] == "NOFILE"
    failed = line.sh(2, "exit 9", out=[["x", False]])
    assert (failed["why"], failed["st"], failed["miss"]) == ("NONZERO", 9, ["x"])


def test_a_sandbox_replaced_by_a_link_gives_no_outputs(line: Line) -> None:
    script = 'd=$PWD; cd /; rm -rf "$d"; ln -s /etc "$d"'
    entry = line.sh(1, script, out=[["hostname", False]])
    assert (entry["miss"], entry["why"]) == (["hostname"], "STAGING")
    assert line.ask("peek", a=1, file="hostname")["code"] == "NOFILE"
    line.ask("free", a=[1])
    assert Path("/etc/hostname").exists()
    gone = line.sh(2, 'd=$PWD; cd /; rmdir "$d"; ln -s /etc "$d"')
    assert gone["why"] == "OK"
    assert line.sh(3, "pwd -P; ls")["why"] == "OK"


def test_an_empty_sandbox_is_used_again_and_another_is_kept(vm: Vm, line: Line) -> None:
    first = output(line.sh(1, "pwd"))
    assert output(line.sh(2, "pwd; ls -A")) == first
    left = line.sh(3, "echo x > left")
    assert left["box"]
    assert vm.boxes() == ["3"]
    assert line.whole(3, "left") == b"x\n"
    assert output(line.sh(4, "ls -A")) == b""


def test_freeing_removes_what_is_hard_to_remove(vm: Vm, line: Line, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    script = f"""
        mkdir -p locked/in && chmod 500 locked/in locked && ln -s {outside} link
        python3 -c 'import os
for _ in range(1500): os.mkdir("d" * 20); os.chdir("d" * 20)'
    """
    assert line.sh(1, script)["why"] == "OK"
    line.ask("free", a=[1])
    wait_until(lambda: list((vm.home / "jobs").iterdir()) == [], "all of it is deleted")
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_what_a_job_sees(vm: Vm, line: Line) -> None:
    entry = line.sh(
        7,
        "env; cat; umask; ulimit -n",
        env={"MINE": "ü x", "REMUDA_VM_HOME": "/"},
        j=5,
        e=3,
        cores=2,
    )
    seen = output(entry).decode().splitlines()
    ids = ["JOB_ID=5", "ATTEMPT_ID=7", "EPOCH=3", "CORES=2", "VM=vm", f"VM_HOME={vm.home}"]
    assert {f"REMUDA_{text}" for text in ids} == {s for s in seen if s.startswith("REMUDA_")}
    assert "MINE=ü x" in seen
    fds = output(line.sh(8, "ls /proc/self/fd")).split()
    assert fds == [b"0", b"1", b"2", b"3"]  # ls itself opens the last
    ignored = output(line.sh(9, "grep -E 'SigIgn|SigBlk' /proc/self/status"))
    masks = [int(text.split()[1], 16) for text in ignored.splitlines()]
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]  # above are signals of the C library


def test_usage_is_of_the_job(line: Line) -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass\nx = bytearray(80 << 20)"
    entry = line.run(1, "python3", "-c", busy)
    assert entry["u"] + entry["sy"] >= 0.2
    assert entry["rss"] >= 80 << 20
    assert entry["x"] - entry["s"] >= 0.2


def test_walltime_ends_a_job(vm: Vm, line: Line) -> None:
    entry = line.sh(1, "sleep 1000", wall=0.2)
    assert (entry["why"], entry["sig"]) == ("WALLTIME", 15)
    assert "0.2 s" in entry["msg"]
    assert line.sh(2, "trap 'exit 0' TERM; sleep 1000 & wait", wall=0.2)["why"] == "WALLTIME"
    assert line.sh(3, "sleep 0.01", wall=100)["why"] == "OK"
    assert vm.processes() == [vm.pid]


def test_cancelling(vm: Vm, line: Line) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
    line.start(
        job(1, "sh", "-c", stubborn),
        job(2, "sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"),
    )
    line.start(job(3, "true"), job(4, "true"))
    for attempt in (1, 2):
        line.wait_output(attempt)
    assert line.ask("cancel", a=[1, 2, 3, 99], grace=0.2)["unknown"] == [99]
    assert (line.exit(3)["why"], line.exit(3)["started"]) == ("CANCELLED", False)
    assert (line.exit(2)["why"], line.exit(2)["st"]) == ("OK", 0)  # it ended well all the same
    assert (line.exit(1)["why"], line.exit(1)["sig"]) == ("CANCELLED", 9)
    assert line.exit(4)["why"] == "OK"
    before = len(line.entries)
    assert line.ask("cancel", a=[1, 2, 3, 4])["unknown"] == []
    line.ask("status")
    assert len(line.entries) == before
    assert vm.processes() == [vm.pid]


def test_a_stopped_job_is_cancelled_too(line: Line) -> None:
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    assert line.ask("signal", a=1, signal=19)["ok"]
    line.ask("cancel", a=[1], grace=15)
    assert (line.exit(1)["sig"], line.exit(1)["why"]) == (15, "CANCELLED")


def test_signals_reach_the_job(line: Line) -> None:
    script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done"
    line.start(job(1, "sh", "-c", script), job(2, "sleep", "1000"), job(3, "true"))
    line.wait_output(1)
    for bad in (
        {"a": 1, "signal": 0},
        {"a": 1, "signal": 999},
        {"a": 3, "signal": 1},
        {"a": 9, "signal": 1},
    ):
        assert line.ask("signal", **bad)["code"] == "BAD"
    assert line.ask("signal", a=1, signal=10)["ok"]
    assert (line.exit(1)["st"], output(line.exit(1))) == (5, b"ready\ngot\n")
    line.ask("cancel", a=[2], grace=0)


def test_slots_and_memory_are_never_oversubscribed(vm: Vm) -> None:
    line = vm.serve(3, "--memory", "1000").line()
    line.start(job(1, "sleep", "1000", cores=2, mem=600), job(2, "sleep", "1000", mem=500))
    line.start(job(3, "true"))  # would fit, but the one before it was first
    line.started(1)
    assert line.ask("status")["queued"] == [2, 3]
    line.start(job(4, "true", mem=1001), job(5, "true", cores=4))
    assert [line.exit(a)["why"] for a in (4, 5)] == ["SUBMISSION", "SUBMISSION"]
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(3)["why"] == "OK"
    assert line.started(2)["n"] < line.started(3)["n"]
    assert line.ask("status")["running"] == [[2, line.started(2)["pid"]]]


def test_thousands_of_queued_jobs(vm: Vm, line: Line) -> None:
    line.start(*(job(a, "true") for a in range(1, 2001)))
    line.ask("cancel", a=list(range(1001, 2001)))
    for a in range(1, 2001):
        assert line.exit(a)["why"] == ("OK" if a <= 1000 else "CANCELLED")
    numbers = [entry["n"] for entry in line.entries]
    assert numbers == sorted(set(numbers))
    assert len(line.entries) == 3000
    assert vm.boxes() == []
