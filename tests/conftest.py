"""What all tests share: the services they start (see `services.py`) and the databases."""

from __future__ import annotations

from hypothesis import settings

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

# How long an example takes by the clock tells how busy the machine is, and nothing of the example:
# what must be fast has a test of its own.
settings.register_profile("remuda", deadline=None)
settings.register_profile("few", deadline=None, max_examples=20)  # pytest --hypothesis-profile=few
settings.load_profile("remuda")
