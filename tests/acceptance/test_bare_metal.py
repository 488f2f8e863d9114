"""One host per role, as docs/deploy.md has it: the units' own commands in network namespaces."""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import JobSpec
from tests.invariants import broken
from tests.namespaces import Namespace, network
from tests.services import running_postgres, running_rabbitmq
from tests.sshd import Sshd, running_sshd
from tests.system import System, eventually

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ROLES = ("database", "broker", "worker-1", "worker-2", "beat-1", "beat-2", "node-1", "producer")


def exec_start(unit: str, instance: str = "") -> list[str]:
    """Return the command of a unit, with this Python's `remuda`."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / unit)
    line = parser["Service"]["ExecStart"].replace("%i", instance).replace("%%", "%")
    binary, *words = shlex.split(line)
    assert binary == "/opt/remuda/bin/remuda"
    return [sys.executable, "-m", "remuda", *words]


class Site:
    """Hosts with names of their own, the processes of Remuda on them, and a system to look through."""

    def __init__(
        self, folder: Path, hosts: dict[str, Namespace], database: str, broker: str
    ) -> None:
        self.hosts = hosts
        self.system = System(folder, database_url=database, broker_url=broker)
        config = folder / "config.toml"
        text = (DEPLOY / "config.toml.example").read_text()
        keys = {"database_url": database, "broker_url": broker, "storage_url": f"file://{folder}/s"}
        lines = [line for line in text.splitlines() if line.partition(" ")[0] not in keys]
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        config.write_text("\n".join(lines))
        self.folder, self.config = folder, config

    def environment(self, host: str) -> dict[str, str]:
        """Return what /etc/remuda/environment has there, its paths in a folder of the host's."""
        home = self.folder / host
        given = dict(
            line.split("=", 1)
            for line in (DEPLOY / "environment.example").read_text().splitlines()
            if line and not line.startswith("#")
        )
        ours = {
            "PYTHONFAULTHANDLER": "1",
            "REMUDA_CONFIG": str(self.config),
            "REMUDA_DATA_DIR": str(home / "data"),
            "REMUDA_STATE_DIR": str(home / "state"),
            "REMUDA_WATCH_TTL_S": "3",
            "REMUDA_LOG_FORMAT": "text",
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("REMUDA_")}
        return {**clean, **given, **ours, "HOME": str(home)}

    def on(self, host: str, command: list[str]) -> list[str]:
        """Return the command as run on a host."""
        named = ["unshare", "--uts", "--", "sh", "-c", 'hostname "$0" && exec "$@"', host]
        return [*self.hosts[host].prefix, *named, *command]

    def start(self, host: str, unit: str, instance: str = "") -> None:
        """Start a unit's command on a host, as systemd would."""
        (self.folder / host).mkdir(exist_ok=True)
        with (self.folder / f"{host}.log").open("ab") as log:
            self.system.processes[host] = subprocess.Popen(
                self.on(host, exec_start(unit, instance)),
                env=self.environment(host),
                cwd=self.folder / host,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_role(self, host: str) -> None:
        """Start what belongs on a host."""
        role, _, number = host.partition("-")
        if role == "worker":
            self.start(host, "remuda-worker@.service", number)
        else:
            self.start(host, "remuda-beat.service")

    def remuda(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the producers' host."""
        (self.folder / "producer").mkdir(exist_ok=True)
        return subprocess.run(
            self.on("producer", [sys.executable, "-m", "remuda", *words]),
            env=self.environment("producer"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Sshd]]:
    """A host per role, all of them at work."""
    if os.geteuid():
        pytest.skip("only root can make a network of hosts")
    folder = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as stack:
        hosts = dict(zip(ROLES, stack.enter_context(network(len(ROLES))), strict=True))
        for name in ("pg", "mq"):
            (folder / name).mkdir()
        at, prefix = hosts["database"].address, hosts["database"].prefix
        database = stack.enter_context(running_postgres(folder / "pg", address=at, prefix=prefix))
        at, prefix = hosts["broker"].address, hosts["broker"].prefix
        broker = stack.enter_context(running_rabbitmq(folder / "mq", address=at, prefix=prefix))
        node = hosts["node-1"]
        sshd = stack.enter_context(running_sshd(address=node.address, prefix=node.prefix))
        made = Site(folder, hosts, database, broker)
        stack.callback(made.system.close)
        told = made.remuda("db", "upgrade")
        assert told.returncode == 0, told.stderr
        for host in ("worker-1", "worker-2", "beat-1", "beat-2"):
            made.start_role(host)
        with made.system.client() as client:
            pool = client.create_pool(
                "lab",
                provider="static",
                settings={"hosts": [sshd.entry(cores=2)]},
                slots_per_vm=2,
                heartbeat_s=1,
            )
            pool.submit()
        yield made, sshd


def test_jobs_run_and_the_doctor_finds_nothing(site: tuple[Site, Sshd]) -> None:
    place, _ = site
    done = place.remuda("run", "--pool", "lab", "--", "sh", "-c", "echo hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    told = place.remuda("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(told.stdout)}
    assert {check["status"] for check in checks.values()} == {"ok"}, told.stdout
    assert told.returncode == 0
    assert "worker1@worker-1, worker2@worker-2" in checks["worker"]["detail"]


def test_a_rolling_restart_loses_and_repeats_nothing(
    site: tuple[Site, Sshd], tmp_path: Path
) -> None:
    """Every process is restarted in turn, as `systemctl restart` does, under a stream of jobs."""
    place, sshd = site
    marks = Path(sshd.home, "marks")
    marks.mkdir()
    shutil.chown(marks, sshd.user)
    spec = JobSpec(
        ["sh", "-c", f"mktemp {marks}/$REMUDA_JOB_ID.XXXXXX; sleep 0.3; echo out > out"],
        outputs=["out"],
    )
    over = threading.Event()
    with place.system.client() as client:
        jobs = []

        def submit() -> None:
            while not over.is_set():
                jobs.extend(client.submit_array(spec, 2, pool="lab"))
                over.wait(0.5)

        producer = threading.Thread(target=submit)
        producer.start()
        try:
            for host in ("worker-1", "worker-2", "beat-1", "beat-2", "worker-1"):
                ended = client.counts(pool="lab")["TERMINATED"]
                assert place.system.stop(host) < 10, place.system.log(host)
                eventually(
                    f"jobs go on without {host}",
                    lambda ended=ended: client.counts(pool="lab")["TERMINATED"] >= ended + 8,  # type: ignore[misc]
                    timeout_s=60,
                )
                place.start_role(host)
        finally:
            over.set()
            producer.join()
        client.wait(jobs, timeout_s=120)
        assert {job.refresh().info()["reason"] for job in jobs} == {"OK"}
        assert {job.attempts for job in jobs} == {1}
        started = Counter(int(path.name.partition(".")[0]) for path in marks.iterdir())
        assert started == Counter(job.id for job in jobs)
    assert broken(place.system.query) == {}


def test_a_worker_cut_off_is_replaced(site: tuple[Site, Sshd]) -> None:
    """Its wire is pulled: the other takes its watches; nothing is lost, and it may come back."""
    place, _ = site
    with place.system.client() as client:
        for host in ("worker-1", "worker-2"):  # one of them holds the watch
            place.hosts[host].cut()
            jobs = client.submit_array(JobSpec(["sleep", "0.1"]), 40, pool="lab")
            client.wait(jobs, timeout_s=90)
            place.hosts[host].mend()
        assert {job.refresh().info()["reason"] for job in jobs} == {"OK"}
    eventually(
        "both answer again",
        lambda: b"" if place.remuda("doctor").returncode else b"ok",
        timeout_s=60,
    )
    assert broken(place.system.query) == {}


def test_a_database_cut_off_is_waited_for(site: tuple[Site, Sshd]) -> None:
    """A job ends while nobody can record it: it is recorded afterwards, and ran once."""
    place, sshd = site
    ended = Path(sshd.home, "ended")
    with place.system.client() as client:
        job = client.submit(JobSpec(["sh", "-c", f"sleep 2; touch {ended}"]), pool="lab")
        eventually("it runs", lambda: job.refresh().state == "RUNNING")
        place.hosts["database"].cut()
        eventually("it has ended", ended.exists)
        place.hosts["database"].mend()
        assert job.result(timeout_s=90).exit_code == 0
        assert job.attempts == 1
    assert broken(place.system.query) == {}


@pytest.mark.parametrize(
    ("unit", "url", "wanted"),
    [
        ("remuda-metrics.service", "http://127.0.0.1:9808/metrics", "remuda_database_up 1.0"),
        (
            "remuda-flower.service",
            "http://127.0.0.1:5555/api/workers?refresh=1",
            "worker1@worker-1",
        ),
    ],
)
def test_metrics_and_flower_answer_on_their_host(
    site: tuple[Site, Sshd], unit: str, url: str, wanted: str
) -> None:
    """The units' commands serve there what they are for; Flower lets in the user it made."""
    place, _ = site
    place.start("producer", unit)
    users = place.folder / "producer/state/flower/auth"
    ask = "import sys, urllib.request as r; q = r.Request(sys.argv[1]); " + (
        "q.add_header('Authorization', sys.argv[2]); print(r.urlopen(q, timeout=5).read().decode())"
    )

    def answer() -> str:
        user = users.read_bytes().strip() if users.exists() else b""
        words = [sys.executable, "-c", ask, url, "Basic " + base64.b64encode(user).decode()]
        done = subprocess.run(
            place.on("producer", words), capture_output=True, text=True, timeout=30
        )
        return done.stdout

    try:
        eventually(f"{unit} tells {wanted}", lambda: wanted in answer(), timeout_s=60)
    finally:
        place.system.stop("producer")


@pytest.mark.parametrize("unit", sorted(path.name for path in (DEPLOY / "systemd").iterdir()))
def test_units_are_right(unit: str) -> None:
    """systemd finds nothing wrong but that the program is not installed in its place here.

    And that it cannot have a folder of its own, where it does not run and we are not root.
    """
    expected = (
        "Command /opt/remuda/bin/remuda is not executable",
        "Failed to create directory '/run/systemd/': Permission denied",
    )
    found = shutil.which("systemd-analyze")
    assert found, "systemd-analyze is missing: apt-get install systemd"
    done = subprocess.run(
        [found, "verify", "--man=no", str(DEPLOY / "systemd" / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    wrong = [
        line
        for line in done.stderr.splitlines()
        if line and not any(words in line for words in expected)
    ]
    assert wrong == []
