"""The providers' contract over each of ours, and what is local's alone.

A new provider adds a subclass of `ProviderContract` with its fixture `provider`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from remuda import kinds
from remuda.config import Settings
from remuda.errors import BadInput, PermanentProviderError, TransientProviderError
from remuda.testing import world
from remuda.workers import providers
from remuda.workers.onvm.processes import describe_process, environment, runner_pid, slurp
from remuda.workers.providers import Provider, VmDescription, VmSpec, get_provider
from remuda.workers.providers.local import remove_tree
from tests.contract.strays import Canary, Strays
from tests.sshd import Sshd, running_sshd
from tests.unit.vm import wait_dead


def spec(name: str = "vm-1", pool: str = "sim", **more: Any) -> VmSpec:
    return VmSpec(name, pool, 2, heartbeat_s=0.2, **more)


def living(root: Path) -> list[int]:
    """Return the processes, runners or jobs, of VMs under a folder.

    Not those that attach to a runner: each ends by itself, a moment after its line does.
    """
    found, inside = [], os.fsencode(os.path.realpath(root)) + b"/"
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        home = environment(pid, b"REMUDA_VM_HOME")
        serving = b"\0serve\0--home\0" + inside in slurp(f"/proc/{pid}/cmdline")
        if (home.startswith(inside) or serving) and describe_process(pid):
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def shelf() -> Iterator[list[Sshd]]:
    """Three hosts."""
    with running_sshd() as one, running_sshd() as two, running_sshd() as three:
        yield [one, two, three]


@contextlib.contextmanager
def cleaned(provider: Provider, *folders: Path) -> Iterator[Provider]:
    """Terminate all VMs of the provider at the end, and see that nothing of them lives."""
    yield provider
    for vm in provider.list(""):
        provider.terminate(vm.provider_id)
    assert provider.list("") == []
    assert [living(folder) for folder in folders] == [[]] * len(folders)


def only(provider: Provider, vm_id: str) -> VmDescription:
    found = provider.describe([vm_id])
    assert list(found) == [vm_id]
    return found[vm_id]


class TestLocalContract(Strays):
    kind = "local"

    @pytest.fixture
    def canary(self, provider: Provider, tmp_path: Path) -> Canary:
        """Give a folder beside those of VMs."""
        (tmp_path / "data" / "theirs").mkdir(parents=True)
        file = tmp_path / "data" / "theirs" / "file"
        file.write_text("precious")
        return "../theirs", lambda: (file.read_text(), file.stat().st_mtime_ns)

    @pytest.fixture
    def provider(self, tmp_path: Path) -> Iterator[Provider]:
        settings = Settings(data_dir=tmp_path / "data")
        with cleaned(get_provider("local", settings), tmp_path) as made:
            yield made


class TestStaticContract(Strays):
    kind = "static"

    @pytest.fixture
    def canary(self, provider: Provider, shelf: list[Sshd]) -> Iterator[Canary]:
        """Give a process and a file of somebody who uses the host too, where Remuda has its own."""
        home = shelf[0].home
        file = home / ".remuda" / "theirs"
        file.parent.mkdir(exist_ok=True)
        file.write_text("precious")
        process = subprocess.Popen(["sleep", "600"], cwd=home)
        yield (
            f"{shelf[0].entry().get('name', 'host')}#0123456789ab",
            lambda: (
                file.read_text(),
                process.poll(),
            ),
        )
        process.kill()
        process.wait()
        file.unlink()

    @pytest.fixture
    def pool_settings(self, shelf: list[Sshd]) -> dict[str, Any]:
        return {"hosts": [host.entry() for host in shelf]}

    @pytest.fixture
    def provider(
        self, tmp_path: Path, pool_settings: dict[str, Any], shelf: list[Sshd]
    ) -> Iterator[Provider]:
        settings = Settings(data_dir=tmp_path / "data")
        provider = get_provider("static", settings, pool_settings)
        with cleaned(provider, *(host.home for host in shelf)) as made:
            yield made


class TestNoopContract(Strays):
    kind = "noop"

    @pytest.fixture
    def pool_settings(self) -> dict[str, Any]:
        return {"provider_faults": {"boot_s": 0.05}}

    @pytest.fixture
    def provider(self, tmp_path: Path, pool_settings: dict[str, Any]) -> Iterator[Provider]:
        settings = Settings(data_dir=tmp_path / "data")
        with cleaned(get_provider("noop", settings, pool_settings), tmp_path) as made:
            yield made
        world().clear()


class TestLocal:
    @pytest.fixture
    def provider(self, tmp_path: Path) -> Iterator[Provider]:
        with cleaned(get_provider("local", Settings(data_dir=tmp_path / "data")), tmp_path) as made:
            yield made

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "data" / "vms"

    @pytest.mark.parametrize("how", ["killed runner", "deleted", "deleted and killed"])
    def test_a_vm_that_was_hurt_leaves_nothing(
        self, provider: Provider, root: Path, tmp_path: Path, how: str
    ) -> None:
        vm_id = provider.spawn(spec(), "1")
        home = root / vm_id
        pid = runner_pid(str(home))
        if how != "deleted":
            os.kill(pid, 9)
            wait_dead(pid)
        if how != "killed runner":
            shutil.rmtree(home)
            assert provider.describe([vm_id]) == {}
            assert provider.list("") == []
        else:
            assert only(provider, vm_id).state == "running"
        provider.terminate(vm_id)
        assert provider.describe([vm_id]) == {}
        assert living(tmp_path) == []
        assert list(root.iterdir()) == []

    def test_a_deleted_vm_ends_by_itself(self, provider: Provider, root: Path) -> None:
        vm_id = provider.spawn(spec(), "1")
        pid = runner_pid(str(root / vm_id))
        shutil.rmtree(root / vm_id)
        wait_dead(pid)

    def test_a_termination_that_was_cut_short_is_finished(
        self, provider: Provider, root: Path
    ) -> None:
        vm_id = provider.spawn(spec(), "1")
        (root / vm_id / "stopped").touch()
        (root / ".trash-left").mkdir()
        assert only(provider, vm_id).state == "stopped"
        provider.terminate(vm_id)
        assert list(root.iterdir()) == []

    def test_a_spawn_that_was_cut_short_is_finished(self, provider: Provider, root: Path) -> None:
        vm_id = provider.spawn(spec(), "1")
        provider.terminate(vm_id)
        (root / vm_id).mkdir()
        assert provider.list("") == []
        assert provider.spawn(spec(), "1") == vm_id
        assert only(provider, vm_id).state == "running"

    @pytest.mark.parametrize("name", ["a name", "../../up", "ü/ö", "-", "", "x" * 500])
    def test_names_become_folders_of_the_data_dir(
        self, provider: Provider, root: Path, name: str
    ) -> None:
        vm_id = provider.spawn(spec(name), "tok/../en")
        assert (root / vm_id).parent.samefile(root)
        assert (root / vm_id / "vm.json").is_file()
        assert only(provider, vm_id).state == "running"
        provider.terminate(vm_id)
        assert list(root.iterdir()) == []

    @pytest.mark.parametrize("name", ["with spaces and 'quotes'", "/".join(["x" * 200] * 8)])
    def test_any_data_dir_will_do(self, tmp_path: Path, name: str) -> None:
        provider = get_provider("local", Settings(data_dir=tmp_path / name))
        vm_id = provider.spawn(spec(), "1")
        try:
            assert only(provider, vm_id).state == "running"
        finally:
            provider.terminate(vm_id)
        assert living(tmp_path) == []

    def test_a_data_dir_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "data").touch()
        provider = get_provider("local", Settings(data_dir=tmp_path / "data"))
        with pytest.raises(PermanentProviderError, match="data_dir"):
            provider.spawn(spec(), "1")
        assert provider.list("") == []

    def test_a_runner_that_cannot_start_leaves_a_vm_that_is_listed(
        self, provider: Provider, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/bin/false")
            with pytest.raises(TransientProviderError, match="cannot start VM vm-1"):
                provider.spawn(spec(), "1")
        (left,) = provider.list("sim")
        assert (left.state, left.token) == ("pending", "1")
        assert provider.spawn(spec(), "1") == left.provider_id
        provider.terminate(left.provider_id)
        assert list(root.iterdir()) == []

    def test_jobs_get_nothing_secret_from_whoever_started_the_vm(
        self, provider: Provider, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REMUDA_DATABASE_URL", "secret")
        monkeypatch.setenv("PGPASSWORD", "secret")
        vm_id = provider.spawn(spec(), "1")
        pid = runner_pid(str(root / vm_id))
        assert b"secret" not in slurp(f"/proc/{pid}/environ")
        assert environment(pid, b"PATH") == os.fsencode(os.environ["PATH"])

    def test_trees_of_any_shape_are_removed(self, tmp_path: Path) -> None:
        tree, outside = tmp_path / "tree", tmp_path / "outside"
        outside.mkdir()
        (outside / "file").touch()
        (tree / "locked" / "in").mkdir(parents=True)
        (tree / "locked" / "in" / "file").touch()
        (tree / "link").symlink_to(outside)
        folder = os.open(tree, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d" * 20, dir_fd=folder)
            deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        os.close(folder)
        (tree / "locked" / "in").chmod(0)
        (tree / "locked").chmod(0o500)
        remove_tree(tree)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"]
        assert (outside / "file").exists()


class TestRegistry:
    def test_an_unknown_kind_names_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"no provider 'vapour'.*local"):
            get_provider("vapour", Settings(data_dir=tmp_path))

    def test_a_package_adds_a_kind(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        point = EntryPoint("mine", "remuda.workers.providers.local:LocalProvider", providers.GROUP)
        points = EntryPoints([point])
        monkeypatch.setattr(kinds, "entry_points", points.select)
        assert get_provider("mine", Settings(data_dir=tmp_path)).list("") == []
        with pytest.raises(BadInput, match="local, mine"):
            get_provider("vapour", Settings(data_dir=tmp_path))
