"""Beat's scheduler: Celery's own, but it ends without a word to the broker."""

from __future__ import annotations

from celery import beat


class Scheduler(beat.Scheduler):  # type: ignore[misc]
    """Keeps its schedule in memory: two beats share no file, and sweeps need no memory.

    Celery 5.7 closes the scheduler from within the signal handler (`Beat.install_sync_handler`),
    wherever beat was. In the middle of a message to RabbitMQ its goodbye would read from the very
    connection that is being read, and wait for ever for an answer that was taken already. What
    beat sends is only a wake-up, so it just hangs up, as one that was killed does.
    """

    def close(self) -> None:
        """Do nothing: the process ends next, and its connections with it."""
