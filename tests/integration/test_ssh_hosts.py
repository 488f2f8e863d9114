"""What hosts are like: login shells, users, pythons; and the shelf of them, over real sshd."""

from __future__ import annotations

import ast
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remuda.errors import (
    BadInput,
    CapacityError,
    PermanentProviderError,
    TransientProviderError,
)
from remuda.hosts import host_of, hosts_of
from remuda.workers import remote
from remuda.workers.onvm import host
from remuda.workers.transport import connections
from tests.integration.test_ssh import SPEC, Vm, no_connections_left, provider_of, works
from tests.sshd import Sshd, ordinary_user, running_sshd, sshd, two_sshd
from tests.unit.vm import interpreters

__all__ = ["no_connections_left", "sshd", "two_sshd"]


class TestLoginShells:
    @pytest.mark.parametrize("end", ["", "\\n"])
    def test_one_that_prints_banners(self, sshd: Sshd, end: str) -> None:
        banner = f"printf 'Welcome {{\"re\": 1}} remuda{end}'; printf 'hello{end}' >&2\n"
        (sshd.home / ".bashrc").write_text(banner)
        with connections().session(host_of(sshd.entry()), timeout_s=10) as channel:
            channel.exec_command("true")
            assert b"Welcome" in channel.recv(100)
        works(sshd)

    def test_one_that_is_slow(self, sshd: Sshd) -> None:
        (sshd.home / ".bashrc").write_text("sleep 1\n")
        works(sshd)

    def test_an_ordinary_user(self) -> None:
        with running_sshd(ordinary_user()) as host:
            (host.folder / "host_key.pub").chmod(0o644)
            works(host)
            works(host, home="deep/er")

    def test_no_python3(self, sshd: Sshd) -> None:
        sshd.kill()
        sshd.configure(f"SetEnv HOME={sshd.home} PATH={sshd.folder}/bin")
        (sshd.folder / "bin").mkdir()
        sshd.start()
        provider = provider_of(sshd.entry())
        with pytest.raises(PermanentProviderError, match=r"no python3 >= 3\.7.*apt-get"):
            provider.spawn(SPEC, "1")
        assert provider.list("") == []

    def test_a_python3_that_is_too_old(self, sshd: Sshd) -> None:
        sshd.kill()
        sshd.configure(f"SetEnv HOME={sshd.home} PATH={sshd.folder}/bin")
        folder = sshd.folder / "bin"
        folder.mkdir()
        old = "import sys; sys.version_info = (3, 6); exec(sys.argv[1])"
        (folder / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$6"\n')
        (folder / "python3").chmod(0o755)
        sshd.start()
        with pytest.raises(PermanentProviderError, match=r"no python3 >= 3\.7"):
            provider_of(sshd.entry()).spawn(SPEC, "1")
        assert provider_of(sshd.entry()).list("") == []

    def test_the_oldest_python3_at_hand(self, sshd: Sshd) -> None:
        python = next(iter(interpreters().values()))
        sshd.kill()
        sshd.configure(f"SetEnv HOME={sshd.home} PATH={sshd.folder}/bin:/usr/bin:/bin")
        (sshd.folder / "bin").mkdir()
        (sshd.folder / "bin" / "python3").symlink_to(python)
        sshd.start()
        works(sshd)

    def test_a_home_that_cannot_be_written(self) -> None:
        with running_sshd(ordinary_user()) as host:
            if os.geteuid():
                pytest.skip("only root can take the home away")
            os.chown(host.home, 0, 0)
            host.home.chmod(0o755)
            with pytest.raises(TransientProviderError, match="Permission denied"):
                provider_of(host.entry()).spawn(SPEC, "1")


class TestShelf:
    def test_a_claimed_host_is_seen_without_python3(self, sshd: Sshd) -> None:
        vm = Vm(sshd)
        sshd.kill()
        (sshd.folder / "bin").mkdir()
        sshd.configure(f"SetEnv HOME={sshd.home} PATH={sshd.folder}/bin")
        sshd.start()
        (seen,) = vm.provider.list("sim")
        assert (seen.provider_id, seen.state) == (vm.id, "running")
        assert dict(seen.address) == vm.address
        (Path(vm.address["home"]) / "stopped").touch()
        assert vm.provider.list("sim")[0].state == "stopped"
        sshd.kill()
        sshd.configure()
        sshd.start()
        vm.end()

    def test_a_folder_of_an_odd_name(self, sshd: Sshd) -> None:
        works(sshd, home='it\'s "odd" é')

    def test_many_want_few_hosts(self, two_sshd: list[Sshd]) -> None:
        hosts = [host.entry() for host in two_sshd]

        def spawn(token: str) -> str | None:
            try:
                return provider_of(*hosts).spawn(SPEC, token)
            except CapacityError:
                return None

        with ThreadPoolExecutor(6) as pool:
            tokens = ["a", "b", "c"] * 2
            got = list(pool.map(spawn, tokens))
        by_token = {t: {g for u, g in zip(tokens, got, strict=True) if u == t} for t in tokens}
        assert all(len(ids - {None}) <= 1 for ids in by_token.values())
        held = {vm_id for ids in by_token.values() for vm_id in ids if vm_id}
        provider = provider_of(*hosts)
        assert {vm.provider_id for vm in provider.list("sim")} == held
        assert len(held) == 2
        for vm_id in held:
            provider.terminate(vm_id)
        assert all(not (host.home / ".remuda").exists() for host in two_sshd)

    def test_a_claim_cut_short_is_taken_up(self, sshd: Sshd) -> None:
        host = host_of(sshd.entry())
        remote.call(host, "claim", place=host.home, timeout_s=10, token="1", pool="sim", name="vm")
        provider = provider_of(sshd.entry())
        (left,) = provider.list("sim")
        assert (left.state, left.token) == ("pending", "1")
        with pytest.raises(CapacityError, match="all 1 hosts are taken"):
            provider.spawn(SPEC, "2")
        assert provider.spawn(SPEC, "1") == left.provider_id
        assert provider.list("sim")[0].state == "running"
        provider.terminate(left.provider_id)

    def test_an_old_termination_harms_no_new_vm(self, sshd: Sshd) -> None:
        vm = Vm(sshd)
        vm.end()
        other = vm.provider.spawn(SPEC, "2")
        vm.provider.terminate(vm.id)
        remote.call(host_of(sshd.entry()), "release", place=".remuda", timeout_s=10, token="token")
        assert vm.provider.describe([other])[other].state == "running"
        vm.provider.terminate(other)

    def test_a_reserved_host_serves_its_group_alone(self, sshd: Sshd) -> None:
        mine = replace(SPEC, reserved_group="lab")
        with pytest.raises(PermanentProviderError, match="no host has"):
            provider_of(sshd.entry(group="lab")).spawn(SPEC, "1")
        for group in ("", "other"):
            with pytest.raises(PermanentProviderError, match="no host of group lab has"):
                provider_of(sshd.entry(group=group)).spawn(mine, "1")
        provider = provider_of(sshd.entry(group="lab"))
        provider.terminate(provider.spawn(mine, "1"))

    def test_the_cheapest_free_host_is_taken(self, two_sshd: list[Sshd]) -> None:
        dear, cheap = (
            host.entry(price_per_hour=price)
            for host, price in zip(two_sshd, (0.5, 0.25), strict=True)
        )
        provider = provider_of(dear, cheap)
        assert provider.price(SPEC) == 0.25
        assert provider_of(dear, {**cheap, "price_per_hour": None}).price(SPEC) is None
        taken = [provider.spawn(SPEC, token) for token in ("1", "2")]
        assert [provider.describe([vm])[vm].price for vm in taken] == [0.25, 0.5]
        for vm in taken:
            provider.terminate(vm)

    def test_a_host_that_is_too_small(self, sshd: Sshd) -> None:
        with pytest.raises(PermanentProviderError, match="no host has 2 cores"):
            provider_of(sshd.entry(cores=1)).spawn(SPEC, "1")

    @pytest.mark.parametrize(
        ("hosts", "named"),
        [
            (None, "hosts must be a list"),
            ([], "hosts must be a list"),
            ([{}], r"hosts\[0\].address"),
            ([{"address": "a b"}], r"hosts\[0\].address"),
            ([{"address": "-oProxyCommand=x"}], r"hosts\[0\].address"),
            ([{"address": "999.1.1.1"}], r"hosts\[0\].address is neither"),
            ([{"address": "10.0.0.1:22"}], r"hosts\[0\].address is neither"),
            ([{"address": "a", "port": 0}], r"hosts\[0\].port"),
            ([{"address": "a", "price_per_hour": -1}], r"hosts\[0\].price_per_hour"),
            ([{"address": "a", "price_per_hour": "1"}], r"hosts\[0\].price_per_hour"),
            ([{"address": "a", "port": "22"}], r"hosts\[0\].port"),
            ([{"address": "a"}, {"address": "b", "cores": -1}], r"hosts\[1\].cores"),
            ([{"address": "a", "host_key": "AAAA"}], r"hosts\[0\].host_key"),
            ([{"address": "a", "home": "../x"}], r"hosts\[0\].home"),
            ([{"address": "a", "home": "/"}], r"hosts\[0\].home"),
            ([{"address": "a", "labels": "x"}], r"hosts\[0\].labels"),
            ([{"address": "a", "cache_bytes": 0}], r"hosts\[0\].cache_bytes"),
            ([{"address": "a", "password": "x"}], "password"),
            ([{"address": "a"}, {"address": "a"}], r"hosts\[1\] is hosts\[0\]"),
        ],
    )
    def test_settings_name_what_is_wrong(self, hosts: Any, named: str) -> None:
        with pytest.raises(BadInput, match=named):
            hosts_of({"hosts": hosts})


def test_what_runs_on_hosts_is_for_any_python3() -> None:
    """It is sent as it stands; 3.7 must be able to read it."""
    ast.parse(Path(host.__file__).read_text(), feature_version=(3, 7))
