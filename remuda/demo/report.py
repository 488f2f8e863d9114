"""The end of the demo: a table of what happened and a plot of VMs and jobs over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from remuda.demo.progress import Sample

_ALIVE = ("NEW", "SUBMITTED", "WAIT_SSH_CONTEXT", "CONTEXTUALIZING", "RUNNING")


def summary(
    *,
    tiles: int,
    wrong: int,
    rerun: int,
    samples: Sequence[Sample],
    seconds: float,
    back_at_zero: bool,
    paths: Sequence[Path],
) -> Table:
    """Return the table shown at the end."""
    most = max((sum(sample.vms.values()) for sample in samples), default=0)
    table = Table(title="remuda demo", show_header=False, title_justify="left")
    table.add_row("tiles right", f"{tiles - wrong} of {tiles}")
    table.add_row("jobs run again", str(rerun))
    table.add_row("VMs at the most", str(most))
    table.add_row("pool back at zero", "yes" if back_at_zero else "no")
    table.add_row("time", f"{seconds:.1f} s")
    for path in paths:
        table.add_row("result", str(path))
    return table


def plot(samples: Sequence[Sample], target: Path, *, title: str) -> Path:
    """Draw VMs and jobs over time to a PNG; return its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at = [sample.at_s for sample in samples]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    alive = [sum(sample.vms[state] for state in _ALIVE) for sample in samples]
    running = [sample.vms["RUNNING"] for sample in samples]
    above.step(at, alive, where="post", label="alive", color="tab:gray")
    above.fill_between(at, running, step="post", alpha=0.5, label="running", color="tab:green")
    above.set_ylabel("VMs")
    above.set_ylim(bottom=0)
    above.yaxis.get_major_locator().set_params(integer=True)
    above.legend(loc="upper right")
    below.stackplot(
        at,
        [sample.jobs["TERMINATED"] for sample in samples],
        [sample.jobs["RUNNING"] + sample.jobs["TERMINATING"] for sample in samples],
        [sample.jobs["SUBMITTED"] for sample in samples],
        [sample.jobs["NEW"] for sample in samples],
        labels=["ended", "running", "placed", "waiting"],
        colors=["tab:green", "tab:orange", "tab:olive", "lightgray"],
        step="post",
    )
    below.set_ylabel("jobs")
    below.set_xlabel("seconds")
    below.legend(loc="center right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target
