"""A pool's resources on a VM: each whole or not at all, inside their folder, told to jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vm import Line, Vm, a_vm, output


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve(1).line()


def test_resources_are_put_and_replaced(vm: Vm, line: Line, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    files = [["a.txt", str(source), 0o644], ["tables/b", str(source), 0o755]]
    assert line.ask("resources", files=files)["failed"] == {}
    entry = line.sh(1, 'cat "$REMUDA_RESOURCES/a.txt"; test -x "$REMUDA_RESOURCES/tables/b" && pwd')
    assert output(entry).startswith(b"one/")
    with (vm.home / "resources" / "a.txt").open() as old:
        source.write_text("another")
        assert line.ask("resources", files=files[:1])["failed"] == {}
        assert old.read() == "one"  # whoever has it open goes on
    assert (vm.home / "resources" / "a.txt").read_text() == "another"
    assert (vm.home / "resources" / "tables" / "b").read_text() == "one"
    assert line.ask("status")["moved_files"] == 3
    assert not (vm.home / "resource.new").exists()


def test_what_cannot_be_put_is_told_by_name(vm: Vm, line: Line, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text("x")
    files = [
        ["../out", str(good), 0o644],
        ["missing", str(tmp_path / "missing"), 0o644],
        ["refused", "!it cannot be had", 0o644],
        ["good", str(good), 0o644],
    ]
    failed = line.ask("resources", files=files)["failed"]
    assert failed.keys() == {"../out", "missing", "refused"}
    assert "No such file" in failed["missing"]
    assert failed["refused"] == "it cannot be had"
    assert [p.name for p in (vm.home / "resources").iterdir()] == ["good"]
    assert not line.ask("resources", files=[["a"]])["ok"]
    assert not line.ask("resources")["ok"]
