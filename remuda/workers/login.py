"""Logging in to a host by SSH: what `~/.ssh/config` says, and no key believed that is not pinned."""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import fabric
import paramiko

from remuda.errors import AuthError, VmUnreachable
from remuda.hosts import Host

__all__ = ["hang_up", "log_in"]

KEEPALIVE_S = 10
SILENCE_MS = 30_000  # a peer that acknowledges nothing for so long is dead
_LOG = "remuda.paramiko"  # what it reports is reported by us, once and in words

logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)


class _OnlyPinned(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise AuthError(
            f"the key of host {hostname} is not pinned; it shows {_fingerprint(key)}",
            hint="if `ssh-keygen -lf` says the same on the host, "
            f'set host_key = "{key.get_name()} {key.get_base64()}" or add it to known_hosts',
        )


def _fingerprint(key: Any) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def log_in(host: Host, timeout_s: float) -> Any:
    """Connect and log in; raises VmUnreachable or AuthError."""
    connection = None
    try:
        connection = _described(host, timeout_s)
        connection.open()
        transport = connection.transport
        transport.set_keepalive(KEEPALIVE_S)
        if isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        return connection
    except BaseException as error:
        if connection is not None:
            hang_up(connection)
        raise _translated(host, error) from error


def hang_up(connection: Any) -> None:
    """Close a connection and those to its jump hosts."""
    while connection is not None and not isinstance(connection, str):
        transport = connection.transport
        if connection.client is not None:
            with suppress(Exception):
                connection.client.close()
        if transport is not None and isinstance(transport.sock, paramiko.ProxyCommand):
            transport.join(5.0)  # it signals the process, too: not once that is reaped
            _reap(transport.sock.process)
        connection = connection.gateway


def _reap(process: subprocess.Popen[bytes]) -> None:
    """See a ProxyCommand's end, which was told to end; paramiko does not."""
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _translated(host: Host, error: BaseException) -> BaseException:
    if isinstance(error, paramiko.BadHostKeyException):
        return AuthError(
            f"HOST KEY CHANGED: {host.name} shows {_fingerprint(error.key)}, "
            f"pinned is {_fingerprint(error.expected_key)}; nothing was sent to it",
            hint="somebody may be in between; if the host was set up anew, pin its new key",
        )
    if isinstance(error, (AuthError, VmUnreachable)):
        return error
    if isinstance(error, paramiko.PasswordRequiredException):
        return AuthError(
            f"the key for host {host.name} has a passphrase", hint="load it into an ssh-agent"
        )
    if "No authentication methods" in str(error):
        return AuthError(
            f"there is no key to log in to host {host.name} with",
            hint="set key_file, or load a key into the ssh-agent of the workers",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return AuthError(
            f"host {host.name} refuses to let us in: {error}",
            hint="check user and key_file, and authorized_keys on the host",
        )
    if isinstance(error, ValueError) or "private key" in str(error):  # a file that is no key
        return AuthError(f"cannot log in to host {host.name}: {error}")
    if isinstance(error, (OSError, EOFError, paramiko.SSHException)):
        return VmUnreachable(f"host {host.name} does not answer: {error or type(error).__name__}")
    return error


def _described(host: Host, timeout_s: float) -> Any:
    """Return the connection, not open yet, with what `~/.ssh/config` says and only pinned keys."""
    config = fabric.Config(lazy=True)
    config.load_ssh_config()
    if host.key_file and not Path(host.key_file).expanduser().is_file():
        raise AuthError(f"there is no key file {host.key_file}", hint="it must be on the workers")
    gateway = None
    for hop in filter(None, host.jump.split(",")):
        gateway = fabric.Connection(hop.strip(), gateway=gateway, config=config.clone())
    connection = fabric.Connection(
        host.address,
        user=host.user or None,
        port=host.port or None,
        gateway=gateway,
        config=config,
    )
    hop, pinned = connection, host.host_key
    while hop is not None and not isinstance(hop, str):
        _prepare(hop, host, pinned, timeout_s)
        hop, pinned = hop.gateway, ""
    return connection


def _transport(*args: Any, **kwargs: Any) -> Any:
    """Return a transport that likes best the ciphers which encrypt and authenticate in one go.

    Its thread ends silently, too, where its way, a session of a jump host, ended before it.
    """
    transport = paramiko.Transport(*args, **kwargs)
    run = transport.run

    def quietly() -> None:
        with suppress(EOFError):  # of closing that session, the last thing it does
            run()

    transport.run = quietly
    options = transport.get_security_options()
    options.ciphers = sorted(options.ciphers, key=lambda name: "-gcm@" not in name)
    return transport


def _prepare(connection: Any, host: Host, pinned: str, timeout_s: float) -> None:
    connection.connect_timeout = timeout_s
    kwargs = connection.connect_kwargs
    kwargs["transport_factory"] = _transport
    for name in ("banner_timeout", "auth_timeout", "channel_timeout"):
        kwargs[name] = timeout_s
    if host.key_file:
        kwargs.update(key_filename=str(Path(host.key_file).expanduser()), look_for_keys=False)
    client = connection.client
    client.set_log_channel(_LOG)
    client.set_missing_host_key_policy(_OnlyPinned())
    keys = client.get_host_keys()
    if pinned:
        port = int(connection.port)
        name = connection.host if port == 22 else f"[{connection.host}]:{port}"
        kind, text = pinned.split()[:2]
        try:
            keys.add(name, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(text)))
        except Exception as error:
            raise AuthError(f"the host_key of host {host.name} is damaged: {error}") from error
        return
    configured = connection.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    files = [host.known_hosts] if host.known_hosts else [*configured, "/etc/ssh/ssh_known_hosts"]
    for file in files:
        try:
            keys.load(str(Path(file).expanduser()))
        except OSError as error:
            if host.known_hosts:
                raise AuthError(f"cannot read known_hosts: {error}") from error
