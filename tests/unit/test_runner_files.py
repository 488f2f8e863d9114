"""What the runner does with a job's files: its output, inputs, outputs, and its sandbox."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.workers.onvm import outputs
from tests.unit.vm import Line, Vm, a_vm, job, output, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve().line()


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


def test_patterns_and_directories_of_outputs(line: Line) -> None:
    script = """
        mkdir -p out/deep .git; printf 1 > out/a.csv; printf 22 > out/deep/b.csv; : > out/.hidden
        printf x > prog; chmod +x prog; : > .git/config; ln -s /etc out/etc; mkfifo out/fifo
        ln -s a.csv out/link; ln -s . out/loop
    """

    def found(attempt: int, *out: str) -> dict[str, int]:
        entry = line.sh(attempt, script, out=[[name, False] for name in out])
        assert "miss" not in entry
        return dict(entry["f"])

    assert found(1, "out/*.csv") == {"out/a.csv": 1}
    assert found(2, "**/*.csv", "pro[f-h]") == {"out/a.csv": 1, "out/deep/b.csv": 2, "prog": 1}
    assert found(3, "out/") == {
        "out/.hidden": 0,
        "out/a.csv": 1,
        "out/deep/b.csv": 2,
        "out/link": 1,
    }
    assert set(found(4, "**")) == {*found(5, "out/"), "prog", ".git/config"}
    assert line.exit(4)["fx"] == ["prog"]
    assert line.whole(4, "out/deep/b.csv") == b"22"


def test_a_pattern_without_a_match_is_missing(line: Line) -> None:
    entry = line.sh(1, ": > a", out=[["*.csv", False], ["d/", False], ["e/", True], ["a", False]])
    assert (entry["f"], entry["miss"], entry["why"]) == ({"a": 0}, ["*.csv", "d/"], "STAGING")
    assert entry["msg"] == "missing output: *.csv, d/"
    assert line.sh(2, ":", out=[["**", False]])["why"] == "OK"


def test_a_folder_is_no_file(line: Line) -> None:
    """It is named by what would have brought it."""
    entry = line.sh(1, "mkdir d", out=[["d", False], ["e", False]])
    assert (entry["miss"], entry["why"]) == (["d", "e"], "STAGING")
    assert entry["msg"] == "missing output: d (it is a folder: ask for d/), e"


def test_of_all_outputs_unchanged_inputs_are_left_out(line: Line, tmp_path: Path) -> None:
    for name in ("kept", "written", "replaced", "named"):
        (tmp_path / name).write_text(name)
    inputs = [[p.name, str(p), 0o644] for p in sorted(tmp_path.iterdir()) if p.is_file()]
    script = "printf WRITTEN > written; cp kept new; mv new replaced; : > made"
    entry = line.sh(1, script, **{"in": inputs, "out": [["**", False]]})
    assert entry["f"] == {"made": 0, "replaced": 4, "written": 7}
    entry = line.sh(2, ":", **{"in": inputs, "out": [["**", False], ["named", False]]})
    assert entry["f"] == {"named": 5}


def test_what_no_table_can_hold_is_told(line: Line) -> None:
    odd = r"printf x > \"$(printf 'a\377b')\"; : > fine".replace('\\"', '"')
    entry = line.sh(1, odd, out=[["**", False]])
    assert (entry["f"], entry["miss"], entry["why"]) == ({"fine": 0}, [r"a\xffb"], "STAGING")
    assert line.sh(2, odd, out=[["**", True]])["why"] == "OK"
    deep = "for i in 1 2 3 4 5 6 7 8 9 10 11; do d=$(printf %0200d 1); mkdir $d; cd $d; done; : > x"
    entry = line.sh(3, deep, out=[["**", False]])
    assert (entry["f"], entry["why"], len(entry["miss"])) == ({}, "STAGING", 1)


def test_a_sandbox_replaced_by_a_link_gives_nothing_by_patterns_either(line: Line) -> None:
    script = 'd=$PWD; cd /; rm -rf "$d"; ln -s /etc "$d"'
    entry = line.sh(1, script, out=[["**", False], ["host*", True]])
    assert entry["f"] == {}


@pytest.mark.parametrize("limit", ["MOST", "MOST_SEEN"])
def test_more_outputs_than_can_be_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(outputs, limit, 10)
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert len(outputs.find_outputs(str(tmp_path), [("**", False)], set()).files) == 10
    (tmp_path / "one more").touch()
    found = outputs.find_outputs(str(tmp_path), [("**", False), ("1", False)], set())
    assert found.files == {}
    assert "output files" in found.problem


def test_why_an_input_cannot_be_had_is_told(line: Line) -> None:
    entry = line.run(1, "true", **{"in": [["x", "!the store said no", 0o644]]})
    assert (entry["why"], entry["msg"]) == ("STAGING", "input: the store said no")


def test_what_was_moved_is_counted_and_told_with_the_heartbeat(line: Line, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    inputs = [["a", str(source), 0o644], ["b", str(source), 0o644]]
    line.sh(1, "cat a b >c; echo 12345", **{"in": inputs, "out": [["c", False]]})
    line.sh(2, "true", **{"in": [["a", str(source), 0o644], ["b", "/nowhere", 0o644]]})
    status = line.ask("status")
    # In: two and the one before the missing one; out: the file, and six bytes of output.
    assert (status["moved_files"], status["moved_bytes"]) == (2 + 1 + 1, 2000 + 2000 + 6 + 1000)
    assert status["cores"] == len(os.sched_getaffinity(0))
