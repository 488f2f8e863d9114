"""A package of somebody else's adds a backend and a provider, and runs the suites on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY_POINTS = """\
[remuda.backends]
cellar = cellar:CellarBackend
[remuda.providers]
cellar = cellar:CellarProvider
"""

PACKAGE = """\
from remuda.testing import NoopBackend, NoopProvider

class CellarBackend(NoopBackend):
    kind = "cellar"

class CellarProvider(NoopProvider):
    kind = "cellar"
"""

TESTS = """\
import pytest
from remuda.config import Settings
from remuda.testing import (
    BackendContract, NoopCommands, Place, ProviderContract, ResourceContract, world
)
from remuda.workers.backends import VmAddress, get_backend
from remuda.workers.providers import VmSpec, get_provider

def make():
    provider = get_provider("cellar", Settings())
    vm_id = provider.spawn(VmSpec("vm", "sim", 2, heartbeat_s=0.2), "token")
    vm = VmAddress(1, "vm", "cellar", provider.describe([vm_id])[vm_id].address)
    place = Place(get_backend("cellar"), vm, lambda: provider.terminate(vm_id))
    place.commands = NoopCommands()
    place.kill_runner = lambda _: world().kill_runner(vm_id)
    yield place
    provider.terminate(vm_id)

class TestBackend(BackendContract):
    @pytest.fixture
    def place(self):
        yield from make()

class TestResource(ResourceContract):
    @pytest.fixture
    def place(self):
        yield from make()

class TestProvider(ProviderContract):
    @pytest.fixture
    def provider(self, pool_settings):
        provider = get_provider("cellar", Settings(), pool_settings)
        yield provider
        world().clear()

def test_it_is_ours():
    assert type(get_backend("cellar")).__module__ == "cellar"
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A distribution in a folder of its own, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "cellar-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cellar\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "cellar.py").write_text(PACKAGE)
    return site


def run(tests: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(tests)],
        cwd=tests.parent,
        env={**os.environ, "PYTHONPATH": f"{site}:{root}", "REMUDA_DATA_DIR": str(site / "data")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_suites_run_on_what_a_package_adds(installed: Path, tmp_path: Path) -> None:
    tests = tmp_path / "test_cellar.py"
    tests.write_text(TESTS)
    done = run(tests, installed, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) > 60
    assert not re.search(r"skipped|failed|error", done.stdout)


def test_a_suite_fails_what_breaks_the_contract_and_shows_the_values(
    installed: Path, tmp_path: Path
) -> None:
    (installed / "cellar.py").write_text(
        PACKAGE.replace(
            'kind = "cellar"\n',
            'kind = "cellar"\n\n    def recall_jobs(self, *a, **k):\n        return []\n',
            1,
        )
    )
    tests = tmp_path / "test_cellar.py"
    tests.write_text(TESTS)
    done = run(tests, installed, "-q", "-k", "recalling")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"assert \[\] == \[\d+\]", done.stdout), done.stdout


def test_the_fixtures_that_are_missing_are_named(installed: Path, tmp_path: Path) -> None:
    tests = tmp_path / "test_cellar.py"
    tests.write_text(
        "from remuda.testing import BackendContract\nclass TestIt(BackendContract): ..."
    )
    done = run(tests, installed, "-q", "-x")
    assert done.returncode == 1
    assert "override the fixture `place`" in done.stdout
