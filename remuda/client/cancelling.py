"""Cancel jobs: these, or all that meet some filters, by one statement however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remuda.checks import shown, text_of, whole
from remuda.client.arrays import Array
from remuda.client.jobs import Job
from remuda.errors import BadInput, UnknownArray
from remuda.models import arrays
from remuda.models.cancel import cancel_matching, count_matching, request_cancel
from remuda.models.selecting import states_of
from remuda.models.states import JobState

if TYPE_CHECKING:
    from remuda.client.context import Context

MOST_ID = 2**63 - 1


def cancel_these(context: Context, jobs: Job | int | Iterable[Job | int]) -> int:
    """Have jobs ended, running ones killed; return how many had not ended before."""
    found = [jobs] if isinstance(jobs, (Job, int)) else list(jobs)
    ids = []
    for job in found:
        if isinstance(job, Job):
            ids.append(job.id)
        elif type(job) is int:
            ids.append(whole("a job's id", job, least=1, most=MOST_ID))
        else:
            raise BadInput(f"a list of jobs is needed, not of {shown(job)}")
    touched = context.commit(lambda c: request_cancel(c, ids)) if ids else []
    for job in found:
        if isinstance(job, Job):
            job.forget()
    return len(touched)


def filters_of(
    *,
    pool_id: int | None = None,
    array: Array | int | None = None,
    indices: Iterable[int] | None = None,
    states: str | Sequence[str] | None = None,
    name: str | None = None,
    tag: str | None = None,
    owner: str | None = None,
) -> dict[str, Any]:
    """Return the filters that are given, checked; raises BadInput when none is."""
    number = array.id if isinstance(array, Array) else array
    found = {
        "pool_id": pool_id,
        "array_id": None
        if number is None
        else whole("an array's id", number, least=1, most=MOST_ID),
        "indices": None
        if indices is None
        else [whole("an index", i, least=-(2**31), most=2**31 - 1) for i in indices],
        "states": states_of(JobState, states),
        "name": None if name is None else text_of("name", name, least=1),
        "tag": None if tag is None else text_of("tag", tag, least=1),
        "owner": None if owner is None else text_of("owner", owner, least=1),
    }
    given = {key: value for key, value in found.items() if value is not None}
    if not given:
        raise BadInput(
            "cancel needs jobs, or a filter that says which",
            hint="pool, array, states, name, tag or owner",
        )
    if "indices" in given and "array_id" not in given:
        raise BadInput("indices are those of an array", hint="say which array")
    return given


def cancel_all(context: Context, filters: Mapping[str, Any]) -> int:
    """Have all jobs that meet the filters ended; return how many had not ended before."""
    _known_array(context, filters)
    return len(context.commit(lambda c: cancel_matching(c, **filters)))


def count_all(context: Context, filters: Mapping[str, Any]) -> int:
    """Return how many jobs `cancel_all` would end."""
    _known_array(context, filters)
    return context.read(lambda c: count_matching(c, **filters))


def _known_array(context: Context, filters: Mapping[str, Any]) -> None:
    number = filters.get("array_id")
    if number is not None and not context.read(lambda c: arrays.exists(c, number)):
        raise UnknownArray(f"there is no array {number}", hint="`remuda array list` shows them")
