"""What the doctor finds in the database: pools in trouble, keys that others can read."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from remuda.cli import doctor, doctor_more, health, processes
from remuda.cli.app import root
from remuda.models import machines, vm_life
from remuda.models.states import VmState
from tests.integration.builders import make_vms
from tests.integration.workbench import Workbench


def static(*hosts: dict[str, Any]) -> dict[str, Any]:
    return {"settings": {"hosts": list(hosts)}}


def test_a_pool_that_pauses_is_told(bench: Workbench) -> None:
    pool = bench.pool("sim", vms=0)
    assert doctor_more.pools(bench.engine) == ("ok", "1 open pool, none in trouble", "")
    with bench.engine.begin() as connection:
        connection.execute(
            text(
                """UPDATE pools SET paused_until = now() + interval '1 minute',
                     message = 'the quota is used up' WHERE id = :id"""
            ),
            {"id": pool},
        )
    status, detail, advice = doctor_more.pools(bench.engine)
    assert (status, detail) == ("warn", "sim: the quota is used up")
    assert "pool show" in advice


def test_vms_that_cannot_be_ended_are_told(bench: Workbench) -> None:
    pool = bench.pool("sim", vms=0)
    with bench.engine.begin() as connection:
        vms = make_vms(connection, pool, 8)
    assert doctor_more.unended(bench.engine) == ("ok", "all end that are to end", "")
    with bench.engine.begin() as connection:
        names = connection.scalars(text("SELECT name FROM vms ORDER BY id")).all()
        connection.execute(text("UPDATE vms SET error = 'it burns' WHERE id = :vm"), {"vm": vms[0]})
        for vm in vms[:2]:
            vm_life.move_vm(connection, vm, VmState.STOPPING)
            machines.note_unended(connection, vm, "cmd_delete ended with exit code 1")
        connection.execute(text("UPDATE vms SET state_changed_at = now() - interval '2 hours'"))
    status, detail, advice = doctor_more.unended(bench.engine)
    why = "stopping for 2h: cmd_delete ended with exit code 1"
    assert (status, detail) == (
        "warn",
        f"2 VMs cannot be ended: {names[0]}, {why}; {names[1]}, {why}",
    )
    assert "vm show" in advice
    with bench.engine.begin() as connection:
        for vm in vms[2:]:
            vm_life.move_vm(connection, vm, VmState.STOPPING)
            machines.note_unended(connection, vm, "no")
    assert doctor_more.unended(bench.engine).detail.endswith("; and 3 more")
    with bench.engine.begin() as connection:
        for vm in vms:
            vm_life.move_vm(connection, vm, VmState.HALTED)
    assert doctor_more.unended(bench.engine).status == "ok"


def test_the_doctor_looks_for_vms_that_cannot_be_ended(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = doctor_more.Finding("warn", "1 VM cannot be ended")
    monkeypatch.setattr(doctor_more, "unended", lambda _: finding)
    monkeypatch.setattr(health, "database", lambda _: nullcontext(bench.engine))
    found = {check.name: check for check in doctor._database(bench.settings, providers=False)}
    assert (found["VMs"].status, found["VMs"].detail) == finding[:2]


def test_keys_are_private_or_elsewhere(bench: Workbench, tmp_path: Path) -> None:
    assert doctor_more.keys(bench.engine)[:2] == ("ok", "no pool names a key file")
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    host = {"address": "h", "host_key": "ssh-ed25519 AAAA"}
    bench.pool("here", vms=0, **static({**host, "key_file": str(key)}))
    bench.pool("there", vms=0, **static({**host, "key_file": "/none/key"}))
    status, detail, _ = doctor_more.keys(bench.engine)
    assert (status, detail) == (
        "ok",
        "1 key file here, private; not on this machine: /none/key (there)",
    )
    key.chmod(0o640)
    status, detail, advice = doctor_more.keys(bench.engine)
    assert (status, detail, advice) == ("fail", f"others can read {key} (here)", "chmod 600")


def test_hosts_without_a_pinned_key_are_told(bench: Workbench) -> None:
    bench.pool("loose", vms=0, **static({"address": "h"}, {"address": "i", "host_key": "x"}))
    assert doctor_more.keys(bench.engine)[:2] == ("warn", "hosts without a pinned key in loose")


def test_providers_are_asked(bench: Workbench) -> None:
    bench.pool("sim", vms=0)
    ((kind, finding),) = doctor_more.providers(bench.engine, bench.settings)
    assert (kind, finding.status) == ("local", "ok")
    assert finding.detail.startswith("answers: 0 VMs of pool ")


def test_a_provider_that_cannot_be_asked_is_told(bench: Workbench) -> None:
    bench.pool("sim", vms=0)
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE pools SET provider = 'nonesuch'"))
    ((kind, finding),) = doctor_more.providers(bench.engine, bench.settings)
    assert (kind, finding.status) == ("nonesuch", "fail")


@pytest.mark.parametrize(
    ("served", "status"),
    [
        ({"w1": {"control", "jobs"}, "w2": {"vms"}}, "ok"),
        ({"w1": {"control", "jobs"}}, "fail"),
        ({}, "fail"),
    ],
)
def test_a_queue_that_nobody_serves_is_told(
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    served: dict[str, set[str]],
    status: str,
) -> None:
    sizes = dict.fromkeys(("control", "jobs", "vms"), 3)
    monkeypatch.setattr(health, "queue_sizes", lambda *_: sizes)
    found = doctor_more.queues(bench.settings, served)
    assert found.status == status
    assert "jobs 3" in found.detail
    assert found.status == "ok" or "vms" in found.advice
    sizes["jobs"] = 10_000
    assert doctor_more.queues(bench.settings, served).status == (
        "warn" if status == "ok" else "fail"
    )


def test_a_worker_of_another_release_refuses_to_start(
    bench: Workbench, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []
    monkeypatch.setenv("REMUDA_DATABASE_URL", database_url)
    monkeypatch.setattr(processes, "become", lambda *words: became.append(words[0]))
    assert CliRunner().invoke(root, ["worker"]).exit_code == 0
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    refused = CliRunner().invoke(root, ["worker"])
    assert refused.exit_code == 1
    assert "remuda db upgrade" in refused.stderr
    monkeypatch.setenv("REMUDA_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    waits = CliRunner().invoke(root, ["worker"])
    assert (waits.exit_code, "waits for it" in waits.stderr) == (0, True)
    assert became == ["worker", "worker"]


def test_secrets_are_readable_here(bench: Workbench) -> None:
    from remuda.keyring import KeyRing

    assert doctor_more.secrets(bench.engine, bench.settings) == ("ok", "none stored", "")
    ring = KeyRing(bench.settings)
    ring.create()
    with bench.client() as client:
        client.put_secret("TOKEN", "x")
    told = doctor_more.secrets(bench.engine, bench.settings)
    assert told[:2] == ("ok", "1 secret, all readable here")
    ring.path.unlink()
    ring.create()
    status, detail, advice = doctor_more.secrets(bench.engine, bench.settings)
    assert (status, "not here" in detail) == ("fail", True)
    assert "key ring" in advice
