"""The spec of an array and its jobs: `{index}` and the `{names}` of their parameters filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from remuda.checks import shown, text_of
from remuda.errors import BadInput, DataStagingError
from remuda.models.submit import NewSpec
from remuda.spec import INDEX, JobSpec
from remuda.spec_files import filler

_MOST_INDEX = 2**31 - 1
# A value that is right in any name in which one of the same length, or a longer one, was.
_PLAIN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job to submit unless its key was used: its row, or why its inputs cannot be stored."""

    spec: JobSpec
    row: NewSpec | DataStagingError
    index: int | None = None
    params: dict[str, str] | None = None


class Template:
    """Turns indices and rows of parameters into jobs; they share a row wherever that is possible."""

    def __init__(
        self,
        spec: JobSpec,
        stage: Callable[[JobSpec], NewSpec | DataStagingError],
        *,
        names: tuple[str, ...] = (),
    ) -> None:
        """`stage` stores a spec's inputs and gives its row; `names`: those of the parameters."""
        self._spec = spec
        self._stage = stage
        self._shared: NewSpec | DataStagingError | None = None
        self._seen: set[str] = set()
        self._longest = 0
        self._lengths: dict[str, int] = {}
        signs = [INDEX, *(f"{{{name}}}" for name in names)]
        self._differs = any(sign in file.local for file in spec.input_files for sign in signs)
        used = [text for text in _texts(spec) if any(sign in text for sign in signs)]
        if names and not any(sign in text for text in used for sign in signs[1:]):
            raise BadInput(
                f"no parameter of the array ({', '.join(names)}) is used in the spec",
                hint=f"write {{{names[0]}}} where its value goes",
            )
        # Two names could become one: then each row is looked at.
        named = [f.name for f in spec.input_files] + [f.name for f in spec.output_files]
        self._each = len(named) > 1 and any(s in name for name in named for s in signs[1:])

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
        return Candidate(spec, self._common(), number)

    def row(self, number: int, params: dict[str, str]) -> Candidate:
        """Return the job of a row of parameters, the `number`-th; raises BadInput for wrong values."""
        spec = self._keyed(str(number))
        if self._unlike(params) or self._each:
            try:
                spec.filled(number, params)
            except BadInput as error:
                raise BadInput(f"row {number}: {error.message}", hint=error.hint) from None
        if self._differs:
            spec = self._with_files(spec, number, params)
            return Candidate(spec, self._stage(spec), number, params)
        return Candidate(spec, self._common(), number, params)

    def _common(self) -> NewSpec | DataStagingError:
        if self._shared is None:
            self._shared = self._stage(self._spec)
        return self._shared

    def _unlike(self, params: Mapping[str, str]) -> bool:
        """Tell whether a value is unlike those that were found right before."""
        if any(_PLAIN.fullmatch(value) is None for value in params.values()):
            return True
        longer = {n: len(v) for n, v in params.items() if len(v) > self._lengths.get(n, 0)}
        if longer:
            self._lengths |= longer
            try:
                self._spec.filled(_MOST_INDEX, {n: "x" * size for n, size in self._lengths.items()})
            except BadInput:
                self._each = True  # the longest of all do not go together: each row is looked at
        return False

    def _with_files(self, spec: JobSpec, number: int, params: dict[str, str]) -> JobSpec:
        """Fill in the inputs now, which are read now; the rest is filled in when the job starts."""
        fill = filler(number, params)
        inputs = tuple(
            replace(file, local=fill(file.local), name=fill(file.name)) for file in spec.input_files
        )
        if any(fill(file.name) != file.name for file in inputs):
            raise BadInput(
                f"row {number}: the name of an input still holds a parameter when filled in",
                hint="values of it must not hold the names of parameters in braces",
            )
        return replace(spec, inputs=inputs)

    def _keyed(self, text: str) -> JobSpec:
        """Give every job an idempotency key of its own, if the array has one."""
        key = self._spec.idempotency_key
        if key is None:
            return self._spec
        key = key.replace(INDEX, text) if INDEX in key else f"{key}-{text}"
        return replace(self._spec, idempotency_key=key)


def _texts(spec: JobSpec) -> list[str]:
    """Return everything that is filled in."""
    return [
        *spec.words,
        spec.name,
        str(spec.output_dir or ""),
        *(spec.environment or {}).values(),
        spec.workdir,
        *map(str, spec.prologue or ()),
        *map(str, spec.epilogue or ()),
        *(part for i in spec.input_files for part in (i.local, i.name)),
        *(part for o in spec.output_files for part in (o.name, o.local)),
    ]


def _index(index: Any) -> str:
    if isinstance(index, bool) or not isinstance(index, (str, int)):
        raise BadInput(f"an index must be a whole number or text, not {shown(index)}")
    return text_of("an index", str(index), least=1, most=255)


def _with_index(environment: Mapping[str, str] | None, text: str) -> dict[str, str]:
    return {**(environment or {}), "REMUDA_ARRAY_INDEX": text}
