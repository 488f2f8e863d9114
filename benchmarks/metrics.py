"""`python -m benchmarks.metrics`: what a scrape costs with 100,000 jobs and 1,000 VMs.

On an embedded database of its own; rows are inserted as the system would leave them, half of the jobs
waiting, the others ended.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 0.2

_FILL = """
    INSERT INTO vms (pool_id, image_id, name, slots) SELECT p.id, p.image_id, 'vm' || n, 2
      FROM pools p, generate_series(1, {vms}) AS n WHERE p.name = 'p0';
    UPDATE vms SET pool_id = (SELECT min(id) FROM pools) + id % 20, state = 'SUBMITTED',
      provider_id = id::text;
    UPDATE vms SET state = 'RUNNING', running_at = now(), heartbeat_at = now() - id % 90 * interval '1 s';
    INSERT INTO job_specs (command) VALUES ('["true"]');
    INSERT INTO owners (name) SELECT 'owner' || n FROM generate_series(1, 200) AS n;
    INSERT INTO jobs (pool_id, owner_id, spec_id)
      SELECT (SELECT min(id) FROM pools) + n % 20, (SELECT max(id) FROM owners) - n % 200,
             (SELECT max(id) FROM job_specs) FROM generate_series(1, {jobs}) AS n;
    INSERT INTO leases (vm_id, owner_id, for_jobs, slots)
      SELECT id, (SELECT max(id) FROM owners), true, 2 FROM vms;
    UPDATE jobs SET state = 'SUBMITTED', epoch = 1 WHERE id % 2 = 0;
    INSERT INTO attempts (job_id, epoch, vm_id, lease_id, cores)
      SELECT j.id, 1, l.vm_id, l.id, 1 FROM jobs j
      JOIN leases l ON l.id = (SELECT min(id) FROM leases) + j.id % {vms} WHERE j.id % 2 = 0;
    UPDATE attempts SET state = 'COLLECTED', started_at = now(), ended_at = now(), reason = 'OK',
      exit_code = 0;
    UPDATE jobs SET state = 'TERMINATED', started_at = now(), ended_at = now(), reason = 'OK',
      exit_code = 0 WHERE id % 2 = 0;
"""


def main() -> int:
    """Measure, print, and return 1 when a scrape takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--scrapes", type=int, default=11)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-bench-") as name:
        for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            os.environ[variable] = str(Path(name) / variable.lower())
        from remuda import Client, system
        from remuda.config import load_settings

        settings = load_settings()
        url = system.bring_up(settings, processes=False)
        try:
            with Client(start=False) as client:
                for number in range(20):
                    client.create_pool(f"p{number}", provider="local")
            return measure(url, arguments.jobs, arguments.vms, arguments.scrapes)
        finally:
            system.take_down(settings, timeout_s=30)


def measure(url: str, jobs: int, vms: int, scrapes: int) -> int:
    """Fill the database, scrape it, and tell; return 1 when the median is over the limit."""
    from sqlalchemy import text

    from remuda.metrics.collector import SystemCollector
    from remuda.models.database import make_engine

    engine = make_engine(url, pool_size=1)
    with engine.begin() as connection:
        for statement in _FILL.format(jobs=jobs, vms=vms).split(";\n"):
            if statement.strip():
                connection.execute(text(statement))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    collector = SystemCollector(engine, lambda: None, cache_s=0)
    first, *took = [_scrape_s(collector) for _ in range(scrapes + 1)]
    time.sleep(16)  # until the transitions are settled: a scrape that moves the mark
    moving = _scrape_s(collector)
    settled = statistics.median([_scrape_s(collector) for _ in range(scrapes)])
    engine.dispose()
    verdict = "ok" if settled <= LIMIT_S else "MISSED"
    print(f"{jobs} jobs, {vms} VMs")
    print(f"the exporter's first scrape   {1000 * first:6.0f} ms (counts whole tables)")
    print(f"all transitions just made     {1000 * statistics.median(took):6.0f} ms")
    print(f"moving the mark over them     {1000 * moving:6.0f} ms")
    print(f"a scrape                      {1000 * settled:6.0f} ms   {verdict}")
    return settled > LIMIT_S


def _scrape_s(collector: object) -> float:
    from remuda.metrics.collector import SystemCollector

    assert isinstance(collector, SystemCollector)
    for family in collector.collect():
        if family.name == "remuda_database_up":
            assert family.samples[0].value == 1
        if family.name == "remuda_database_scrape_seconds":
            return float(family.samples[0].value)
    raise AssertionError("no scrape")


if __name__ == "__main__":
    sys.exit(main())
