"""Thousands of jobs that wait for each other, and those that come over the broker."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from remuda import BadInput, JobSpec
from remuda.models import cancel
from remuda.models.database import rows, transact
from remuda.tasks.enqueueing import enqueue
from tests.integration.builders import OWNER
from tests.integration.test_dependencies import _end, _told, assert_settled
from tests.integration.workbench import Workbench
from tests.invariants import DEPENDENCIES


def test_a_chain_of_ten_thousand_settles_at_once(bench: Workbench) -> None:
    bench.pool(vms=0)
    size = 10_000
    with bench.client() as client:
        jobs = client.submit_many(
            (
                JobSpec(["true"], name=f"j{i}", after=[f"j{i - 1}"] if i else ())
                for i in range(size)
            ),
            pool="herd",
        )
        began = time.monotonic()
        with bench.engine.begin() as connection:
            _end(connection, [jobs[0].id])
            assert _told(connection, jobs[1].id) == ("NEW", None, 0)
            _end(connection, [jobs[1].id], "NONZERO", exit_code=3)
        assert time.monotonic() - began < 10
        assert client.reasons("herd") == {"OK": 1, "NONZERO": 1, "DEPENDENCY": size - 2}
        assert jobs[-1].message == f"job {jobs[1].id} 'j1' ended NONZERO (exit code 3)"


def test_ten_thousand_in_layers(bench: Workbench) -> None:
    bench.pool(vms=0)
    wide = 100
    with bench.client() as client:
        jobs = client.submit_many(
            (
                JobSpec(
                    ["true"],
                    name=f"{layer}-{i}",
                    after=[f"{layer - 1}-{(i + k) % wide}" for k in range(3)] if layer else (),
                )
                for layer in range(100)
                for i in range(wide)
            ),
            pool="herd",
        )
        ids = [job.id for job in jobs]
        began = time.monotonic()
        with bench.engine.begin() as connection:
            for layer in range(50):
                _end(connection, ids[layer * wide : (layer + 1) * wide])
            assert len(cancel.request_cancel(connection, ids[5000:5050])) == 50
        assert time.monotonic() - began < 20
        reasons = client.reasons("herd")
        assert (reasons["OK"], reasons["CANCELLED"]) == (5000, 50)
    with bench.engine.begin() as connection:
        for what, query in DEPENDENCIES.items():
            assert not rows(connection, query), what


def test_enqueued_jobs_wait_for_each_other_too(bench: Workbench) -> None:
    bench.pool(vms=0)
    runtime: Any = SimpleNamespace(
        settings=bench.settings, transact=lambda work: transact(bench.engine, work)
    )
    specs: list[dict[str, Any]] = [
        {"command": "fit", "after": ["prep"], "name": "fit", "gpus": 0, "tags": ["night"]},
        {"command": ["prep"], "name": "prep", "workdir": "w", "prologue": ["setup"]},
    ]

    def send(specs: list[dict[str, Any]], key: str) -> list[int]:
        return enqueue(runtime, specs, pool="herd", owner=OWNER, key=key)

    fit, prep = send(specs, "k")
    assert send(specs, "k") == [fit, prep]  # a repeated message
    [last] = send([{"command": "x", "after": [{"target": fit, "condition": "end"}]}], "l")
    with pytest.raises(BadInput, match="circle"):
        send([{**specs[0]}, {**specs[1], "after": "fit"}], "m")
    with bench.engine.begin() as connection:
        assert _told(connection, fit) == ("NEW", None, 1)
        _end(connection, [prep], "NONZERO", exit_code=2)
        assert _told(connection, fit)[1] == "DEPENDENCY"
        assert _told(connection, last) == ("NEW", None, 0)
        assert_settled(connection)
