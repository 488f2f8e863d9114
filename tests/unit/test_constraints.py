"""What jobs ask of machines: checked when it is written down, told when it is not met."""

from __future__ import annotations

from typing import Any

import pytest

from remuda.constraints import Hardware, architecture_of, constraints_of, unmet
from remuda.errors import BadInput

HERE = Hardware(
    architecture="x86_64", cores=4, memory_bytes=16, disk_bytes=9, ssd=True, cpu_model="AMD EPYC"
)


@pytest.mark.parametrize(
    ("given", "name"),
    [("amd64", "x86_64"), ("X86-64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")],
)
def test_architectures_have_one_name(given: str, name: str) -> None:
    assert architecture_of(given) == name


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"min_core": 1}, "no constraint min_core"),
        ({"min_cores": 0}, "min_cores"),
        ({"min_cores": 2.5}, "min_cores"),
        ({"min_disk_bytes": "1G"}, "min_disk_bytes"),
        ({"ssd": 1}, "ssd must be true or false"),
        ({"cpu_model": ""}, "cpu_model"),
        ({"min_cores": 4, "max_cores": 2}, "more than max_cores"),
        ([("gpu", True)], "mapping"),
    ],
)
def test_nonsense_is_refused_by_name(wrong: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        constraints_of(wrong)
    with pytest.raises(BadInput):
        architecture_of("x86 64")


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"min_cores": 6}, "2 less (4)"),
        ({"max_memory_bytes": 10}, "6 bytes more (16)"),
        ({"min_memory_per_core_bytes": 5}, "1 bytes less (4)"),
        ({"min_disk_bytes": 10}, "1 bytes less (9)"),
        ({"gpu": True}, "with a GPU, this one has none"),
        ({"ssd": False}, "without a SSD, this one has one"),
        ({"cpu_model": "*xeon*"}, "AMD EPYC"),
    ],
)
def test_what_is_lacking_is_told_with_its_amount(wish: dict[str, Any], told: str) -> None:
    assert [told in lack for lack in unmet(HERE, architecture=None, constraints=wish)] == [True]
    assert unmet(Hardware(gpus=1), architecture=None, constraints=wish) or wish == {"gpu": True}


def test_what_is_met_is_not_told() -> None:
    wish = {"min_cores": 4, "max_cores": 4, "cpu_model": "amd*", "ssd": True, "gpu": False}
    assert unmet(HERE, architecture="x86_64", constraints=wish) == []
    [lack] = unmet(HERE, architecture="aarch64", constraints=None)
    assert "aarch64" in lack
    assert "x86_64" in lack
