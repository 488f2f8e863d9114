"""A real Slurm cluster of one node for tests: munged, slurmctld and slurmd on free loopback ports.

All of it is in a folder of its own and runs as who runs the tests. Nothing of the machine's own
configuration is read. It can have accounting: see slurmdbd.py.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from remuda.workers.providers.local import remove_tree

_DEADLINE_S = 30.0
_WHERE = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
CPUS = 32  # more than there are, so that many jobs run at once

# Slurm looks for what can start once a second, and whenever a job has ended. So that tests need not
# wait, one that is nobody's ends right after each submission.
_SBATCH = """\
#!/bin/sh
timeout -s KILL 0.5 salloc --no-shell --immediate=1 --partition=pulse --job-name=pulse \\
    --ntasks=1 --mem=1 </dev/null >/dev/null 2>&1
{sbatch} "$@"
status=$?
timeout 5 scancel --partition=pulse --name=pulse </dev/null >/dev/null 2>&1 &
exit $status
"""


@dataclass
class Slurm:
    """One cluster; `folder` has its files. `options` are those of a pool."""

    folder: Path
    ports: tuple[int, ...]
    remembers_s: int = 10  # how long squeue tells of what has ended
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def options(self) -> dict[str, Any]:
        graces = {"file_grace_s": 3, "account_grace_s": 3}
        return {"conf": str(self.conf), "bin": str(self.folder / "bin"), "poll_s": 0.5, **graces}

    @property
    def environ(self) -> dict[str, str]:
        """What daemons need of their environment besides."""
        return {}

    @property
    def accounting(self) -> str:
        """What slurm.conf says of accounting."""
        return "AccountingStorageType=accounting_storage/none\n"

    def configure(self) -> None:
        """Write key and configuration."""
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(mode=0o755)
        self.folder.chmod(0o755)
        sbatch = self.folder / "bin" / "sbatch"
        sbatch.write_text(_SBATCH.format(sbatch=shutil.which("sbatch")))
        sbatch.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        me = pwd.getpwuid(os.geteuid()).pw_name
        node = socket.gethostname().partition(".")[0]
        self.conf.write_text(
            "ClusterName=remuda\nSlurmctldHost=localhost(127.0.0.1)\n"
            f"SlurmctldPort={self.ports[0]}\nSlurmdPort={self.ports[1]}\n"
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n"
            f"SlurmUser={me}\nSlurmdUser={me}\n"
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge.sock\nCredType=cred/munge\n"
            f"StateSaveLocation={self.folder}/state\nSlurmdSpoolDir={self.folder}/spool\n"
            f"SlurmctldPidFile={self.folder}/slurmctld.pid\n"
            f"SlurmdPidFile={self.folder}/slurmd.pid\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\n"
            "JobAcctGatherType=jobacct_gather/none\nMpiDefault=none\n"
            f"JobCompType=jobcomp/none\n{self.accounting}Epilog={shutil.which('true')}\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\nDefMemPerCPU=16\n"
            "SchedulerType=sched/builtin\nSchedulerParameters=batch_sched_delay=0\n"
            "EnforcePartLimits=ALL\nMaxArraySize=501\nMaxJobCount=20000\n"
            f"MessageTimeout=2\nKillWait=1\nMinJobAge={self.remembers_s}\nReturnToService=2\n"
            "SlurmdParameters=config_overrides\n"
            f"NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={node} CPUs={CPUS} "
            "RealMemory=8000 State=UNKNOWN\n"
            "PartitionName=main Nodes=ALL Default=YES MaxTime=120 State=UP\n"
            "PartitionName=shut Nodes=ALL MaxTime=60 State=DOWN\n"
            "PartitionName=pulse Nodes=ALL MaxTime=1 State=UP\n"
        )

    def words(self, name: str) -> list[str]:
        """Return the arguments of a daemon."""
        files = {"slurmctld": ["-D", "-f", str(self.conf)]}
        files["slurmd"] = ["-D", "-N", "localhost", "-f", str(self.conf)]
        files["munged"] = ["--foreground", f"--socket={self.folder}/munge.sock"]
        for kind, file in (("key", "key"), ("pid", "pid"), ("log", "log"), ("seed", "seed")):
            files["munged"].append(f"--{kind}-file={self.folder}/munge.{file}")
        return files[name]

    def command(self, name: str) -> list[str]:
        program = shutil.which(name, path=_WHERE)
        assert program, f"{name} is missing: tools/system-packages test"
        # It is killed too when the tests themselves are killed.
        return ["setpriv", "--pdeathsig", "KILL", "--", program, *self.words(name)]

    def start(self, name: str) -> None:
        """Start a daemon."""
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                self.command(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": _WHERE, "SLURM_CONF": str(self.conf), **self.environ},
                start_new_session=True,
            )

    def stop(self, name: str, *, number: int = signal.SIGTERM) -> None:
        """End a daemon, in order or not; harmless when repeated."""
        process = self.daemons.pop(name, None)
        if process is not None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def begin(self) -> None:
        """Start all daemons."""
        self.start("munged")
        self.prepare()
        self.start("slurmctld")
        self.start("slurmd")

    def prepare(self) -> None:
        """Start what the controller needs."""

    def wait(self, what: str, *command: str, says: str) -> None:
        """Wait until a command of Slurm's says something."""
        self.until(what, lambda: says in self.ask(*command))

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait while all daemons live."""
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert all(d.poll() is None for d in self.daemons.values()), self.log()
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log()}"
            time.sleep(0.02)  # between two looks at a condition with a deadline

    def ask(self, *command: str) -> str:
        """Return what a command of Slurm's says."""
        env = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def log(self) -> str:
        texts = [f"{p.name}:\n{p.read_text()[-2000:]}" for p in self.folder.glob("*.out")]
        return "\n".join(texts)

    def close(self) -> None:
        """End every job and daemon, and see that nothing of them is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if "slurmctld" in self.daemons:
                self.ask("scancel", f"--user={os.geteuid()}")
        for name in list(self.daemons):
            self.stop(name, number=signal.SIGKILL)
        for pid in left(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        remove_tree(self.folder)


def left(folder: Path) -> list[int]:
    """Return the slurmstepds of a cluster and what they run."""
    mark, found = os.fsencode(f"SLURM_CONF={folder}/"), []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def free_ports(count: int) -> tuple[int, ...]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)


AnySlurm = TypeVar("AnySlurm", bound=Slurm)


@contextlib.contextmanager
def running(cluster: AnySlurm) -> Iterator[AnySlurm]:
    """Run a cluster."""
    try:
        cluster.configure()
        cluster.begin()
        cluster.wait("the node is idle", "sinfo", "-h", "-p", "main", "-o", "%T", says="idle")
        yield cluster
    finally:
        cluster.close()


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="remuda-slurm-"))


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster of this test session."""
    with running(Slurm(new_folder(), free_ports(2))) as cluster:
        yield cluster
