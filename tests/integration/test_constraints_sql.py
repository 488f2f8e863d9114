"""Constraints are judged twice, by the database and by the decider: always alike."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Engine, text

from remuda.constraints import Hardware, constraints_of, unmet
from remuda.models.waiting import CONSTRAINTS_MET


def test_the_database_and_the_decider_judge_constraints_alike(engine: Engine) -> None:
    """Each constraint, met and not, on machines of which more or less is known."""
    machines = [
        Hardware(),
        Hardware(cores=4, memory_bytes=16, disk_bytes=9, gpus=1, ssd=True, cpu_model="a%b_C"),
        Hardware(cores=3, memory_bytes=8, ssd=False, cpu_model="AMD EPYC (tm)\n7"),
    ]
    wishes: list[dict[str, Any]] = [
        {},
        {"gpu": True},
        {"gpu": False},
        {"ssd": True},
        {"ssd": False},
    ]
    wishes += [{"cpu_model": p} for p in ("*", "a%b_c", "a%*", "?%?_?", "*epyc*", "_____", "*\\*")]
    wishes += [
        {f"{side}_{what}": number}
        for what, numbers in {
            "cores": (3, 4, 5),
            "memory_bytes": (8, 16, 17),
            "memory_per_core_bytes": (2, 3, 4),
        }.items()
        for number in numbers
        for side in ("min", "max")
    ]
    wishes += [{"min_disk_bytes": 9}, {"min_disk_bytes": 10}, {"min_cores": 1, "gpu": True}]
    with engine.begin() as connection:
        for machine in machines:
            for wish in wishes:
                told = connection.scalar(
                    text(
                        f"""SELECT {CONSTRAINTS_MET} FROM (SELECT CAST(:wish AS jsonb)) j(constraints),
                              (SELECT CAST(:cores AS bigint), CAST(:memory AS bigint),
                                 CAST(:disk AS bigint), CAST(:gpu AS boolean), CAST(:ssd AS boolean),
                                 CAST(:cpu AS text))
                                r(cores, memory_bytes, disk_bytes, gpu, ssd, cpu_model)"""
                    ),
                    {
                        "wish": json.dumps(constraints_of(wish)),
                        "cores": machine.cores,
                        "memory": machine.memory_bytes,
                        "disk": machine.disk_bytes,
                        "gpu": machine.gpus > 0,
                        "ssd": machine.ssd,
                        "cpu": machine.cpu_model,
                    },
                )
                assert told == (not unmet(machine, architecture=None, constraints=wish)), wish
