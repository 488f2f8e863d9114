"""Events on the embedded broker: to whoever listens, to no file where nobody does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events import EventReceiver

from remuda.config import load_settings
from remuda.tasks.app import make_app
from remuda.tasks.flower.wire import Wire

EVENTS = [
    {"type": "task-received", "uuid": str(n), "hostname": "v@p", "timestamp": 1.0 + n}
    for n in range(450)
]


@pytest.fixture
def app(tmp_path: Path) -> Celery:
    """An application on a broker of its own."""
    return make_app(load_settings(data_dir=tmp_path / "data", state_dir=tmp_path / "state"))


def messages(folder: Path) -> list[str]:
    """Return the messages that wait in the broker's folder, in whatever queue."""
    return [path.name for path in folder.glob("data/broker/queues/*/*") if path.name[0].isdigit()]


def test_without_a_listener_no_file_is_left(app: Celery, tmp_path: Path) -> None:
    wire = Wire(app)
    for _ in range(20):
        assert wire.send(EVENTS)
    wire.close()
    assert messages(tmp_path) == []


def test_a_listener_gets_all_in_order(app: Celery, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    listens, done = threading.Event(), threading.Event()

    def note(event: dict[str, Any]) -> None:
        heard.append(event)
        if len(heard) == len(EVENTS):
            done.set()

    with app.connection() as connection:
        receiver = EventReceiver(connection, handlers={"*": note}, app=app)

        def listen() -> None:
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                listens.set()
                while not done.is_set():
                    try:
                        own.drain_events(timeout=0.5)
                    except TimeoutError:
                        continue

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert listens.wait(20)
        wire = Wire(app)
        assert wire.send(EVENTS)
        assert done.wait(20)
        thread.join(10)
        wire.close()
    assert [event["uuid"] for event in heard] == [event["uuid"] for event in EVENTS]
    assert heard[0]["timestamp"] == 1.0
    clocks = [event["clock"] for event in heard]
    assert clocks == sorted(clocks)


def test_a_broker_that_is_away_is_let_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda.tasks.flower.wire._PAUSES_S", (3600.0, 3600.0))
    settings = load_settings(
        data_dir=tmp_path / "data", state_dir=tmp_path, broker_url="amqp://u:p@127.0.0.1:1//"
    )
    wire = Wire(make_app(settings))
    tried: list[int] = []
    publish = wire._publish

    def count(events: list[dict[str, Any]]) -> None:
        tried.append(len(events))
        publish(events)

    monkeypatch.setattr(wire, "_publish", count)
    for _ in range(1000):
        assert not wire.send(EVENTS)
    assert len(tried) == 1
    assert wire.send([])
