"""`python -m remuda.tasks worker|beat`: the processes of one machine, ready in half the time.

They are what `celery -A remuda.tasks worker` and `beat` run. Celery's command loads Flower and its
own shell first, whatever it is to do: a third of the start, and 20 MB of memory.
"""

from __future__ import annotations

import argparse

from celery.utils.nodenames import host_format

from remuda.tasks.app import app


def main() -> int:
    """Run a worker or beat until a signal ends it; return the exit code."""
    parser = argparse.ArgumentParser(prog="remuda.tasks", description=__doc__)
    parser.add_argument("kind", choices=("worker", "beat"))
    parser.add_argument("--hostname", default="celery@%h", help="of the worker; %%h: the machine's")
    parser.add_argument("--loglevel", default="INFO")
    asked = parser.parse_args()
    if asked.kind == "beat":
        app.Beat(loglevel=asked.loglevel, quiet=True).run()
        return 0
    worker = app.Worker(
        hostname=host_format(asked.hostname),
        loglevel=asked.loglevel,
        without_mingle=True,  # there are no others
        without_gossip=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    raise SystemExit(main())
