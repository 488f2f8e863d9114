"""The command provider: the contract, and what is its own: hooks, numbers, the book."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from remuda.config import Settings
from remuda.errors import (
    BadInput,
    ProviderError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hooks import hooks_of
from remuda.workers.providers import Provider, get_provider
from remuda.workers.providers.command.output import names_of, told_by
from tests.contract.command_place import DELETE, LIST, NEW, hooks, seen, settings, spec, yard
from tests.contract.strays import Canary, Strays

__all__ = [
    "hooks",
    "settings",
    "yard",
]


class TestContract(Strays):
    kind = "command"

    @pytest.fixture
    def pool_settings(self, hooks: dict[str, Any]) -> dict[str, Any]:
        return hooks

    @pytest.fixture
    def provider(
        self, settings: Settings, pool_settings: dict[str, Any], yard: Path
    ) -> Iterator[Provider]:
        provider = get_provider("command", settings, pool_settings)
        yield provider
        for vm in provider.list(""):
            provider.terminate(vm.provider_id)
        assert list(yard.iterdir()) == []


class TestContractWithList(TestContract):
    @pytest.fixture
    def pool_settings(self, hooks: dict[str, Any]) -> dict[str, Any]:
        return {**hooks, "cmd_list": LIST, "cmd_livecheck": "true", "cmd_release": "true"}

    @pytest.fixture
    def canary(self, provider: Provider, yard: Path) -> Iterator[Canary]:
        """Give one that is called as another installation, with the same hooks, calls its own."""
        theirs = yard / "builders-7-0123456789abcd"
        theirs.mkdir()
        (theirs / "disk").write_text("precious")
        yield "somebody-elses", lambda: [path.read_text() for path in yard.glob("*/disk")]
        (theirs / "disk").unlink()
        theirs.rmdir()


class TestManyWorkers:
    def test_one_intent_is_one_vm(
        self, settings: Settings, hooks: dict[str, Any], yard: Path, database_url: str
    ) -> None:
        """Three processes at once, of hooks that know no tokens: `cmd_new` runs once."""
        told = {**hooks, "cmd_new": f'echo run >> "$LOG/runs"; sleep 0.3; {NEW}'}
        command = [sys.executable, "-m", "tests.contract.command_place", json.dumps(told)]
        environment = {**os.environ, "REMUDA_DATABASE_URL": database_url}
        workers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(3)
        ]
        ids = {worker.communicate(timeout=60)[0] for worker in workers}
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert ids == {path.name for path in yard.iterdir()}
        assert (yard.parent / "runs").read_text() == "run\n"
        provider = get_provider("command", settings, told)
        assert {vm.provider_id for vm in provider.list("sim")} == ids


class TestNumbers:
    def test_the_smallest_that_is_free(self, settings: Settings, hooks: dict[str, Any]) -> None:
        provider = get_provider("command", settings, {**hooks, "named_counters": ["port", "disk"]})
        other = get_provider("command", settings, {**hooks, "named_counters": ["port"]})
        yard = Path(hooks["environment"]["YARD"])
        ids = [provider.spawn(spec(), str(n)) for n in range(3)]
        ids.append(other.spawn(spec(pool="two"), "two"))
        told = [seen(yard, vm_id) for vm_id in ids]
        assert [env["REMUDA_VM_NUMBER"] for env in told] == ["0", "1", "2", "0"]
        assert [env["REMUDA_COUNTER_port"] for env in told] == ["0", "1", "2", "3"]
        provider.terminate(ids[1])
        provider.terminate(ids[0])
        again = seen(yard, provider.spawn(spec(), "again"))
        assert again["REMUDA_VM_NUMBER"] == again["RESALLOC_ID_IN_POOL"] == "0"
        assert again["RESALLOC_NAMED_COUNTER_port"] == again["REMUDA_COUNTER_disk"] == "0"

    def test_they_are_right_with_many_at_once(
        self, settings: Settings, hooks: dict[str, Any], engine: Engine
    ) -> None:
        quick = {**hooks, "cmd_new": "true", "cmd_delete": "true", "named_counters": ["port"]}
        provider = get_provider("command", settings, quick)

        def live(n: int) -> None:
            provider.terminate(provider.spawn(spec(), f"short-{n}"))
            provider.spawn(spec(), f"long-{n}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(live, range(12)))
        with engine.connect() as connection:
            numbers = connection.scalars(text("SELECT number FROM command_vms")).all()
            values = connection.scalars(text("SELECT value FROM command_counters")).all()
        assert len(set(numbers)) == len(set(values)) == 12
        assert max(numbers) < 20


class TestNothingIsForgotten:
    def test_a_failing_delete_is_retried_until_confirmed(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        told = {**hooks, "cmd_delete": f'[ -e "$LOG/mended" ] && {DELETE}'}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        for _ in range(3):
            with pytest.raises(TransientProviderError, match="cmd_delete"):
                provider.terminate(vm_id)
            assert provider.describe([vm_id])[vm_id].state == "stopped"
        (yard.parent / "mended").touch()
        provider.terminate(vm_id)
        assert provider.describe([vm_id]) == {}
        assert list(yard.iterdir()) == []

    def test_a_delete_that_lies_is_caught_by_the_list(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        told = {**hooks, "cmd_delete": "true", "cmd_list": LIST}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        with pytest.raises(TransientProviderError, match="still names"):
            provider.terminate(vm_id)
        (yard / vm_id / "env").unlink()
        (yard / vm_id).rmdir()
        provider.terminate(vm_id)
        assert provider.list("") == []

    def test_orphans_are_found_and_ended_and_others_left_alone(
        self, settings: Settings, hooks: dict[str, Any], yard: Path, engine: Engine
    ) -> None:
        provider = get_provider("command", settings, {**hooks, "cmd_list": LIST})
        vm_id = provider.spawn(spec(), "1")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM command_vms"))
        (yard / "somebody-elses").mkdir()
        (yard / "vm-1-0123456789abcd").mkdir()  # of another pool, or another installation
        found = {vm.provider_id: vm.token for vm in provider.list("sim")}
        assert set(found) == {vm_id}
        assert len(found[vm_id]) == 36
        every = {vm.provider_id: (vm.token, vm.pool) for vm in provider.list("")}
        assert every == dict.fromkeys([vm_id, "somebody-elses", "vm-1-0123456789abcd"], ("", ""))
        assert found[vm_id] == {vm.provider_id: vm.token for vm in provider.list("sim")}[vm_id]
        provider.terminate("somebody-elses")
        provider.terminate(vm_id)
        left = sorted(path.name for path in yard.iterdir())
        assert left == ["somebody-elses", "vm-1-0123456789abcd"]

    def test_ten_thousand_unknown_vms(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        mark = hashlib.sha256(b"sim").hexdigest()[:6]
        told = {**hooks, "cmd_list": f"seq -f 'x-%08.0f{mark}' 10000"}
        found = get_provider("command", settings, told).list("sim")
        assert len({vm.token for vm in found}) == 10_000

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("printf 'a-1\\nb'", "breaks off"),
            ("echo ../../etc", "no name"),
            ("echo 'a;rm'", "no name"),
            ("echo a; exit 1", "exit code 1"),
        ],
    )
    def test_half_a_list_is_none(
        self, settings: Settings, hooks: dict[str, Any], line: str, match: str
    ) -> None:
        provider = get_provider("command", settings, {**hooks, "cmd_list": line})
        provider.spawn(spec(), "1")
        with pytest.raises(ProviderError, match=match):
            provider.list("sim")

    def test_a_worker_that_died_in_a_hook_is_followed_by_another(
        self, settings: Settings, hooks: dict[str, Any], yard: Path, engine: Engine
    ) -> None:
        provider = get_provider("command", settings, hooks)
        with pytest.raises(TransientProviderError):
            get_provider("command", settings, {**hooks, "cmd_new": "false"}).spawn(spec(), "1")
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE command_vms SET held_by = 'dead', held_until = now() + interval '1 s'")
            )
        vm_id = provider.spawn(spec(), "1")
        assert provider.describe([vm_id])[vm_id].state == "running"
        provider.terminate(vm_id)
        assert list(yard.iterdir()) == []


class TestChecks:
    def test_a_livecheck_that_fails_or_hangs_is_the_vms(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        told = {**hooks, "cmd_livecheck": 'test -d "$YARD/$REMUDA_PROVIDER_ID"'}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        found = provider.describe([vm_id])[vm_id]
        provider.livecheck(vm_id, found)
        (yard / vm_id / "env").unlink()
        (yard / vm_id).rmdir()
        with pytest.raises(VmUnreachable, match="cmd_livecheck ended with exit code 1"):
            provider.livecheck(vm_id, found)
        hung = {**hooks, "cmd_livecheck": "sleep 60", "livecheck_timeout_s": 0.2}
        with pytest.raises(VmUnreachable, match=r"did not end in 0.2 s"):
            get_provider("command", settings, hung).livecheck(vm_id, found)

    def test_a_release_that_fails_says_so(self, settings: Settings, hooks: dict[str, Any]) -> None:
        provider = get_provider("command", settings, {**hooks, "cmd_release": "exit 3"})
        vm_id = provider.spawn(spec(), "1")
        with pytest.raises(TransientProviderError, match="cmd_release ended with exit code 3"):
            provider.release(vm_id)


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({}, "cmd_new is missing"),
            ({"cmd_new": "x"}, "cmd_delete is missing"),
            ({"cmd_new": 1}, "cmd_new must be a line"),
            ({"cmd_new": ["x", 1]}, r"cmd_new\[1\]"),
            ({"cmd_new": "a\0"}, "NUL"),
            ({"cmd_neu": "x"}, "no setting cmd_neu"),
            ({"new_timeout_s": 0}, "new_timeout_s"),
            ({"new_timeout_s": float("inf")}, "new_timeout_s"),
            ({"named_counters": "ports"}, "named_counters"),
            ({"named_counters": ["a b"]}, "named_counters"),
            ({"named_counters": ["a", "a"]}, "twice"),
            ({"environment": {"REMUDA_X": "1"}}, "REMUDA_X"),
            ({"environment": {"A=B": "1"}}, "A=B"),
            ({"environment": {"A": 1}}, "environment.A"),
            ({"ssh": {"address": "h"}}, "ssh must be a mapping"),
            ({"ssh": {"host_key": "x"}}, "host_key"),
        ],
    )
    def test_bad_ones_are_told(self, given: Mapping[str, Any], match: str) -> None:
        bare = given in ({}, {"cmd_new": "x"})
        whole = {} if bare else {"cmd_new": "x", "cmd_delete": "y"}
        with pytest.raises(BadInput, match=match):
            hooks_of({**whole, **given})

    def test_json_keeps_them(self) -> None:
        told = json.loads(json.dumps({"cmd_new": ["a", "b"], "cmd_delete": "c"}))
        assert hooks_of(told).commands == {"new": ("a", "b"), "delete": "c"}

    def test_output_readers(self) -> None:
        assert told_by("  \n") == {}
        assert names_of("") == []
        assert names_of("b a\nb\n") == ["b", "a"]
