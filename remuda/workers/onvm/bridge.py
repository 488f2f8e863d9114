"""`attach`: standard input and output become a connection to a home's runner.

Done at every connection to a VM, so nothing is imported that it does not need.
"""

from __future__ import annotations

import os
import select
import socket
import sys


def at_socket(home: str, verb: str, timeout: float | None = None) -> socket.socket:
    """Listen on or connect to the home's socket, however long its path is."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        path = f"/proc/self/fd/{folder}/runner.sock"
        if verb == "listen":
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            sock.bind(path)
            sock.listen(128)
        else:
            sock.connect(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


def attach(home: str) -> None:
    """Bridge standard input and output to the runner's socket, until either side ends."""
    sock = at_socket(home, "connect")
    while True:
        readable, _, _ = select.select([0, sock.fileno()], [], [])
        if sock.fileno() in readable:
            data = sock.recv(1 << 16)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]
        if 0 in readable:
            data = os.read(0, 1 << 16)
            if not data:
                return
            sock.sendall(data)


def main() -> int:
    """Attach to the home of the command line `attach --home HOME`; 1 and a line if that fails."""
    try:
        attach(os.path.realpath(sys.argv[3]))
    except OSError as error:
        sys.stderr.write(f"runner: {error}\n")
        return 1
    return 0
