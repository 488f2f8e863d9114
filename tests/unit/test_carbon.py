"""The estimate of energy and CO2, and the table it is made from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.carbon import DEFAULT, CarbonTable, Datacenter, Work, carbon_facts
from remuda.carbon_table import read_table, table_of
from remuda.errors import BadInput

TABLE = CarbonTable(
    busy_watts_per_slot=10,
    idle_watts_per_slot=2,
    watts_per_gib=0.5,
    heat_intensity=200,
    grids={"WORLD": 500, "FR": 50},
)
HERE = Datacenter("here", "FR", pue=1.5, erf=0.4, wue=0.2)
THERE = Datacenter("there", pue=2.0)
# As the SDK has them, on its objects and on the wire.
FIELDS = """energy_consumption_Wh energy_it_Wh energy_reuse_Wh carbon_footprint_gC02eq
    equivalent_datacenter_name equivalent_dc_carbon_footprint_gC02eq
    saved_carbon_footprint_compute_gC02eq saved_carbon_footprint_heat_gC02eq
    saved_carbon_footprint_compute_heat_gC02eq saved_carbon_footprint_percent PUE ERE ERF WUE"""
WIRE = """total_consumed_energy_Wh total_energy_it_Wh total_reused_energy_Wh qarnot_carbon_footprint
    equivalent_datacenter_name equivalent_DC_carbon_footprint saved_carbon_footprint_compute
    saved_carbon_footprint_heat saved_carbon_footprint_compute_heat saved_carbon_footprint_percent
    PUE ERE ERF WUE"""


def test_an_estimate_by_hand() -> None:
    found = carbon_facts(Work(100, 50, 200), TABLE, here=HERE, equivalent=THERE)
    assert found.energy_it_Wh == pytest.approx(100 * 10 + 50 * 2 + 200 * 0.5)
    assert found.energy_consumption_Wh == pytest.approx(1200 * 1.5)
    assert found.energy_reuse_Wh == pytest.approx(1800 * 0.4)
    assert found.carbon_footprint_gC02eq == pytest.approx(1.8 * 50)
    assert found.equivalent_dc_carbon_footprint_gC02eq == pytest.approx(2.4 * 500)
    assert found.saved_carbon_footprint_compute_gC02eq == pytest.approx(1200 - 90)
    assert found.saved_carbon_footprint_heat_gC02eq == pytest.approx(0.72 * 200)
    assert found.saved_carbon_footprint_compute_heat_gC02eq == pytest.approx(1110 + 144)
    assert found.saved_carbon_footprint_percent == pytest.approx(1254 / 1200 * 100)
    assert (found.PUE, found.ERF, found.WUE) == (1.5, 0.4, 0.2)
    assert found.to_json()["ERE"] == pytest.approx(0.9)


def test_the_fields_are_those_of_the_sdk() -> None:
    found = carbon_facts(Work(), TABLE, here=HERE, equivalent=THERE)
    assert list(type(found).__dataclass_fields__) == FIELDS.split()
    assert list(found.to_json()) == WIRE.split()
    assert found.saved_carbon_footprint_percent == 0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_more_work_never_takes_less(busy: float, idle: float, gib: float, erf: float) -> None:
    here = Datacenter("x", "FR", erf=erf)
    found = carbon_facts(Work(busy, idle, gib), TABLE, here=here, equivalent=THERE)
    more = carbon_facts(Work(busy + 1, idle, gib), TABLE, here=here, equivalent=THERE)
    assert more.carbon_footprint_gC02eq > found.carbon_footprint_gC02eq >= 0
    assert found.energy_reuse_Wh <= found.energy_consumption_Wh >= found.energy_it_Wh


def test_the_built_in_table() -> None:
    table = read_table(None)
    assert table.datacenter(DEFAULT).pue == 1.58
    assert table.intensity(table.datacenter("fr")) == 56
    assert table.intensity(table.datacenter(DEFAULT)) == 481
    with pytest.raises(BadInput, match="no data centre or grid 'mars'"):
        table.datacenter("mars")


def test_a_file_is_laid_over_it(tmp_path: Path) -> None:
    given_ = {
        "heat_intensity": 200,
        "power": {"busy_watts_per_slot": 11.5},
        "grids": {"roof": 45},
        "datacenters": {
            "basement": {"grid": "roof", "pue": 1.05, "erf": 0.6},
            "own": {"intensity": 7},
        },
    }
    (tmp_path / "a.json").write_text(json.dumps(given_))
    (tmp_path / "a.toml").write_text(
        """heat_intensity = 200
        [power]
        busy_watts_per_slot = 11.5
        [grids]
        roof = 45
        [datacenters]
        basement = { grid = "roof", pue = 1.05, erf = 0.6 }
        own = { intensity = 7 }"""
    )
    table = read_table(tmp_path / "a.json")
    assert table == read_table(tmp_path / "a.toml")
    assert (table.busy_watts_per_slot, table.idle_watts_per_slot) == (11.5, 0.74)
    assert table.intensity(table.datacenter("basement")) == 45
    assert table.intensity(table.datacenter("own")) == 7
    assert table.grids["FR"] == 56


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ([], "must be a mapping"),
        ({"powers": {}}, "no key powers"),
        ({"power": {"slot": 1}}, "no key slot"),
        ({"power": {"busy_watts_per_slot": -1}}, "power.busy_watts_per_slot"),
        ({"power": {"busy_watts_per_slot": math.nan}}, "power.busy_watts_per_slot"),
        ({"heat_intensity": "x"}, "heat_intensity"),
        ({"grids": {"a b": 1}}, "grids"),
        ({"grids": {"FR": math.inf}}, "grids.FR"),
        ({"grids": {"FR": True}}, "grids.FR"),
        ({"datacenters": {"a": {"pue": 0.9}}}, "datacenters.a.pue"),
        ({"datacenters": {"a": {"erf": 1.1}}}, "datacenters.a.erf"),
        ({"datacenters": {"a": {"grid": "MARS"}}}, "datacenters.a.grid"),
        ({"datacenters": {"a": {"colour": 1}}}, "no key colour"),
    ],
)
def test_nonsense_is_refused_by_name(wrong: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        table_of(wrong)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("= 1")
    for name, match in (("a.toml", "cannot be read"), ("none.json", "No such file")):
        with pytest.raises(BadInput, match=match):
            read_table(tmp_path / name)
