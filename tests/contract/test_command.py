"""The command provider: the contract, and what is its own: hooks, numbers, the book."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from remuda.config import Settings, load_settings
from remuda.errors import (
    BadInput,
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hooks import hooks_of
from remuda.testing import ProviderContract
from remuda.workers.providers import Provider, VmSpec, get_provider
from remuda.workers.providers.command.output import names_of, place_of, told_by
from remuda.workers.providers.command.running import MOST_BYTES, run_hook

NEW = (
    'cd "$YARD" && mkdir $REMUDA_PROVIDER_ID && env > $REMUDA_PROVIDER_ID/env'
    " && echo 10.0.0.$REMUDA_VM_NUMBER"
)
DELETE = 'env > "$LOG/deleted" && rm -rf "$YARD/$REMUDA_PROVIDER_ID"'
LIST = 'ls "$YARD"'


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return load_settings(database_url=database_url, data_dir=tmp_path / "data")


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    (tmp_path / "yard").mkdir()
    return tmp_path / "yard"


@pytest.fixture
def hooks(yard: Path) -> dict[str, Any]:
    environment = {"YARD": str(yard), "LOG": str(yard.parent)}
    return {"cmd_new": NEW, "cmd_delete": DELETE, "environment": environment}


def spec(name: str = "vm-1", pool: str = "sim") -> VmSpec:
    return VmSpec(name, pool, 2)


def seen(yard: Path, vm_id: str) -> dict[str, str]:
    lines = (yard / vm_id / "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


class TestContract(ProviderContract):
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


class TestHooks:
    def test_what_they_are_told(
        self, settings: Settings, hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REMUDA_DATABASE_URL", "secret")
        monkeypatch.setenv("PGPASSWORD", "secret")
        provider = get_provider("command", settings, hooks)
        yard = Path(hooks["environment"]["YARD"])
        wanted = VmSpec("herd-7", "uuid", 4, 1 << 30, image="f40", offer="eu", max_price=0.5)
        vm_id = provider.spawn(wanted, "t")
        env = seen(yard, vm_id)
        assert "secret" not in env.values()
        expected = {
            "REMUDA_HOOK": "new",
            "REMUDA_VM_NAME": "herd-7",
            "REMUDA_PROVIDER_ID": vm_id,
            "REMUDA_VM_TOKEN": "t",
            "REMUDA_VM_NUMBER": "0",
            "REMUDA_POOL_ID": "uuid",
            "REMUDA_SLOTS": "4",
            "REMUDA_MEMORY_BYTES": str(1 << 30),
            "REMUDA_IMAGE": "f40",
            "REMUDA_OFFER": "eu",
            "REMUDA_MAX_PRICE": "0.5",
            "RESALLOC_NAME": vm_id,
            "RESALLOC_POOL_ID": "uuid",
            "RESALLOC_ID_IN_POOL": "0",
        }
        assert {name: env[name] for name in expected} == expected
        provider.terminate(vm_id)
        deleted = (yard.parent / "deleted").read_text()
        data = base64.b64encode(b"10.0.0.0\n").decode()
        assert f"RESALLOC_RESOURCE_DATA={data}\n" in deleted
        assert "REMUDA_VM_DATA=10.0.0.0\n" in deleted

    @pytest.mark.parametrize(
        ("printed", "address"),
        [
            ("10.0.0.5", {"address": "10.0.0.5", "user": "root", "port": 2222}),
            ("vm5.example.org\n", {"address": "vm5.example.org", "user": "root", "port": 2222}),
            ("::ffff:10.0.0.5", {"address": "10.0.0.5", "user": "root", "port": 2222}),
            ("address=h\nport=22\nrack=b\n", {"address": "h", "port": 22, "data": None}),
            ('{"address": "h", "rack": [1]}', {"address": "h", "rack": None}),
            ('{"token": "x"}', {"data": {"token": "x"}}),
            ("", {}),
        ],
    )
    def test_what_new_prints_is_where_it_is(self, printed: str, address: dict[str, Any]) -> None:
        login = {"user": "root", "port": 2222}
        found = place_of(told_by(printed), name="vm", login=login, home=".remuda/vm")
        assert {key: found.get(key) for key in address} == address
        assert found.get("name") == (None if "address" in address else "vm")
        assert found.get("home") == (".remuda/vm" if "address" in address else None)

    def test_it_is_told_of_the_vm(self, settings: Settings, hooks: dict[str, Any]) -> None:
        told = {**hooks, "ssh": {"user": "root"}}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        assert provider.describe([vm_id])[vm_id].address == {
            "address": "10.0.0.0",
            "user": "root",
            "home": f".remuda/{vm_id}",
        }

    @pytest.mark.parametrize(
        ("printed", "match"),
        [
            ("Creating your VM, one moment please", "Creating your VM"),
            ("a=1\nbooting...\n", "booting"),
            ("[1, 2]", "JSON list"),
            ('{"address": ', "no JSON"),
            ('{"address": 7}', "'7' for an address"),
            ("999.10.0.1", "'999.10.0.1' for an IP"),
            ("address=10.0.0.1\nprivate_ip=ten", "'ten' for an IP"),
            ("address=-oProxyCommand=x", "for an address"),
            ("address=h\nhost_key=rsa", "host_key"),
            ("address=h\nhome=../..", "home"),
            ("x=" + "y" * 70_000, "more than 65536 bytes"),
        ],
    )
    def test_junk_is_refused(self, printed: str, match: str) -> None:
        with pytest.raises(PermanentProviderError, match=match):
            told_by(printed)

    def test_what_was_made_by_a_hook_that_prints_junk_is_deleted(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        told = {**hooks, "cmd_new": 'mkdir "$YARD/$REMUDA_PROVIDER_ID" && echo Here you are!'}
        provider = get_provider("command", settings, told)
        with pytest.raises(PermanentProviderError, match="Here you are!"):
            provider.spawn(spec(), "1")
        [left] = provider.list("sim")
        assert (left.state, left.token) == ("pending", "1")
        provider.terminate(left.provider_id)
        assert list(yard.iterdir()) == []
        assert provider.list("") == []

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (1, TransientProviderError),
            (69, CapacityError),
            (73, QuotaExceeded),
            (66, ImageError),
            (77, ProviderAuthError),
            (78, PermanentProviderError),
            (127, PermanentProviderError),
        ],
    )
    def test_exit_codes_say_what_it_is(self, code: int, kind: type[ProviderError]) -> None:
        with pytest.raises(
            ProviderError, match=f"cmd_new ended with exit code {code}: why"
        ) as told:
            run_hook("cmd_new", f"echo why >&2; exit {code}", environment=os.environ, timeout_s=10)
        assert type(told.value) is kind

    def test_one_that_hangs_is_killed_with_all_its_children(self, tmp_path: Path) -> None:
        line = "sleep 300 & echo $! > pid; sleep 300; true"
        began = time.monotonic()
        with pytest.raises(TransientProviderError, match=r"cmd_new did not end in 0.3 s"):
            run_hook("cmd_new", f"cd {tmp_path}; {line}", environment=os.environ, timeout_s=0.3)
        assert time.monotonic() - began < 10
        pid = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + 10
        while _lives(pid):
            assert time.monotonic() < deadline

    def test_what_it_leaves_running_is_not_waited_for(self, tmp_path: Path) -> None:
        line = f"(sleep 300; true) & echo $! > {tmp_path}/pid; echo 10.0.0.1"
        began = time.monotonic()
        printed = run_hook("cmd_new", line, environment=os.environ, timeout_s=60)
        assert printed == "10.0.0.1\n"
        assert time.monotonic() - began < 10
        os.kill(int((tmp_path / "pid").read_text()), 9)

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            (f"head -c {MOST_BYTES + 1} /dev/zero | tr '\\0' x", "more than"),
            ("printf '\\377'", "no UTF-8"),
            ("printf 'a\\0b'", "NUL"),
            ("kill -9 $$", "signal 9|exit code 137"),
        ],
    )
    def test_output_that_cannot_be_kept(self, line: str, match: str) -> None:
        with pytest.raises(ProviderError, match=match):
            run_hook("cmd_new", line, environment=os.environ, timeout_s=30)

    def test_a_program_that_is_not_there(self) -> None:
        with pytest.raises(PermanentProviderError, match="cmd_new"):
            run_hook("cmd_new", ("/no/such",), environment=os.environ, timeout_s=30)


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
        found = {vm.provider_id: vm.token for vm in provider.list("sim")}
        assert set(found) == {vm_id, "somebody-elses"}
        assert found["somebody-elses"] == ""  # not ours to end
        assert len(found[vm_id]) == 36
        assert found[vm_id] == {vm.provider_id: vm.token for vm in provider.list("sim")}[vm_id]
        provider.terminate("somebody-elses")
        provider.terminate(vm_id)
        assert [path.name for path in yard.iterdir()] == ["somebody-elses"]

    def test_ten_thousand_unknown_vms(
        self, settings: Settings, hooks: dict[str, Any], yard: Path
    ) -> None:
        told = {**hooks, "cmd_list": "seq -f 'x-%012.0f' 10000"}
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


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
