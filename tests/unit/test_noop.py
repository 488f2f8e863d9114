"""What can be broken at will: every fault of the noop backend and provider, and that it scales."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import (
    BadInput,
    CapacityError,
    InstanceNotFound,
    MaximumCapacityReached,
    ProviderError,
    QuotaExceeded,
    ResourceNotReady,
    TransientProviderError,
    VmUnreachable,
)
from remuda.testing import Act, Faults, NoopCommands, NoopProvider, Site, wait_until, world
from remuda.workers.backends import InputFile, StartJob, VmAddress, get_backend
from remuda.workers.backends.noop.script import read_script
from remuda.workers.channel import Channel
from remuda.workers.providers import VmSpec, get_provider
from tests.contract.places import noop_place


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    world().clear()


@pytest.fixture
def site() -> Iterator[Site]:
    with noop_place() as place:
        yield Site(place)


def faults_of(site: Site) -> Faults:
    return world().machine(str(site.vm.address["noop"])).faults


def test_connects_are_refused_so_often(site: Site) -> None:
    faults_of(site).refuse_connects = 2
    for _ in range(2):
        with pytest.raises(VmUnreachable, match="does not answer"):
            site.connect()
    site.connect().close()


def test_a_channel_breaks_after_so_many_requests(site: Site) -> None:
    faults_of(site).drop_after = 2
    channel = site.connect()
    channel.request("status")
    with pytest.raises(VmUnreachable):
        channel.request("status")
    assert site.closed.wait(20)


@pytest.mark.parametrize(("name", "done"), [("cut_requests", False), ("cut_answers", True)])
def test_a_channel_breaks_before_or_after_a_request_was_done(
    site: Site, name: str, done: bool
) -> None:
    setattr(faults_of(site), name, 1)
    channel, job = site.connect(), site.job(Act(sleep_s=1000))
    with pytest.raises(VmUnreachable):
        site.submit(channel, job)
    status = site.connect().request("status")
    assert [a for a, _ in status["running"]] == ([job.attempt_id] if done else [])


def test_an_answer_is_lost(site: Site) -> None:
    channel = site.connect()
    faults_of(site).lose_answers = 1
    with pytest.raises(VmUnreachable, match="within"):
        channel.request("status", timeout_s=0.05)
    assert channel.request("status")["queued"] == []


def test_answers_come_late(site: Site) -> None:
    channel = site.connect()
    faults_of(site).answer_delay_s = 0.5
    began = time.monotonic()
    with pytest.raises(VmUnreachable):
        channel.request("status", timeout_s=0.02)
    channel.request("status")
    assert time.monotonic() - began >= 0.5


def test_pushes_come_twice(site: Site) -> None:
    faults_of(site).duplicate_rate = 1.0
    channel, job = site.connect(), site.job()
    site.submit(channel, job)
    site.exit(job)
    site.wait(
        lambda: sum(len(m["entries"]) for m in site.pushed if m["push"] == "entries") == 4,
        "both entries came twice",
    )


def test_a_seed_repeats_what_happens() -> None:
    def outcomes(seed: int) -> list[bool]:
        with noop_place(Faults(seed=seed, drop_rate=0.3)) as place:
            found = []
            for _ in range(30):
                channel = place.backend.connect(place.vm)
                try:
                    channel.request("status")
                    found.append(True)
                except VmUnreachable:
                    found.append(False)
                channel.close()
            return found

    assert outcomes(7) == outcomes(7)
    assert outcomes(7) != outcomes(8)
    assert 0 < outcomes(7).count(False) < 30


def test_a_vm_is_full_or_not_ready(site: Site) -> None:
    channel, job = site.connect(), site.job()
    faults_of(site).not_ready = 1
    with pytest.raises(ResourceNotReady):
        site.submit(channel, job)
    faults_of(site).full = True
    for submit in (site.backend.submit_jobs, site.backend.post_jobs):
        with pytest.raises(MaximumCapacityReached):
            submit(channel, site.vm, [job], floor=0)
    faults_of(site).full = False
    assert site.run(channel)["why"] == "OK"


def test_staging_fails(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    faults_of(site).staging = "the disk is full"
    channel = site.connect()
    entry = site.run(channel, inputs=(InputFile("x", str(tmp_path / "x")),))
    assert (entry["why"], "the disk is full" in entry["msg"]) == ("STAGING", True)
    assert site.run(channel)["why"] == "OK"


def test_hands_reach_in(site: Site) -> None:
    vm_id = str(site.vm.address["noop"])
    channel = site.connect()
    job, other = site.job(Act(sleep_s=1000)), site.job(Act(sleep_s=1000))
    site.submit(channel, job, other)
    world().finish(vm_id, job.attempt_id, exit_code=3)
    assert (site.exit(job)["why"], site.exit(job)["st"]) == ("NONZERO", 3)
    world().finish(vm_id, other.attempt_id, signal=9)
    assert site.exit(other)["sig"] == 9
    with pytest.raises(ValueError, match="not running"):
        world().finish(vm_id, job.attempt_id)
    world().drop_channels(vm_id)
    assert site.closed.wait(20)
    world().vanish(vm_id)
    world().vanish(vm_id)
    with pytest.raises(InstanceNotFound):
        world().machine(vm_id)


def test_running_out_of_memory(site: Site) -> None:
    job = site.job(command=("noop", "--oom"), memory_bytes=1 << 20)
    channel = site.connect()
    site.submit(channel, job)
    entry = site.exit(job)
    assert (entry["why"], entry["sig"], entry["peak"]) == ("OUT_OF_MEMORY", 9, 1 << 20)


def test_any_other_command_succeeds(site: Site) -> None:
    assert site.run(site.connect(), command=("rm", "-rf", "/"))["why"] == "OK"


@pytest.mark.parametrize(
    "words",
    [
        ["--exit"],
        ["--exit", "x"],
        ["--what", "1"],
        ["--write", "x"],
        ["--lines", "1000001"],
        ["--lines", "-1"],
        ["--sleep", "nan"],
        ["--sleep", "-1"],
        ["--signal", "65"],
    ],
)
def test_a_script_that_is_wrong_complains(words: list[str]) -> None:
    script = read_script(["noop", *words])
    assert (script.exit_code, script.stderr.startswith("noop: ")) == (2, True)


def test_beats_are_pushed(site: Site) -> None:
    site.connect()
    site.wait(lambda: sum(m["push"] == "beat" for m in site.pushed) >= 2, "two beats")


# ---- the provider


def spec(name: str = "vm") -> VmSpec:
    return VmSpec(name, "sim", 1)


def test_the_provider_fails_as_told(tmp_path: Path) -> None:
    told = {
        "spawn": ["QuotaExceeded", "", "CapacityError"],
        "describe": ["TransientProviderError"],
        "terminate": ["ProviderAuthError"],
        "list": ["PermanentProviderError"],
    }
    pool = {"provider_faults": told}
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(QuotaExceeded):
        get_provider("noop", settings, pool).spawn(spec(), "1")
    provider = get_provider("noop", settings, pool)
    vm_id = provider.spawn(spec(), "1")
    with pytest.raises(CapacityError):
        provider.spawn(spec(), "2")
    for call in (lambda: provider.describe([vm_id]), lambda: provider.terminate(vm_id)):
        with pytest.raises(ProviderError):
            call()
    with pytest.raises(ProviderError):
        provider.list("")
    assert [vm.provider_id for vm in provider.list("")] == [vm_id]
    provider.terminate(vm_id)
    assert provider.list("") == []


def test_a_spawn_whose_answer_is_lost_is_found_by_its_token() -> None:
    provider = NoopProvider(None, {"provider_faults": {"lose_spawns": 1}})
    with pytest.raises(TransientProviderError):
        provider.spawn(spec(), "token")
    (vm,) = provider.list("sim")
    assert provider.spawn(spec(), "token") == vm.provider_id


def test_a_vm_boots_for_a_while() -> None:
    provider = NoopProvider(None, {"provider_faults": {"boot_s": 0.1}})
    vm_id = provider.spawn(spec(), "1")
    vm = VmAddress(1, "vm", "noop", provider.describe([vm_id])[vm_id].address)
    with pytest.raises(VmUnreachable):
        get_backend("noop").connect(vm)
    wait_until(lambda: provider.describe([vm_id])[vm_id].state == "running", "it runs")
    get_backend("noop").connect(vm).close()


def test_a_pool_says_what_is_wrong_with_its_vms() -> None:
    provider = NoopProvider(None, {"faults": {"refuse_connects": 5, "full": True}})
    machine = world().machine(provider.spawn(spec(), "1"))
    assert (machine.faults.refuse_connects, machine.faults.full) == (5, True)


@pytest.mark.parametrize(
    "settings",
    [
        {"faults": 1},
        {"faults": {"no_such": 1}},
        {"faults": {"full": 1}},
        {"faults": {"lose_answers": -1}},
        {"faults": {"lose_answers": 0.5}},
        {"faults": {"staging": 1}},
        {"provider_faults": {"spawn": "QuotaExceeded"}},
        {"provider_faults": {"spawn": ["BadInput"]}},
        {"hosts": []},
    ],
)
def test_settings_that_are_wrong_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        NoopProvider().validate(settings)


# ---- the whole


def test_a_thousand_vms_in_one_process() -> None:
    provider, backend = NoopProvider(), get_backend("noop")
    ended, done = [0], threading.Event()

    def heard(channel: Channel, message: dict[str, Any]) -> None:
        ended[0] += sum(entry["t"] == "exit" for entry in message.get("entries", ()))
        if ended[0] == 3000:
            done.set()

    channels = []
    words = NoopCommands().write(Act(sleep_s=0.1, stdout="x"))
    began = time.process_time()
    for n in range(1000):
        vm_id = provider.spawn(spec(f"vm-{n}"), f"token-{n}")
        vm = VmAddress(n, f"vm-{n}", "noop", {"noop": vm_id})
        channel = backend.connect(vm, watch=True, on_push=heard)
        jobs = [StartJob(a, a, 1, words) for a in range(3 * n + 1, 3 * n + 4)]
        backend.submit_jobs(channel, vm, jobs, floor=1)
        channels.append(channel)
    assert done.wait(120)
    assert len(provider.list("sim")) == 1000
    assert time.process_time() - began < 20
    for channel in channels:
        channel.close()


def test_nothing_is_left_in_a_forked_child() -> None:
    NoopProvider().spawn(spec(), "1")
    code = (
        "import os; from remuda.testing import NoopProvider, world; from remuda.workers.providers "
        "import VmSpec; NoopProvider().spawn(VmSpec('vm', 'sim', 1), '1'); pid = os.fork();\n"
        "if pid == 0: os._exit(len(world().all()))\n"
        "print(len(world().all()), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0"]


def test_the_fakes_need_no_pytest_and_the_suites_say_so() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import json, remuda.testing as t\n"
        "said = []\n"
        "for name in ('BackendContract', 'ProviderContract', 'ResourceContract'):\n"
        "    try: getattr(t, name)\n"
        "    except ImportError as error: said.append(str(error))\n"
        "t.NoopProvider(), t.Faults(), t.Place, t.Act\n"
        "print(json.dumps(said))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    said = json.loads(done.stdout)
    assert len(said) == 3
    assert all("pip install 'remuda[testing]'" in text for text in said)
    plain = "import sys, remuda, remuda.client; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_peeking_while_it_runs(site: Site) -> None:
    job = site.job(Act(stdout="here", write={"f": "file"}, sleep_s=1000))
    channel = site.connect()
    site.submit(channel, job)
    memory = io.BytesIO()
    assert site.backend.fetch(channel, site.vm, job.attempt_id, "f", memory) == 4
    assert site.backend.peek(channel, site.vm, job.attempt_id, "stdout") == (b"here", 0, 4)


def test_acknowledged_and_left_nothing_is_forgotten(site: Site) -> None:
    channel, job = site.connect(), site.job(Act(stdout="x"))
    site.submit(channel, job)
    n = site.exit(job)["n"]
    runner = world().machine(str(site.vm.address["noop"])).runner
    assert job.attempt_id in runner.ended
    channel.request("ack", n=n)
    assert runner.ended == {}
