"""Look at budgets: warn, stop, and let go on when a new period begins or more may be spent."""

from __future__ import annotations

import logging
import time

from sqlalchemy import Connection

from remuda.models import budgets as models
from remuda.tasks.runtime import Runtime
from remuda.workers.budgets import level_of, stop_reason, whose

log = logging.getLogger(__name__)


def watch_budgets(runtime: Runtime) -> int:
    """Compare what was spent with all budgets; return how many levels changed."""

    def work(connection: Connection) -> list[tuple[str, str, float]]:
        changed: list[tuple[str, str, float]] = []
        now, found = models.to_check(connection)
        for budget in found:
            began = time.monotonic()
            spent = models.spent(connection, budget, now)
            check_s = time.monotonic() - began
            level = level_of(spent, warn=budget["warn"], stop=budget["stop"])
            of = whose(pool=budget["pool"], owner=budget["owner"])
            reason = (
                stop_reason(of, spent=spent, stop=budget["stop"], period=budget["period"])
                if level == "stop"
                else None
            )
            models.note(
                connection, budget, spent=spent, level=level, reason=reason, check_s=check_s
            )
            if level != budget["level"]:
                changed.append((of, level, spent))
        return changed

    changed = runtime.transact(work)
    for of, level, spent in changed:
        tell = log.info if level == "ok" else log.warning
        tell("the budget of %s is at level %s: %.2f spent", of, level, spent)
    return len(changed)
