"""Real RabbitMQ and Redis for tests: free loopback ports, folders of their own, surely stopped.

Nothing of the machine's own configuration is read and no service of the machine is touched. A
missing server fails the test: `make test` installs them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psycopg
import pytest

from remuda.embedded.cluster import ENVIRONMENT, USER, make_cluster, server_command
from remuda.embedded.launcher import find_binaries, user_prefix

_WHERE = os.pathsep.join(
    ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
)
_START_DEADLINE_S = 90.0
_STOP_DEADLINE_S = 15.0


class ServiceFailed(Exception):
    """A service could not be started; the message ends with its log."""


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ server of this test session."""
    with running_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server of this test session."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@contextlib.contextmanager
def running_rabbitmq(
    folder: Path, *, address: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[str]:
    """Run RabbitMQ, with an Erlang name server of its own, keeping its files in `folder`.

    `prefix`: of the commands, such as `ip netns exec NAME`; then `address` is one of that place.
    """
    server = _binary("rabbitmq-server", package="rabbitmq-server")
    names = _binary("epmd", package="erlang-base")
    amqp, distribution, name_port = _free_ports(3)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {address}:{amqp}\nloopback_users = none\n"
        "disk_free_limit.absolute = 10MB\n"
        "log.console = true\nlog.console.level = warning\nlog.file = false\n"
    )
    (folder / "plugins").write_text("[].\n")
    name_server = {"ERL_EPMD_PORT": str(name_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    environment = {
        **name_server,
        "HOME": str(folder),  # Erlang keeps its cookie there
        "RABBITMQ_NODENAME": f"remuda-{secrets.token_hex(4)}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # Makes the start script exec the server instead of staying between it and our signals.
        "RUNNING_UNDER_SYSTEMD": "true",
    }

    def named() -> bool:  # elsewhere the name server, on that place's loopback, is not to be seen
        return bool(prefix) or _accepts(name_port)

    with (
        _running([*prefix, names], folder / "epmd.log", name_server, named),
        _running(
            [*prefix, server],
            folder / "server.log",
            environment,
            lambda: _speaks_amqp(address, amqp),
        ),
    ):
        yield f"amqp://guest:guest@{address}:{amqp}//"


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run Redis, keeping nothing on disk but its log in `folder`."""
    server = _binary("redis-server", package="redis-server")
    (port,) = _free_ports(1)
    command = [server, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    with _running(command, folder / "server.log", {}, lambda: _speaks_redis(port)):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def running_postgres(folder: Path, *, address: str, prefix: Sequence[str] = ()) -> Iterator[str]:
    """Run PostgreSQL on an address of its own, from the embedded server's binaries."""
    cluster, port, secret = folder / "cluster", _free_ports(1)[0], secrets.token_hex(8)
    binaries = find_binaries(cluster)
    as_user = user_prefix(binaries, cluster)
    (folder / "password").write_text(secret)
    make_cluster(cluster, binaries, as_user, password_file=folder / "password")
    with (cluster / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet scram-sha-256\n")
    command = [*prefix, *as_user, *server_command(binaries, cluster, port)]
    url = f"postgresql://{USER}:{secret}@{address}:{port}/postgres"

    def ready() -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
            return True
        return False

    listening = [f"--listen_addresses={address}", f"--unix_socket_directories={folder}"]
    with _running([*command, *listening], folder / "server.log", ENVIRONMENT, ready):
        yield url


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, environment: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[None]:
    """Run `command` in a process group of its own until the block ends.

    It is killed too when the tests themselves are killed (`setpriv --pdeathsig`).
    """
    guard = [_binary("setpriv", package="util-linux"), "--pdeathsig", "KILL", "--"]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**inherited, **environment},
            start_new_session=True,
        )
    try:
        _wait_ready(process, ready, log)
        yield
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            how = f"ended with {ended}" if ended is not None else "is not ready in time"
            tail = log.read_text(errors="replace")[-4000:]
            raise ServiceFailed(f"{process.args!r} {how}:\n{tail}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: asked first, killed after a while, in every case gone at the end."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, wanted)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_DEADLINE_S)


def _binary(name: str, *, package: str) -> str:
    found = shutil.which(name, path=_WHERE)
    if found is None:
        raise ServiceFailed(
            f"{name} is missing: `make test` installs it, or apt-get install {package}"
        )
    return found


def _free_ports(count: int) -> list[int]:
    """Return ports free on the loopback, each a different one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _speaks_amqp(address: str, port: int) -> bool:
    """Whether the server answers the protocol header with Connection.Start, as one ready does."""
    return _answer(address, port, b"AMQP\x00\x00\x09\x01")[:1] == b"\x01"


def _speaks_redis(port: int) -> bool:
    return _answer("127.0.0.1", port, b"PING\r\n").startswith(b"+PONG")


def _answer(address: str, port: int, request: bytes) -> bytes:
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), timeout=2) as connection,
    ):
        connection.sendall(request)
        return connection.recv(64)
    return b""
