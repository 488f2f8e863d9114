"""What all tests share: the services they start (see `services.py`) and the databases."""

from __future__ import annotations

from tests.database import database_url, empty_database_url, engine, server_url, template
from tests.services import rabbitmq_url, redis_url

__all__ = [
    "database_url",
    "empty_database_url",
    "engine",
    "rabbitmq_url",
    "redis_url",
    "server_url",
    "template",
]
