"""Energy and CO2 of work: an estimate from slots, memory and hours; formula and sources in docs/carbon.md.

Power in watts, energy in Wh, intensities in grams of CO2 equivalent for a kWh of electricity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from remuda.checks import shown
from remuda.errors import BadInput

__all__ = [
    "DEFAULT",
    "CarbonFacts",
    "CarbonTable",
    "Datacenter",
    "Work",
    "carbon_facts",
]

DEFAULT = "average"

# Ember, Yearly Electricity Data: averages of 2023 over the whole life of the plants.
GRIDS: Mapping[str, float] = {
    "AT": 111,
    "AU": 549,
    "BE": 138,
    "BG": 335,
    "BR": 98,
    "CA": 170,
    "CL": 291,
    "CN": 582,
    "CZ": 450,
    "DE": 381,
    "DK": 152,
    "EE": 417,
    "FI": 79,
    "FR": 56,
    "GB": 238,
    "GR": 337,
    "HR": 205,
    "HU": 204,
    "IE": 291,
    "IN": 713,
    "NO": 30,
    "PL": 662,
    "SE": 41,
    "WORLD": 481,
}


@dataclass(frozen=True, slots=True)
class Datacenter:
    """Where machines stand. `pue`: all energy over that of IT; `erf`: the share of it used again as heat.

    `wue`: litres of water for a kWh of IT. `intensity` None: that of `grid`.
    """

    name: str
    grid: str = "WORLD"
    pue: float = 1.58
    erf: float = 0.0
    wue: float = 0.0
    intensity: float | None = None


@dataclass(frozen=True, slots=True)
class CarbonTable:
    """What estimates are made from. Watts of a slot at work and idle, and of a GiB of memory.

    `heat_intensity`: of the heating that heat used again stands for.
    """

    busy_watts_per_slot: float = 3.5
    idle_watts_per_slot: float = 0.74
    watts_per_gib: float = 0.392
    heat_intensity: float = 227.0
    grids: Mapping[str, float] = field(default_factory=lambda: dict(GRIDS))
    datacenters: Mapping[str, Datacenter] = field(
        default_factory=lambda: {DEFAULT: Datacenter(DEFAULT)}
    )

    def datacenter(self, name: str) -> Datacenter:
        """Return a data centre, or the average one on the grid of that name; raises BadInput."""
        if name in self.datacenters:
            return self.datacenters[name]
        if name.upper() in self.grids:
            return replace(Datacenter(name), grid=name.upper())
        raise BadInput(
            f"there is no data centre or grid {shown(name)}",
            hint=f"known: {', '.join((*self.datacenters, *self.grids))[:400]}",
        )

    def intensity(self, datacenter: Datacenter) -> float:
        """Return the grams of CO2 equivalent for a kWh there."""
        if datacenter.intensity is not None:
            return datacenter.intensity
        return self.grids[datacenter.grid]


@dataclass(frozen=True, slots=True)
class Work:
    """What ran: hours of slots at work, of slots that were on but idle, and GiB-hours of memory."""

    busy_slot_hours: float = 0.0
    idle_slot_hours: float = 0.0
    gib_hours: float = 0.0


@dataclass(frozen=True, slots=True)
class CarbonFacts:
    """An estimate with the fields of the Qarnot SDK: Wh, grams of CO2 equivalent, percent.

    What is saved is compared with the equivalent data centre; negative, if that were better.
    """

    energy_consumption_Wh: float
    energy_it_Wh: float
    energy_reuse_Wh: float
    carbon_footprint_gC02eq: float
    equivalent_datacenter_name: str
    equivalent_dc_carbon_footprint_gC02eq: float
    saved_carbon_footprint_compute_gC02eq: float
    saved_carbon_footprint_heat_gC02eq: float
    saved_carbon_footprint_compute_heat_gC02eq: float
    saved_carbon_footprint_percent: float
    PUE: float
    ERE: float
    ERF: float
    WUE: float

    def to_json(self) -> dict[str, float | str]:
        """Return it under the names that it has on the wire there."""
        return {
            "total_consumed_energy_Wh": self.energy_consumption_Wh,
            "total_energy_it_Wh": self.energy_it_Wh,
            "total_reused_energy_Wh": self.energy_reuse_Wh,
            "qarnot_carbon_footprint": self.carbon_footprint_gC02eq,
            "equivalent_datacenter_name": self.equivalent_datacenter_name,
            "equivalent_DC_carbon_footprint": self.equivalent_dc_carbon_footprint_gC02eq,
            "saved_carbon_footprint_compute": self.saved_carbon_footprint_compute_gC02eq,
            "saved_carbon_footprint_heat": self.saved_carbon_footprint_heat_gC02eq,
            "saved_carbon_footprint_compute_heat": self.saved_carbon_footprint_compute_heat_gC02eq,
            "saved_carbon_footprint_percent": self.saved_carbon_footprint_percent,
            "PUE": self.PUE,
            "ERE": self.ERE,
            "ERF": self.ERF,
            "WUE": self.WUE,
        }


def carbon_facts(
    work: Work, table: CarbonTable, *, here: Datacenter, equivalent: Datacenter
) -> CarbonFacts:
    """Return the estimate for work done `here`, compared with the same done elsewhere."""
    it = (
        work.busy_slot_hours * table.busy_watts_per_slot
        + work.idle_slot_hours * table.idle_watts_per_slot
        + work.gib_hours * table.watts_per_gib
    )
    total = it * here.pue
    reused = total * here.erf
    footprint = total / 1000 * table.intensity(here)
    elsewhere = it * equivalent.pue / 1000 * table.intensity(equivalent)
    by_heat = reused / 1000 * table.heat_intensity
    saved = elsewhere - footprint
    return CarbonFacts(
        energy_consumption_Wh=total,
        energy_it_Wh=it,
        energy_reuse_Wh=reused,
        carbon_footprint_gC02eq=footprint,
        equivalent_datacenter_name=equivalent.name,
        equivalent_dc_carbon_footprint_gC02eq=elsewhere,
        saved_carbon_footprint_compute_gC02eq=saved,
        saved_carbon_footprint_heat_gC02eq=by_heat,
        saved_carbon_footprint_compute_heat_gC02eq=saved + by_heat,
        saved_carbon_footprint_percent=(saved + by_heat) / elsewhere * 100 if elsewhere else 0.0,
        PUE=here.pue,
        ERE=here.pue * (1 - here.erf),
        ERF=here.erf,
        WUE=here.wue,
    )
