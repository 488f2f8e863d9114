"""Structured logging: one line an event, with the ids of what it is about; an idle system is silent."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from remuda.config import Settings

# Celery tells of every message at INFO; that is debugging, not news.
_CHATTY = ("celery", "kombu", "amqp", "paramiko", "fsspec", "alembic")


def configure(settings: Settings) -> None:
    """Send Remuda's log to stderr at the level set, and others' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s",
                rename_fields={"asctime": "at", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("remuda").setLevel(settings.log_level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(
            logging.DEBUG if settings.log_level == "DEBUG" else logging.WARNING
        )


def transition(kind: str, subject_id: int, state: str, **ids: object) -> None:
    """Log that `kind` `subject_id` came to `state`.

    VMs and pools at INFO; jobs and attempts, thousands a second at times, at DEBUG.
    """
    level = logging.INFO if kind in ("vm", "pool") else logging.DEBUG
    if _transitions.isEnabledFor(level):
        fields = {f"{kind}_id": subject_id, "state": state, **ids}
        told = " ".join(f"{k}={v}" for k, v in ids.items())
        _transitions.log(level, f"{kind} {subject_id} {state} {told}".rstrip(), extra=fields)


def tells_jobs() -> bool:
    """Return whether transitions of jobs and attempts are logged; finding their ids costs a query."""
    return _transitions.isEnabledFor(logging.DEBUG)


_transitions = logging.getLogger("remuda.transitions")
