"""The raw Celery peer: one task, one subprocess; nothing recorded but a byte in a file when done."""

from __future__ import annotations

import os
import subprocess

from celery import Celery

from remuda import broker
from remuda.config import load_settings

settings = load_settings()
broker.register()
app = Celery("celery_peer")
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options=broker.transport_options(
        settings.model_copy(update={"data_dir": settings.data_dir / "peer"})
    ),
    task_ignore_result=True,
    task_default_queue="peer",
)


@app.task  # type: ignore[untyped-decorator]
def run(command: list[str], done: str) -> None:
    """Run `command`; then append a byte to the file `done`."""
    subprocess.run(command, check=True, capture_output=True)
    descriptor = os.open(done, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, b".")
    os.close(descriptor)
