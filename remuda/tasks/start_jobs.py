"""From the row of a placed attempt to what its runner is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remuda.spec_files import filler
from remuda.workers.backends.base import InputFile, OutputFile, StartJob


def _filled(fill: Callable[[str], str], words: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(map(fill, words))


def start_job(
    row: Mapping[str, Any],
    secrets: Mapping[int, Mapping[str, str]],
    *,
    forced: Mapping[str, str] | None = None,
) -> StartJob:
    """Return an attempt to start, of a row of `starting.to_start`; `secrets`: by pool.

    `forced`: the part of its environment that who runs the workers has set, which goes before all.
    """
    index = row["array_index"]
    fill = filler(index, row["params"])

    return StartJob(
        attempt_id=row["attempt_id"],
        job_id=row["job_id"],
        epoch=row["epoch"],
        command=tuple(fill(word) for word in row["command"]),
        env={
            **row["constants"],
            **(secrets[row["pool_id"]] if row["gets_secrets"] else {}),
            **{n: fill(v) if row["params"] else v for n, v in row["environment"].items()},
            **({} if index is None else {"REMUDA_ARRAY_INDEX": str(index)}),
            **(forced or {}),
        },
        inputs=tuple(
            InputFile(
                name=fill(i["name"]),
                url=i["url"],
                sha256=i["sha256"],
                size=i["size"],
                mode=i["mode"],
            )
            for i in row["inputs"]
        ),
        outputs=tuple(
            OutputFile(name=fill(o["name"]), optional=o.get("optional", False))
            for o in row["outputs"]
        ),
        cores=row["cores"],
        memory_bytes=row["memory_bytes"],
        walltime_s=row["walltime_s"],
        gpus=row["gpus"],
        pin_cpus=row["pin_cpus"],
        workdir=fill(row["workdir"]),
        prologue=_filled(fill, row["prologue"]),
        epilogue=_filled(fill, row["epilogue"]),
        follow=row["follow"],
        join=row["join_output"],
        output_limit_bytes=row["output_limit_bytes"],
    )
