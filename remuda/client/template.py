"""The spec of an array and its jobs, `{index}` filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from remuda.checks import shown, text_of
from remuda.errors import BadInput, DataStagingError
from remuda.models.submit import NewSpec
from remuda.spec import INDEX, JobSpec

_MOST_INDEX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job to submit unless its key was used: its row, or why its inputs cannot be stored."""

    spec: JobSpec
    row: NewSpec | DataStagingError
    index: int | None = None


class Template:
    """Turns indices into jobs; the numbered ones share a row wherever that is possible."""

    def __init__(
        self, spec: JobSpec, stage: Callable[[JobSpec], NewSpec | DataStagingError]
    ) -> None:
        """`stage` stores a spec's inputs and gives its row."""
        self._spec = spec
        self._stage = stage
        self._shared: NewSpec | DataStagingError | None = None
        self._seen: set[str] = set()
        self._longest = 0
        self._differs = any(INDEX in file.local for file in spec.input_files)

    def candidate(self, index: int | str) -> Candidate:
        """Return the job of an index; raises BadInput for a wrong index, or one given before."""
        text = str(index) if type(index) is int else _index(index)
        if text in self._seen:
            raise BadInput(f"index {shown(index)} is there twice")
        self._seen.add(text)
        number = index if isinstance(index, int) and abs(index) <= _MOST_INDEX else None
        spec = self._keyed(text)
        if number is None or self._differs:
            spec = spec.filled(text)
            if number is None:
                spec = replace(spec, environment=_with_index(spec.environment, text))
            return Candidate(spec, self._stage(spec), number)
        if len(text) > self._longest:
            self._longest = len(text)
            spec.filled(text)  # refuses names that become too long
        if self._shared is None:
            self._shared = self._stage(self._spec)
        return Candidate(spec, self._shared, number)

    def _keyed(self, text: str) -> JobSpec:
        """Give every job an idempotency key of its own, if the array has one."""
        key = self._spec.idempotency_key
        if key is None:
            return self._spec
        key = key.replace(INDEX, text) if INDEX in key else f"{key}-{text}"
        return replace(self._spec, idempotency_key=key)


def _index(index: Any) -> str:
    if isinstance(index, bool) or not isinstance(index, (str, int)):
        raise BadInput(f"an index must be a whole number or text, not {shown(index)}")
    return text_of("an index", str(index), least=1, most=255)


def _with_index(environment: Mapping[str, str] | None, text: str) -> dict[str, str]:
    return {**(environment or {}), "REMUDA_ARRAY_INDEX": text}
