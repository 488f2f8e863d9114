"""Signals that reach `remuda acquire` before it has a command to pass them on to."""

from __future__ import annotations

import os
import signal
import threading

import click
import pytest

from remuda.cli.acquire import _Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_one_strikes_only_where_it_can_do_no_harm(number: signal.Signals) -> None:
    with _Signals() as signals:
        os.kill(os.getpid(), number)  # in the middle of a query, say
        assert signals.number == number
        with pytest.raises(click.exceptions.Exit) as caught:
            signals.pause(threading.Event(), 30.0)
        assert caught.value.exit_code == 128 + number


def test_one_ends_the_wait_at_once() -> None:
    with _Signals() as signals:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            signals.pause(threading.Event(), 30.0)
        timer.join()
        os.kill(os.getpid(), signal.SIGTERM)  # while the request is withdrawn
        assert signals.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_none_leaves_the_wait_alone() -> None:
    event = threading.Event()
    event.set()
    with _Signals() as signals:
        signals.pause(event, 30.0)
        signals.act()
