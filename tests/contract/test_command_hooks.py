"""The hooks of the command provider: what they are told, what they may say, and how long."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import (
    CapacityError,
    ImageError,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
)
from remuda.workers.providers import VmSpec, get_provider
from remuda.workers.providers.command.output import place_of, told_by
from remuda.workers.providers.command.running import MOST_BYTES, run_hook
from tests.contract.command_place import hooks, seen, settings, spec, yard
from tests.unit.vm import wait_dead

__all__ = [
    "hooks",
    "settings",
    "yard",
]


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

    def test_it_is_told_how_big_it_is(self, settings: Settings, hooks: dict[str, Any]) -> None:
        told = {**hooks, "cmd_new": f"{hooks['cmd_new']} >&2; echo address=h; echo cores=4"}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        found = provider.describe([vm_id])[vm_id]
        assert (found.cores, found.memory_bytes, found.price) == (4, None, None)

    @pytest.mark.parametrize("said", ["price=0.12", '{"price": 0.12}', '{"price": "0.12"}'])
    def test_it_is_told_what_it_costs(
        self, settings: Settings, hooks: dict[str, Any], said: str
    ) -> None:
        told = {**hooks, "cmd_new": f"{hooks['cmd_new']} >&2; echo '{said}'"}
        provider = get_provider("command", settings, told)
        vm_id = provider.spawn(spec(), "1")
        found = provider.describe([vm_id])[vm_id]
        assert found.price == 0.12
        assert found.address == {"name": vm_id}

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
            ("address=10.0.0.1\ncores=many", "'many' for cores"),
            ('{"address": "10.0.0.1", "memory_bytes": 0}', "'0' for memory_bytes"),
            ("address=h\nprice=cheap", "'cheap' for a price"),
            ('{"price": -1}', "'-1' for a price"),
            ('{"price": true}', "'True' for a price"),
            ("address=h\nprice=nan", "'nan' for a price"),
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
        for timeout_s in (0.3, 3, 30):  # a busy machine may not start the child in 0.3 s
            began = time.monotonic()
            with pytest.raises(TransientProviderError, match=f"did not end in {timeout_s} s"):
                run_hook(
                    "cmd_new",
                    f"cd {tmp_path}; {line}",
                    environment=os.environ,
                    timeout_s=timeout_s,
                )
            assert time.monotonic() - began < timeout_s + 20
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
        pid = int((tmp_path / "pid").read_text())
        wait_dead(pid)

    def test_what_it_leaves_running_is_not_waited_for(self, tmp_path: Path) -> None:
        line = f"(sleep 300; true) & echo $! > {tmp_path}/pid; echo 10.0.0.1"
        began = time.monotonic()
        printed = run_hook("cmd_new", line, environment=os.environ, timeout_s=60)
        assert printed == "10.0.0.1\n"
        assert time.monotonic() - began < 50
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
