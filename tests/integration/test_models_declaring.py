"""What is declared of VMs: guarded transitions, heartbeats with their orders, images."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from remuda.errors import BadInput, IllegalTransition, InstanceNotFound, NotFound, Refused
from remuda.models import declaring, images, vm_life
from remuda.models.database import rows, transact
from remuda.models.states import VmState
from remuda.tasks import cancelling, messages
from remuda.tasks.runtime import Runtime
from tests.integration.builders import (
    assert_sound,
    make_pool,
    make_vms,
    path,
    reach_vm,
    row,
    running_job,
    state,
)

Declare = Callable[[Connection, int], Any]
DECLARE: dict[str, tuple[Declare, set[VmState]]] = {
    "submitted": (
        lambda c, vm: declaring.declare_submitted(
            c, vm, provider_id="x", private_ip="10.0.0.9", address={"home": "/x"}
        ),
        {VmState.NEW},
    ),
    "running": (
        lambda c, vm: declaring.declare_running(c, vm, public_ip="10.0.0.9"),
        {VmState.SUBMITTED, VmState.CONTEXTUALIZING, VmState.STALLED},
    ),
    "stopping": (
        declaring.declare_stopping,
        set(VmState) - {VmState.STOPPING, VmState.HALTED},
    ),
    "halted": (declaring.declare_halted, {VmState.STOPPING}),
    "provider_id": (
        lambda c, vm: declaring.set_provider_id(c, vm, "other"),
        set(),
    ),
}


def test_a_life_as_it_is_declared(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        vm = declaring.insert_vm(connection, pool)
        with pytest.raises(BadInput, match="no provider's id"):
            declaring.declare_submitted(connection, vm)
        declaring.set_provider_id(connection, vm, "i-1")
        declaring.set_provider_id(connection, vm, "i-1")
        declaring.declare_submitted(connection, vm, private_ip="::ffff:10.1.2.3")
        declaring.declare_running(connection, vm, public_ip="2001:DB8::1")
        found = row(connection, "vms", vm)
        assert (found["provider_id"], found["private_ip"], found["public_ip"]) == (
            "i-1",
            "10.1.2.3",
            "2001:db8::1",
        )
        assert state(connection, "image", found["image_id"]) == "VALIDATED"
        declaring.declare_stopping(connection, vm)
        declaring.declare_halted(connection, vm)
        assert path(connection, "vm", vm) == "NEW SUBMITTED RUNNING STOPPING HALTED"
        assert_sound(connection)


@pytest.mark.parametrize("what", DECLARE)
def test_a_refused_declaration_changes_nothing(engine: Engine, what: str) -> None:
    declare, allowed = DECLARE[what]
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), len(VmState), state=VmState.NEW)
        for vm, found in zip(made, VmState, strict=True):
            reach_vm(connection, vm, found)
            before = row(connection, "vms", vm)
            if found in allowed:
                declare(connection, vm)
                assert state(connection, "vm", vm) != found
            else:
                with pytest.raises(IllegalTransition, match=found):
                    declare(connection, vm)
                assert row(connection, "vms", vm) == before


def test_an_ip_that_is_none_is_refused(engine: Engine) -> None:
    bad: list[Any] = ["", "1.2.3", "1.2.3.4/8", "host", "10.0.0.1\0", 7, "::ffff:1.2.3.400"]
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection), state=VmState.SUBMITTED)
        before = row(connection, "vms", vm)
        for ip in [*bad, "1" * 10_000_000]:
            with pytest.raises(BadInput, match="not an IP address") as refused:
                declaring.declare_running(connection, vm, private_ip=ip)
            assert len(str(refused.value)) < 200
            assert row(connection, "vms", vm) == before


def test_declarations_of_no_vm(engine: Engine) -> None:
    with engine.begin() as connection:
        for declare, _ in DECLARE.values():
            with pytest.raises(InstanceNotFound, match="12345"):
                declare(connection, 12345)
        with pytest.raises(InstanceNotFound):
            declaring.heartbeat(connection, 12345, load=0, jobs=0)
        with pytest.raises(NotFound):
            declaring.insert_vm(connection, 12345)
        with pytest.raises(BadInput):
            declaring.set_provider_id(connection, 1, "a\0b")


def test_a_heartbeat_is_recorded_and_answered(engine: Engine) -> None:
    orders = {
        VmState.SUBMITTED: "ok",
        VmState.STALLED: "ok",
        VmState.STOPPING: "stop",
        VmState.HALTED: "halt",
        VmState.RUNNING: "ok",
    }
    given: dict[str, Any] = {
        "load": 0.5,
        "transferred_files": 3,
        "transferred_bytes": 1 << 40,
        "uptime_s": 9.5,
    }
    with engine.begin() as connection:
        made = make_vms(connection, make_pool(connection), len(orders), state=VmState.NEW)
        for vm, (found, order) in zip(made, orders.items(), strict=True):
            reach_vm(connection, vm, found)
            connection.execute(text("UPDATE vms SET heartbeat_at = now() - interval '1 hour'"))
            assert declaring.heartbeat(connection, vm, jobs=2, cores=8, **given) == order
            [beat] = rows(connection, "SELECT * FROM heartbeats WHERE vm_id = :vm", vm=vm)
            assert {name: beat[name] for name in given} == given
            assert (beat["state"], beat["running_jobs"], beat["cores"]) == (found, 2, 8)
            after = row(connection, "vms", vm)
            assert {name: after[name] for name in given} == given
            assert after["heartbeat_at"] == connection.scalar(text("SELECT now()"))
            assert after["state"] == ("RUNNING" if found is VmState.STALLED else found)
            image = state(connection, "image", after["image_id"])
            assert image == ("VALIDATED" if found is VmState.RUNNING else "NEW")


def test_a_late_heartbeat_of_a_replaced_vm_revives_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        vm_life.move_vm(connection, vm, VmState.STALLED)
        connection.execute(text("UPDATE vms SET replaced = true"))
        assert declaring.heartbeat(connection, vm, load=0, jobs=0) == "ok"
        assert state(connection, "vm", vm) == "STALLED"


def test_a_heartbeat_that_makes_no_sense(engine: Engine) -> None:
    bad: list[tuple[str, Any]] = [
        ("load", -1),
        ("load", float("nan")),
        ("load", float("inf")),
        ("load", "1"),
        ("jobs", -1),
        ("jobs", 1.5),
        ("transferred_bytes", 2**63),
        ("transferred_files", True),
        ("uptime_s", None),
    ]
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        for name, value in bad:
            with pytest.raises(BadInput, match=name):
                declaring.heartbeat(connection, vm, **{"load": 0, "jobs": 0, name: value})
        assert rows(connection, "SELECT * FROM heartbeats") == []


def test_the_history_of_heartbeats_is_append_only(engine: Engine) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, make_pool(connection))
        declaring.heartbeat(connection, vm, load=0, jobs=0)
    with pytest.raises(IntegrityError, match="never changed"), engine.begin() as connection:
        connection.execute(text("UPDATE heartbeats SET load = 1"))


@pytest.mark.parametrize(("found", "order"), [("STOPPING", "stop"), ("HALTED", "halt")])
def test_a_vm_that_should_not_live_is_told_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, found: str, order: Any
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(messages, "terminate_vm", lambda ids: sent.append(("terminate", *ids)))
    channel = SimpleNamespace(send=lambda what: sent.append(what))
    runtime = SimpleNamespace(
        transact=lambda work: transact(engine, work),
        links=SimpleNamespace(present=lambda _: channel),
    )
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        job, _ = running_job(connection, pool)
        vm_life.move_vm(connection, vm, VmState.STOPPING)
    if found == "HALTED":
        cancelling.end_vm(cast(Runtime, runtime), vm, "stop")
        with engine.begin() as connection:
            vm_life.move_vm(connection, vm, VmState.HALTED)
        sent.clear()
    cancelling.end_vm(cast(Runtime, runtime), vm, order)
    assert sent == ([("terminate", vm)] if order == "stop" else []) + ["stop"]
    with engine.begin() as connection:
        assert state(connection, "job", job) == "NEW"  # lost, and to run elsewhere
        assert_sound(connection)


def test_images(engine: Engine) -> None:
    with engine.begin() as connection:
        image = images.check_image(connection, "local", "debian")
        assert images.check_image(connection, "local", "debian") == image
        assert images.find_image(connection, "debian") == images.find_image(connection, image)
        pool = make_pool(connection)
        connection.execute(text("UPDATE pools SET image_id = :i"), {"i": image})
        vm = declaring.insert_vm(connection, pool)
        with pytest.raises(IllegalTransition, match="is NEW"):
            images.reset(connection, image)
        images.mark_error(connection, image, "its kernel panics")
        with pytest.raises(Refused, match="its kernel panics"):
            images.check_image(connection, "local", "debian")
        with pytest.raises(Refused, match="its kernel panics"):
            declaring.insert_vm(connection, pool)
        with pytest.raises(IllegalTransition, match="is ERROR"):
            images.mark_error(connection, image, "again")
        assert row(connection, "images", image)["message"] == "its kernel panics"
        images.validate(connection, vm)  # a late word of an old VM does not mend it
        assert state(connection, "image", image) == "ERROR"
        images.reset(connection, image)
        assert row(connection, "images", image)["message"] is None
        images.validate(connection, vm)
        images.validate(connection, vm)
        assert row(connection, "images", image)["validated_at"] is not None
        assert path(connection, "image", image) == "NEW ERROR NEW VALIDATED"


def test_images_that_are_none(engine: Engine) -> None:
    with engine.begin() as connection:
        images.check_image(connection, "local", "twin")
        images.check_image(connection, "other", "twin")
        with pytest.raises(NotFound, match="several"):
            images.find_image(connection, "twin")
        for call in (images.find_image, images.reset):
            with pytest.raises(NotFound):
                call(connection, 12345)
        with pytest.raises(NotFound):
            images.find_image(connection, "none")
        for name in ("", "a\0b", "x" * 10_000_000, 7):
            with pytest.raises(BadInput):
                images.check_image(connection, "local", cast(Any, name))
        with pytest.raises(BadInput):
            images.mark_error(connection, 1, "")
