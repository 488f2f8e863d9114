"""What a job may use: memory, CPUs, GPUs; as root with control groups and as anybody without."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.onvm import cgroups
from remuda.workers.onvm.cgroups import Cgroups, own_folders
from tests.unit.vm import Line, Vm, a_vm, job, output, wait_until

MIB = 1 << 20
LIMIT = 64 * MIB
# Takes memory bit by bit, so that what it had at its end is near the limit.
GREEDY = """
import os
held = []
while True:
    held.append(bytearray(os.urandom(1 << 10)) * 1024)
"""


class VmOfNobody(Vm):
    """A VM of an ordinary user; nobody may read the interpreter, wherever that is."""

    def command(self, *words: str) -> list[str]:
        nobody = pwd.getpwnam("nobody")
        return [
            "setpriv",
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            "--securebits=+no_setuid_fixup",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search",
            "--",
            *super().command(*words),
        ]


def closed(vm: Vm) -> Iterator[Vm]:
    try:
        yield vm
    finally:
        vm.close()


@pytest.fixture(params=["cgroup", "rlimit"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    for vm in a_vm(tmp_path / "vm"):
        line = vm.serve(4, "--cgroups", "1" if request.param == "cgroup" else "0").line()
        if request.param == "cgroup" and not line.hello["cgroup"]:
            pytest.skip("no control group can be made here")
        yield line


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


def python(text: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", text


# ---- memory


def test_a_job_that_takes_too_much_memory_is_out_of_memory(line: Line) -> None:
    entry = line.run(1, *python(GREEDY), mem=LIMIT)
    assert entry["why"] == "OUT_OF_MEMORY"
    assert LIMIT * 0.8 < entry["peak"] < LIMIT * 1.3
    assert "64 MiB" in entry["msg"]
    assert "used up to" in entry["msg"]


def test_a_job_within_its_memory_is_left_alone(line: Line) -> None:
    entry = line.run(1, *python("x = bytearray(40 << 20)"), mem=LIMIT)
    assert entry["why"] == "OK"
    assert 40 * MIB < entry["peak"] <= LIMIT
    assert line.run(2, *python("raise SystemExit(3)"), mem=LIMIT)["why"] == "NONZERO"
    killed = line.sh(3, "kill -9 $$", mem=LIMIT)
    assert (killed["why"], killed["sig"]) == ("SIGNALLED", 9)


def test_a_child_that_runs_out_of_memory(line: Line) -> None:
    code = f"{sys.executable} -I -S -c '{GREEDY}'"
    assert line.sh(1, f"{code} || exit 3", mem=LIMIT)["why"] == "OUT_OF_MEMORY"
    if line.hello["cgroup"] != "v2":  # which ends the whole group
        assert line.sh(2, f"{code}; true", mem=LIMIT)["why"] == "OK"


def test_one_request_for_far_too_much_is_out_of_memory(line: Line) -> None:
    text = "x = bytearray(400 << 20)"
    assert line.run(1, *python(text), mem=LIMIT)["why"] == "OUT_OF_MEMORY"
    assert line.run(2, *python(text))["why"] == "OK"


def test_limits_hold_for_each_of_many_at_once(tmp_path: Path) -> None:
    for vm in a_vm(tmp_path / "vm"):
        line = vm.serve(20).line()
        jobs = [
            job(a, *python(GREEDY if a % 2 else "x = bytearray(40 << 20)"), mem=LIMIT)
            for a in range(1, 21)
        ]
        line.start(*jobs)
        ends = {a: line.exit(a)["why"] for a in range(1, 21)}
        assert ends == {a: "OUT_OF_MEMORY" if a % 2 else "OK" for a in range(1, 21)}
        known = [Path(folder) for folder in cgroups.noted(f"{vm.home}/cgroups")]
        while any(any(folder.glob("a*")) for folder in known):
            line.ask("status")
    assert not any(folder.exists() for folder in known)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user is one already")
def test_an_ordinary_user_has_limits_too(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = tmp_path / "vm"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    for vm in closed(VmOfNobody(home)):
        line = vm.serve(2).line()
        assert line.hello["cgroup"] == ""
        assert output(line.run(1, "id", "-un")) == b"nobody\n"
        assert line.run(2, *python(GREEDY), mem=LIMIT)["why"] == "OUT_OF_MEMORY"
        sleep = f"sleep {1_000_000 + os.getpid()}"  # as nobody else's test has it run
        script = f"env -i setsid -f {sleep}; echo up; {sleep}"
        line.start(job(3, "sh", "-c", script, wall=1000))
        line.wait_output(3)
        line.ask("extend", a=3, wall=0.01)
        assert line.exit(3)["why"] == "WALLTIME"
        line.start(job(4, "sh", "-c", script))
        line.wait_output(4)
        vm.kill()
        assert vm.serve().line().exit(4)["why"] == "LOST"
        nobodys = os.fsencode(sleep.replace(" ", "\0") + "\0")
        names = [name for name in os.listdir("/proc") if name.isdigit()]
        left = [n for n in names if _command(n) == nobodys and _owner(n) == nobody.pw_uid]
        assert left == []


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _owner(pid: str) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


# ---- CPUs and GPUs


def test_pinned_jobs_share_no_cpu(plain: Vm) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    line = plain.serve(2 * len(cpus) + 2).line()
    show = "import os, time; print(*os.sched_getaffinity(0), flush=True); time.sleep(1000)"
    line.start(*(job(a + 1, *python(show), pin=True) for a in range(len(cpus))))
    line.start(job(100, "true", pin=True))  # waits for a CPU
    for a in range(len(cpus)):
        line.wait_output(a + 1)
    seen = sorted(int(line.whole(a + 1, "stdout")) for a in range(len(cpus)))
    assert seen == cpus
    assert line.ask("status")["queued"] == [100]
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(100)["why"] == "OK"
    line.ask("cancel", a=[a + 1 for a in range(len(cpus))], grace=0)
    many = line.run(101, "true", pin=True, cores=len(cpus) + 1)
    assert (many["why"], "pinned" in many["msg"]) == ("SUBMISSION", True)
    free = line.run(102, *python(show.replace("1000", "0")))
    assert sorted(map(int, output(free).split())) == cpus


def test_gpus_are_leased(plain: Vm) -> None:
    line = plain.serve(4, "--gpus", "3").line()
    assert line.hello["gpus"] == 3
    show = 'echo "$CUDA_VISIBLE_DEVICES;$NVIDIA_VISIBLE_DEVICES;$ROCR_VISIBLE_DEVICES"; sleep 1000'
    line.start(job(1, "sh", "-c", show, gpus=2), job(2, "sh", "-c", show, gpus=1))
    line.start(job(3, "sh", "-c", show), job(4, "true", gpus=1))
    for a in (1, 2, 3):
        line.wait_output(a)
    assert [line.whole(a, "stdout") for a in (1, 2, 3)] == [b"0,1;0,1;0,1\n", b"2;2;2\n", b";;\n"]
    assert line.ask("status")["queued"] == [4]
    line.ask("cancel", a=[2], grace=0)
    assert line.exit(4)["why"] == "OK"
    assert line.run(5, "true", gpus=4)["why"] == "SUBMISSION"


# ---- usage


def test_usage_tells_of_the_disk_too(line: Line) -> None:
    write = "f = open('x', 'wb'); f.write(bytes(8 << 20)); f.flush(); import os; os.fsync(f)"
    entry = line.run(1, *python(write), mem=4 * LIMIT)
    assert entry["peak"] > 8 * MIB
    assert entry["rd"] >= 0
    assert entry["wr"] == 0 or entry["wr"] >= 8 * MIB  # 0: the folder is in memory


# ---- control groups, of either version, as files


def fake(tmp_path: Path, home: str, *, parent: str = "") -> tuple[Path, str]:
    """A cgroup v2 tree such as a kernel would show for a group that may hand memory down."""
    top = tmp_path / "cgroup"
    name = Cgroups(home, mounts="", membership="").name
    base = top / parent.lstrip("/") / name
    for folder in (base / "vm", base / "a7"):
        folder.mkdir(parents=True)
    (base.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    for file in ("cgroup.procs", "memory.max", "cgroup.subtree_control"):
        (base / file).touch()
    mount = f"30 24 0:26 / {top} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    return base, mount


def test_cgroup_v2_is_used_as_it_is_meant(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    base, mounts = fake(tmp_path, str(home), parent="/user.slice")
    own = base.parent / "session-1.scope"
    own.mkdir()
    groups = Cgroups(str(home), mounts=mounts, membership="0::/user.slice/session-1.scope\n")
    assert (groups.kind, groups.tree, groups.memory) == ("v2", str(base), str(base))
    assert cgroups.noted(f"{home}/cgroups")[-1] == str(base)
    group = groups.group("a7", memory=LIMIT)
    folder = base / "a7"
    assert (folder / "memory.max").read_text() == str(LIMIT)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    (folder / "memory.peak").write_text("123\n")
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 1\n")
    (folder / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n")
    assert (group.peak(), group.kills(), group.bytes_moved()) == (123, 1, (11, 22))
    assert group.freeze()
    assert (folder / "cgroup.freeze").read_text() == "1"
    group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"
    assert (folder / "cgroup.freeze").read_text() == "0"
    group.join()
    assert (folder / "cgroup.procs").read_text() == "0"


def test_no_limit_that_stands_above_is_evaded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    _, mounts = fake(tmp_path, str(home))
    own = tmp_path / "cgroup" / "service"
    own.mkdir()
    (own / "memory.max").write_text("1000000\n")
    assert Cgroups(str(home), mounts=mounts, membership="0::/service\n").kind == ""


@pytest.mark.parametrize("version", ["cgroup2", "cgroup"])
def test_a_real_group_is_frozen_thawed_and_killed(tmp_path: Path, version: str) -> None:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines(keepends=True)
    only = "".join(line for line in mounts if f" - {version} " in line)
    home = tmp_path / "home"
    home.mkdir()
    groups = Cgroups(str(home), mounts=only, membership=Path("/proc/self/cgroup").read_text())
    if not groups.tree:
        pytest.skip(f"no group of a {version} hierarchy can be made here")
    group = groups.group("a1", memory=LIMIT if groups.kind else 0)
    child = subprocess.Popen(python("while True: pass"), preexec_fn=group.join)
    try:
        assert cgroups.leftovers(str(home)) == {child.pid}
        assert group.freeze()
        before = _settled_cpu(child.pid)
        group.thaw()
        wait_until(lambda: _cpu(child.pid) > before, "it runs again")
        assert group.freeze()
        group.kill()
        assert child.wait(20) == -9
    finally:
        child.kill()
        child.wait()
        groups.doom(group)
        while groups.doomed:
            groups.tidy()
        groups.leave()
    assert not any(Path(folder).exists() for folder in cgroups.noted(f"{home}/cgroups"))


def _cpu(pid: int) -> int:
    """Return the CPU time of a process, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _settled_cpu(pid: int) -> int:
    """Wait until a process that never waits has not run while this one used 0.1 s of CPU."""
    while True:
        before, until = _cpu(pid), time.process_time() + 0.1
        while time.process_time() < until:
            pass
        if _cpu(pid) == before:
            return before


@pytest.mark.parametrize(
    ("mounts", "membership", "found"),
    [
        ("", "0::/\n", {}),
        (
            "1 2 0:3 / /sys/fs/cgroup\\040x rw - cgroup2 none rw",
            "0::/a/b",
            {"v2": ("/sys/fs/cgroup x/a/b", "/sys/fs/cgroup x")},
        ),
        (
            "1 2 0:3 /docker/1 /c/memory rw - cgroup cgroup rw,memory\n1 2 0:3 / /c/x rw - tmpfs x y",
            "4:memory:/docker/1/in\n3:cpuset:/\n1:name=systemd:/\n0::/",
            {"memory": ("/c/memory/in", "/c/memory")},
        ),
        ("1 2 0:3 /docker/1 /c/memory rw - cgroup cgroup rw,memory", "4:memory:/other", {}),
    ],
)
def test_where_this_process_is(mounts: str, membership: str, found: dict[str, Any]) -> None:
    assert own_folders(mounts, membership) == found
