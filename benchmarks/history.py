"""How long looks into the past take: `python -m benchmarks.history`.

A day of 1,000 VMs at a time, each living some hours, with their jobs and a beat every 30 s, made
in the database directly. Then each metric over the whole day in buckets of a minute, once warm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from remuda.cli.plotting import write_png
from remuda.client import Client
from remuda.config import load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import migrate, pool_life
from remuda.models.database import make_engine
from remuda.models.history import METRICS

POOLS = 10
LIVES = 4  # of a VM's place, one after the other
_FILL = """
    INSERT INTO vms (pool_id, image_id, name, slots, provider_id, state, created_at, submitted_at,
                     running_at, state_changed_at, halted_at, price)
    SELECT p.id, p.image_id, 'vm-' || n || '-' || l, 2, 'vm-' || n || '-' || l,
           CASE WHEN l = :lives THEN 'RUNNING' ELSE 'HALTED' END, t, t, t + interval '30 s', t,
           CASE WHEN l < :lives THEN t + make_interval(secs => :span * 0.9) END, 0.1
    FROM generate_series(1, :vms) AS n, generate_series(1, :lives) AS l
    JOIN LATERAL (SELECT now() - make_interval(secs => :span * (:lives + 1 - l - (n % 97) / 97.0))) AS x(t)
      ON true
    JOIN LATERAL (SELECT id, image_id FROM pools ORDER BY id OFFSET n % :pools LIMIT 1) AS p ON true;
    INSERT INTO events (kind, subject_id, from_state, to_state, at)
    SELECT 'vm', v.id, s.old, s.new, s.at FROM vms v CROSS JOIN LATERAL (VALUES
      (NULL, 'NEW', v.created_at), ('NEW', 'SUBMITTED', v.submitted_at),
      ('SUBMITTED', 'RUNNING', v.running_at), ('RUNNING', 'STOPPING', v.halted_at - interval '10 s'),
      ('STOPPING', 'HALTED', v.halted_at)) AS s(old, new, at)
    WHERE s.at IS NOT NULL AND (s.new <> 'STOPPING' OR v.halted_at IS NOT NULL);
    INSERT INTO job_specs (command) VALUES ('["true"]');
    INSERT INTO jobs (pool_id, owner_id, spec_id, state, epoch, submitted_at, started_at, ended_at,
                      exit_code, reason)
    SELECT v.pool_id, o.id, s.id, 'TERMINATED', 1, t - make_interval(secs => random() * 300),
           t, t + make_interval(secs => random() * 600), 0,
           CASE WHEN random() < 0.05 THEN 'NONZERO' ELSE 'OK' END
    FROM vms v, owners o, job_specs s, generate_series(1, :jobs) AS n
    JOIN LATERAL (SELECT now() - make_interval(secs => (random() + n * 0) * :lives * :span)) AS y(t)
      ON true
    WHERE o.name = 'bench';
    INSERT INTO leases (vm_id, owner_id, for_jobs, slots, released_at)
    SELECT v.id, o.id, true, 2, now() FROM vms v, owners o;
    INSERT INTO attempts (job_id, epoch, vm_id, lease_id, state, cores, placed_at, started_at,
                          ended_at, wall_s, reason)
    SELECT j.id, 1, v.id, l.id, 'COLLECTED', 1, j.started_at, j.started_at, j.ended_at,
           extract(epoch FROM j.ended_at - j.started_at), j.reason
    FROM jobs j JOIN LATERAL (SELECT min(id) + j.id % count(*) AS id FROM vms) AS w ON true
    JOIN vms v ON v.id = w.id JOIN leases l ON l.vm_id = v.id;
    INSERT INTO heartbeats (vm_id, at, load, running_jobs, memory_free_bytes, disk_free_bytes,
                            uptime_s, cores, transferred_files, transferred_bytes)
    SELECT v.id, b.at, random() * 4, 2, (1::bigint << 30) + (random() * (1 << 30))::bigint,
           1::bigint << 36, 1, 2, n, n * 1000000
    FROM vms v CROSS JOIN LATERAL (
      SELECT v.running_at + make_interval(secs => :beat * n) AS at, n
      FROM generate_series(0, (:lives * :span / :beat)::int) AS n) AS b
    WHERE b.at < coalesce(v.halted_at, now()) AND b.at < now() ORDER BY b.at;
"""


def main() -> None:
    """Fill a database and print a line for each metric."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vms", type=int, default=1000, help="at a time")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--jobs", type=int, default=25, help="of each life of a VM")
    parser.add_argument("--beat", type=float, default=30.0, help="seconds between two")
    parser.add_argument("--png", type=Path, help="draw what was found, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remuda-bench-") as folder:
        settings = load_settings(data_dir=Path(folder, "data"), state_dir=Path(folder, "state"))
        url = ensure_server(settings)
        engine = make_engine(url)
        try:
            migrate.upgrade(engine)
            began = time.perf_counter()
            _fill(engine, options)
            print(f"filled in {time.perf_counter() - began:.0f} s")
            settings = load_settings(
                database_url=url, data_dir=Path(folder, "data"), state_dir=Path(folder, "state")
            )
            with Client(settings, owner="bench", start=False) as client:
                _measure(client, options)
        finally:
            engine.dispose()
            stop_server(settings)


def _fill(engine: Engine, options: argparse.Namespace) -> None:
    values = {
        "vms": options.vms,
        "pools": POOLS,
        "lives": LIVES,
        "span": options.hours * 3600 / LIVES,
        "jobs": options.jobs,
        "beat": options.beat,
    }
    with engine.begin() as connection:
        for number in range(POOLS):
            pool_life.insert_pool(
                connection,
                f"pool-{number}",
                owner="bench",
                provider="noop",
                backend="noop",
                fields={"slots_per_vm": 2},
            )
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
        for statement in _FILL.split(";\n"):
            if statement.strip():
                connection.execute(text(statement), values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        for table in ("vms", "events", "jobs", "attempts", "heartbeats"):
            count = connection.scalar(text(f"SELECT count(*) FROM {table}"))
            print(f"{count} {table}")


def _measure(client: Client, options: argparse.Namespace) -> None:
    since, found = timedelta(hours=options.hours), []
    for name, metric in METRICS.items():
        for by in (None, metric.by[0]):
            client.history(name, by=by, since=timedelta(minutes=5))
            began = time.perf_counter()
            told = client.history(name, by=by, since=since, bucket_s=60)
            took_s = time.perf_counter() - began
            divided = f" by {by}" if by else ""
            print(f"{name}{divided}: {took_s:.2f} s, {len(told.times)} buckets")
            if name in ("running_vms", "waiting_jobs", "utilisation", "wait_s", "load"):
                found.append(client.history(name, by=by, since=since))
    if options.png:
        write_png(found, options.png)


if __name__ == "__main__":
    main()
