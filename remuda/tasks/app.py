"""The Celery application: brokers, queues, routes, beat, and what starts with a worker.

Messages carry ids only, as JSON; each is acknowledged after its task, which is short and can be
repeated. No results are kept: PostgreSQL is what is true.
"""

from __future__ import annotations

import importlib
from typing import Any

import click
from celery import Celery
from celery.signals import beat_init, celeryd_init, setup_logging
from kombu.entity import Queue

from remuda import broker
from remuda.config import Settings, load_settings
from remuda.tasks import logs
from remuda.tasks.names import CONTROL, JOBS, PERIODS, QUEUE_OF, VMS

# What only a worker needs: beat, remote control and Flower start in half the time without.
TASKS = (
    "remuda.tasks.jobs",
    "remuda.tasks.vms",
    "remuda.tasks.control",
    "remuda.tasks.flower.commands",
)
STEPS = ("remuda.tasks.watching:WatcherStep", "remuda.tasks.serving:MetricsStep")


def configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration for these settings."""
    url = settings.broker
    config: dict[str, Any] = {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_timeout": 5,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "worker_concurrency": settings.worker_concurrency,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_soft_shutdown_timeout": 0,
        "task_default_queue": CONTROL,
        "task_queues": _queues(),
        "task_routes": {task: {"queue": queue} for task, queue in QUEUE_OF.items()},
        "beat_scheduler": "remuda.tasks.beating:Scheduler",
        "beat_schedule": {
            task: {"task": task, "schedule": period, "options": {"expires": max(10, 3 * period)}}
            for task, period in PERIODS.items()
        },
        "timezone": "UTC",
        "enable_utc": True,
    }
    if url.startswith("filesystem:"):
        config["broker_transport_options"] = broker.transport_options(settings)
    elif url.startswith(("amqp:", "amqps:", "pyamqp:")):
        config["broker_transport_options"] = {"confirm_publish": True}
        config["task_default_queue_type"] = "quorum"
        config["worker_detect_quorum_queues"] = True
        config["task_queues"] = _queues({"x-queue-type": "quorum"})
    return config


def _queues(arguments: dict[str, str] | None = None) -> list[Queue]:
    return [
        Queue(name, routing_key=name, queue_arguments=arguments)  # type: ignore[no-untyped-call]
        for name in (CONTROL, JOBS, VMS)
    ]


def make_app(settings: Settings) -> Celery:
    """Return a Celery application for `settings`."""
    broker.register()
    made = Celery("remuda")
    made.conf.update(configuration(settings))
    made.steps["worker"].update(STEPS)
    made.user_options["worker"].add(
        click.Option(
            ["--metrics"], metavar="HOST:PORT", help="Serve metrics of this machine's workers."
        )
    )
    return made


app = make_app(load_settings())
app.set_default()  # for the threads that send messages


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    logs.configure(load_settings())


@beat_init.connect  # type: ignore[untyped-decorator]
def _quiet_beat(**_: Any) -> None:
    logs.configure(load_settings())


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _load_tasks(**_: Any) -> None:
    for module in TASKS:
        importlib.import_module(module)
