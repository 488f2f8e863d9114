"""SSH connections of this process, by Fabric: one per host as far as possible, shared by sessions.

Only keys that were pinned are believed: a host whose key is unknown, or another one than was
pinned, is refused before anything is said to it. Everything has a deadline.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import paramiko

from remuda.errors import VmUnreachable
from remuda.hosts import Host
from remuda.workers.login import hang_up, log_in

__all__ = ["Connections", "bridge", "connections"]

MAX_SESSIONS = 8  # of the 10 that OpenSSH allows on one connection
IDLE_S = 60.0  # how long a connection nobody uses is kept
PIECE = 1 << 18


class _Link:
    """One SSH connection and how many sessions it has."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.transport: Any = connection.transport
        self.sessions = 0
        self.used_at = time.monotonic()

    @property
    def alive(self) -> bool:
        return bool(self.transport is not None and self.transport.is_active())


class Connections:
    """The connections of one process; safe to use from many threads."""

    def __init__(self) -> None:
        """Connect nowhere yet."""
        self._lock = threading.Lock()
        self._links: dict[Host, list[_Link]] = {}
        self._opening: dict[Host, threading.Lock] = {}

    @contextmanager
    def session(
        self, host: Host, *, timeout_s: float, window_bytes: int | None = None
    ) -> Iterator[Any]:
        """Give a new session on the host, a paramiko channel; it is closed at the end.

        `window_bytes`: how much may come before it is read. Raises VmUnreachable if the host does
        not answer in time, AuthError if it refuses us or shows a key that was not pinned.
        """
        channel, release = self.take(host, timeout_s=timeout_s, window_bytes=window_bytes)
        try:
            yield channel
        finally:
            with suppress(EOFError, OSError, paramiko.SSHException):  # it may be gone already
                channel.close()
            release()

    def take(
        self, host: Host, *, timeout_s: float, window_bytes: int | None = None
    ) -> tuple[Any, Callable[[], None]]:
        """Return a session as `session` does, and what to call once it is closed."""
        key = _key(host)
        deadline, why = time.monotonic() + timeout_s, "opens no session"
        for fresh in (False, False, True):
            link = self._link(key, deadline=deadline, fresh=fresh)
            try:
                left = max(0.1, deadline - time.monotonic())
                channel = link.transport.open_session(window_size=window_bytes, timeout=left)
            except paramiko.ChannelException:  # it has enough sessions, or allows fewer
                self._give_back(link)
                continue
            except (paramiko.SSHException, EOFError, OSError) as error:
                why = f"does not answer: {error or type(error).__name__}"
                hang_up(link.connection)
                self._give_back(link)
                if time.monotonic() > deadline:
                    break
                continue
            return channel, partial(self._give_back, link)
        raise VmUnreachable(f"host {host.name} {why}")

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            links = [link for of_host in self._links.values() for link in of_host]
            self._links.clear()
        for link in links:
            hang_up(link.connection)

    def _give_back(self, link: _Link) -> None:
        with self._lock:
            link.sessions -= 1
            link.used_at = time.monotonic()

    def _link(self, host: Host, *, deadline: float, fresh: bool) -> _Link:
        """Return a connection with room for a session, which is counted already."""
        with self._lock:
            opening = self._opening.setdefault(host, threading.Lock())
        if not opening.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise VmUnreachable(f"host {host.name} does not answer")
        try:
            self._sweep()
            with self._lock:
                for link in () if fresh else self._links.get(host, ()):
                    if link.alive and link.sessions < MAX_SESSIONS:
                        link.sessions += 1
                        return link
            link = _Link(log_in(host, max(0.1, deadline - time.monotonic())))
            link.sessions = 1
            with self._lock:
                self._links.setdefault(host, []).append(link)
            return link
        finally:
            opening.release()

    def _sweep(self) -> None:
        """Close what is dead, and what has been idle for long."""
        old, now = [], time.monotonic()
        with self._lock:
            for host, links in list(self._links.items()):
                for link in list(links):
                    idle = link.sessions <= 0 and now - link.used_at > IDLE_S
                    if idle or not link.alive:
                        links.remove(link)
                        old.append(link)
                if not links:
                    del self._links[host]
        for link in old:
            hang_up(link.connection)


def _key(host: Host) -> Host:
    return Host(**host.way())


def bridge(channel: Any, first: bytes, release: Callable[[], None], name: str) -> socket.socket:
    """Return a socket that is the session's standard input and output, `first` being read first.

    A session of paramiko may block its writer (full window, new keys being exchanged) and its
    reader (which has to grant a new window), so neither may be done by the thread that serves all
    channels: two threads do, one for each direction. Closing the socket closes the session.
    """
    ours, theirs = socket.socketpair()

    def read() -> None:
        try:
            data = first or channel.recv(PIECE)
            while data:
                theirs.sendall(data)
                data = channel.recv(PIECE)
        except (OSError, EOFError, paramiko.SSHException):
            pass
        finally:
            with suppress(OSError):
                theirs.shutdown(socket.SHUT_RDWR)

    def write() -> None:
        reader = threading.Thread(target=read, name=f"{name} in", daemon=True)
        reader.start()
        try:
            while data := theirs.recv(PIECE):
                channel.sendall(data)
        except (OSError, EOFError, paramiko.SSHException):
            pass
        finally:
            with suppress(EOFError, OSError, paramiko.SSHException):  # it may be gone already
                channel.close()
            release()
            reader.join()
            theirs.close()

    threading.Thread(target=write, name=f"{name} out", daemon=True).start()
    return ours


_connections: Connections | None = None
_guard = threading.Lock()
_inherited: list[Connections | None] = []


def connections() -> Connections:
    """Return the connections of this process; a forked child has its own."""
    global _connections
    with _guard:
        if _connections is None:
            _connections = Connections()
        return _connections


def _after_fork() -> None:
    global _connections, _guard
    _inherited.append(_connections)  # kept, for its end would disturb what is the parent's
    _connections, _guard = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
