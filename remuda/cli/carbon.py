"""`remuda carbon`: energy and CO2 of a pool or a job, estimated."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.history import When
from remuda.cli.output import Column, print_details, print_json, print_rows
from remuda.cli.types import json_option

if TYPE_CHECKING:
    from remuda.carbon import CarbonFacts, CarbonTable

_COLUMNS = [
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("GRID", "grid"),
    Column("G CO2E/KWH", "intensity", right=True),
    Column("PUE", "pue", right=True),
    Column("ERF", "erf", right=True),
    Column("WUE", "wue", right=True),
]


@click.command("carbon", cls=Command, short_help="Estimate energy and CO2 of a pool or a job.")
@click.option("--pool", metavar="POOL", help="Of all VMs of this pool.")
@click.option("--job", type=click.IntRange(1), metavar="ID", help="Of this job.")
@click.option(
    "--compare", metavar="NAME", help="With this data centre or grid.  [default: average]"
)
@click.option("--since", type=When(), default="3650d", help="Of a pool: from when on.")
@click.option("--until", type=When(zero=True), default="0s", help="Of a pool: up to when.")
@click.option("--list", "listed", is_flag=True, help="List the data centres and grids there are.")
@json_option
def carbon(
    pool: str | None,
    job: int | None,
    compare: str | None,
    since: datetime | timedelta,
    until: datetime | timedelta,
    listed: bool,
    as_json: bool,
) -> None:
    """Estimate energy and CO2 of a pool's VMs or of a job, compared with the same work elsewhere.

    \b
        remuda carbon --pool sim --since 7d --compare DE
        remuda carbon --job 17
        remuda carbon --list

    Formula and sources are in docs/carbon.md; a file of your own is REMUDA_CARBON_FILE.
    """
    if (pool is not None) + (job is not None) + listed != 1:
        raise click.UsageError("say --pool POOL, --job ID or --list")
    with connect.open_client() as client:
        if listed:
            _print_table(client.carbon_table(), as_json=as_json)
            return
        if job is not None:
            facts = client.job(job).carbon_facts(compare)
        else:
            facts = client.pool(pool or "").carbon_facts(compare, since=since, until=until)
    if as_json:
        print_json([asdict(facts)])
        return
    _print_facts(facts)


def _print_facts(facts: CarbonFacts) -> None:
    other = facts.equivalent_datacenter_name
    print_details(
        [
            ("energy", f"{facts.energy_consumption_Wh:.3f} Wh"),
            ("of IT", f"{facts.energy_it_Wh:.3f} Wh"),
            ("used again as heat", f"{facts.energy_reuse_Wh:.3f} Wh"),
            ("footprint", f"{facts.carbon_footprint_gC02eq:.3f} g CO2e"),
            (f"in {other}", f"{facts.equivalent_dc_carbon_footprint_gC02eq:.3f} g CO2e"),
            ("saved by computing", f"{facts.saved_carbon_footprint_compute_gC02eq:.3f} g CO2e"),
            ("saved by heat", f"{facts.saved_carbon_footprint_heat_gC02eq:.3f} g CO2e"),
            (
                "saved in all",
                f"{facts.saved_carbon_footprint_compute_heat_gC02eq:.3f} g CO2e"
                f" ({facts.saved_carbon_footprint_percent:.1f} %)",
            ),
            ("PUE", f"{facts.PUE:g}"),
            ("ERE", f"{facts.ERE:g}"),
            ("ERF", f"{facts.ERF:g}"),
            ("WUE", f"{facts.WUE:g} L/kWh"),
        ]
    )


def _print_table(table: CarbonTable, *, as_json: bool) -> None:
    rows = [
        {**asdict(centre), "kind": "data centre", "intensity": table.intensity(centre)}
        for centre in table.datacenters.values()
    ]
    rows += [
        {"name": name, "kind": "grid", "grid": name, "intensity": intensity}
        for name, intensity in table.grids.items()
    ]
    print_rows(_COLUMNS, rows, as_json=as_json)
