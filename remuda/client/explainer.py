"""What the client offers of explanations: why a job is where it is, and when it may start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.client import explaining, fitting
from remuda.client.jobs import Job
from remuda.models import explanation

if TYPE_CHECKING:
    from remuda.client.context import Context


class Explaining:
    """The part of the client that explains jobs."""

    _context: Context

    def why(self, job: Job | int) -> explaining.Explanation:
        """Return why the job is where it is, the strongest reason first, and when it may start."""
        job_id = job.id if isinstance(job, Job) else job
        half_life_s = self._context.settings.usage_half_life_s
        facts = self._context.read(
            lambda c: explanation.explain_facts(c, job_id, half_life_s=half_life_s)
        )
        for pool in facts["pools"]:
            pool["memory_bytes"] = fitting.machine_memory(self._context, pool["pool"])
            pool["here"] = fitting.architecture_here(self._context, pool["pool"])
        return explaining.explain_job(facts)

    def explain(self, job: Job | int) -> list[str]:
        """Tell in sentences why the job is where it is, and what it waits for; see `why`."""
        return self.why(job).sentences()
