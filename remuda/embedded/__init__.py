"""The one-machine default: a PostgreSQL server, a worker and a beat of our own."""

from remuda.embedded.launcher import client_binary
from remuda.embedded.postgres import (
    ServerStatus,
    ensure_server,
    server_status,
    server_url,
    stop_server,
)
from remuda.embedded.processes import ProcessStatus
from remuda.embedded.processes import start as start_processes
from remuda.embedded.processes import status as process_status
from remuda.embedded.processes import stop as stop_processes

__all__ = [
    "ProcessStatus",
    "ServerStatus",
    "client_binary",
    "ensure_server",
    "process_status",
    "server_status",
    "server_url",
    "start_processes",
    "stop_processes",
    "stop_server",
]
