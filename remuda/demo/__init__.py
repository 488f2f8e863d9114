"""`remuda demo`: the main job end to end, on this machine, in less than a minute.

A picture is cut into tiles; each tile is a job with files in and out, on an elastic pool that grows
from nothing and goes back to nothing. With `chaos`, a VM is pulled half-way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from remuda.client import Client
from remuda.config import load_settings
from remuda.demo import picture
from remuda.demo.chaos import pull_a_plug
from remuda.demo.progress import Monitor
from remuda.demo.report import plot, summary
from remuda.embedded import server_status
from remuda.errors import ConfigError, JobFailed, RemudaError
from remuda.spec import JobSpec
from remuda.system import take_down

TILE_SCRIPT = Path(__file__).with_name("tile.py")
_DRAWN_WITH = ("matplotlib", "PIL")  # only at its end, but what is lacking is told at its beginning


def run(*, tiles: int = 64, chaos: bool = False, out: Path | None = None) -> int:
    """Render the picture; return 0 only if every tile is right and the pool is back at zero.

    `tiles` is a square number of 4 to 1024. Results go to the folder `out`, made if needed. What
    had to be started for it is stopped again.
    """
    if lacking := [name for name in _DRAWN_WITH if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"the demo draws with {' and '.join(_DRAWN_WITH)}, and there is no {lacking[0]} here",
            hint="pip install 'remuda[plot]'",
        )
    settings = load_settings()
    was_up = not settings.embedded or server_status(settings).running
    try:
        return _run(tiles, chaos=chaos, out=out)
    finally:
        if not was_up:
            take_down(settings)


def _run(tiles: int, *, chaos: bool, out: Path | None) -> int:
    scene = picture.scene(tiles)
    folder = (out or Path("remuda-demo")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    scene_file = folder / "scene.json"
    scene_file.write_text(json.dumps(scene))
    console = Console(stderr=True)
    began = time.monotonic()
    with Client() as client:
        slots = max(2, os.cpu_count() or 2)
        name = f"demo-{os.getpid()}"
        pool = client.create_pool(
            name, provider="local", slots_per_vm=1, heartbeat_s=1, stalling_interval_s=5
        )
        pool.setup_elastic(
            minimum_total_slots=0,
            maximum_total_slots=slots,
            minimum_idle_slots=0,
            minimum_idle_time_seconds=1,
            resize_factor=1.0,
            resize_period=1,
        )
        pool.submit()
        places = picture.places(scene)
        monitor = Monitor(client, pool, total=len(places), console=console)
        with monitor:
            jobs = client.submit_many(
                (_job(scene_file, column, row, folder) for column, row in places),
                pool=pool,
                name="tiles",
            )
            place_of = dict(zip((job.id for job in jobs), places, strict=True))
            data: dict[tuple[int, int], bytes] = {}
            failed: list[str] = []
            pulled = not chaos
            for done, job in enumerate(client.as_completed(jobs, timeout_s=300), start=1):
                try:
                    data[place_of[job.id]] = job.result().outputs["tile.rgb"].read_bytes()
                except (JobFailed, KeyError, OSError) as error:
                    failed.append(f"{job.name}: {error}")
                if not pulled and done >= len(jobs) // 3:
                    pulled = pull_a_plug(client, pool, console)
            monitor.jobs_are_done()
            back_at_zero = monitor.wait_for_zero(timeout_s=30)
        wrong = [place for place in places if not picture.is_right(scene, place, data.get(place))]
        rerun = [job for job in client.jobs(pool=pool, limit=len(jobs)) if job.attempts > 1]
        pool.close()
        try:
            pool.wait_closed(timeout_s=15)
        except RemudaError as error:
            console.print(f"[red]the pool did not close: {error}")
            back_at_zero = False
    image = picture.assemble(scene, data, folder / "picture.png")
    chart = plot(
        monitor.samples, folder / "timeline.png", title=f"{len(jobs)} tiles on {slots} VMs"
    )
    good = not wrong and not failed and back_at_zero and (bool(rerun) or not chaos)
    console.print(
        summary(
            tiles=len(jobs),
            wrong=len(wrong),
            rerun=len(rerun),
            samples=monitor.samples,
            seconds=time.monotonic() - began,
            back_at_zero=back_at_zero,
            paths=[image, chart, folder / "tiles"],
        )
    )
    for line in failed[:5]:
        console.print(f"[red]failed: {line}")
    if chaos and not rerun:
        console.print("[red]the pulled VM took no job with it: nothing was shown to run again")
    return 0 if good else 1


def _job(scene_file: Path, column: int, row: int, folder: Path) -> JobSpec:
    return JobSpec(
        [sys.executable, "tile.py", "scene.json", str(column), str(row), "tile.rgb"],
        name=f"tile-{column}-{row}",
        inputs=[(str(TILE_SCRIPT), "tile.py"), (str(scene_file), "scene.json")],
        outputs=["tile.rgb"],
        output_dir=folder / "tiles" / f"{column}-{row}",
        retries=1,
    )
