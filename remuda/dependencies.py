"""What a job waits for: other jobs, or arrays of them, that end in a certain way.

Of a submit call the jobs may be named by each other: by `name`, or as the spec itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput

CONDITIONS = ("success", "failure", "end")
QUANTIFIERS = ("all", "any")
_MOST_ID = 2**63 - 1
_SHOWN_IN_A_CIRCLE = 6

Afters: TypeAlias = Iterable[Any] | Any


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array, by its id."""

    id: int


@dataclass(frozen=True, slots=True, eq=False)
class After:
    """One thing a job waits for; raises BadInput for what can never be right.

    `target`: a job (a Job or its id), a spec of the same call (itself or its `name`), or an Array.
    `condition`: it succeeds, ends otherwise ("failure", which cancelled is too), or just ends.
    `quantifier`: of an array "all" of its jobs must, or "any" one.
    `each`: job by job: the job of index i waits for the array's job of index i.
    """

    target: Any
    condition: str = "success"
    quantifier: str = "all"
    _: KW_ONLY
    each: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _target(self.target))
        for what, value, allowed in (
            ("condition", self.condition, CONDITIONS),
            ("quantifier", self.quantifier, QUANTIFIERS),
        ):
            if value not in allowed:
                raise BadInput(f"{what} must be {' or '.join(allowed)}, not {shown(value)}")
        of_array = isinstance(self.target, ArrayRef)
        if not isinstance(self.each, bool):
            raise BadInput(f"each must be True or False, not {shown(self.each)}")
        if not of_array and (self.each or self.quantifier != "all"):
            raise BadInput("each and quantifier are for arrays", hint="client.array(id)")
        if self.each and self.quantifier != "all":
            raise BadInput('with each there is no quantifier "any": each job waits for one')


def after_of(value: Any) -> tuple[After, ...]:
    """Return what a job waits for, checked; raises BadInput."""
    if isinstance(value, (After, str, bytes, int, Mapping)) or not isinstance(value, Iterable):
        value = (value,)
    return tuple(_after(item) for item in value)


def _after(item: Any) -> After:
    """Return an item as an After; a mapping holds its fields, `array` being a target as well."""
    if isinstance(item, After):
        return item
    if not isinstance(item, Mapping):
        return After(item)
    given = dict(item)
    if "array" in given:
        given["target"] = ArrayRef(
            whole("the id of an array", given.pop("array"), least=1, most=_MOST_ID)
        )
    unknown = sorted(map(str, set(given) - {"target", "condition", "quantifier", "each"}))
    if unknown or "target" not in given:
        raise BadInput(
            f"a job cannot wait for {shown(item)}" + (f" with {unknown[0]}" if unknown else ""),
            hint='{"target": "prep", "condition": "end"}, {"array": 12, "quantifier": "any"}',
        )
    return After(**given)


def _target(value: Any) -> Any:
    """Return a job's id, a name, an ArrayRef or a spec."""
    if isinstance(value, ArrayRef) or _is_spec(value):
        return value
    if isinstance(value, str):
        return text_of("the name of a job to wait for", value, least=1)
    if isinstance(value, bool):
        raise BadInput(f"a job cannot wait for {shown(value)}")
    if isinstance(value, int):
        return whole("the id of a job to wait for", value, least=1, most=_MOST_ID)
    number = getattr(value, "id", None)
    if type(number) is not int:
        raise BadInput(
            f"a job cannot wait for {shown(value)}",
            hint="give a Job or its id, an Array, or a spec of the same call or its name",
        )
    return ArrayRef(number) if getattr(value, "is_array", False) else number


def _is_spec(value: Any) -> bool:
    return hasattr(value, "after") and hasattr(value, "command")


@dataclass(frozen=True, slots=True)
class Edge:
    """The job at `child` of a call waits for an id, an array, or the job at `place` of the call."""

    child: int
    condition: str
    quantifier: str = "all"
    place: int | None = None
    parent_id: int | None = None
    array_id: int | None = None
    index: int | None = None  # of an array job by job: the job of this index


class Plan:
    """The dependencies of one submit call, gathered spec by spec, then resolved as a whole."""

    def __init__(self) -> None:
        """Begin with none."""
        self.indices: list[int | None] = []  # of all jobs; their number is that of the jobs
        self.keyed = False  # some have idempotency keys
        self._noted = 0
        self._waiting: list[tuple[int, int | None, tuple[After, ...]]] = []
        self._named: dict[str, int] = {}  # -1: more than one
        self._specs: dict[int, tuple[weakref.ref[Any], int]] = {}

    def add(self, spec: Any, *, index: int | None = None, known: bool = False) -> None:
        """Take the next job; `known`: it was submitted before and keeps what it waited for."""
        place = len(self.indices)
        self.indices.append(index)
        self.keyed = self.keyed or spec.idempotency_key is not None
        if spec.name:
            self._named[spec.name] = -1 if spec.name in self._named else place
        if spec.after and not known:
            self._waiting.append((place, index, spec.after))

    def note(self, spec: Any) -> None:
        """Remember the next job's spec as it was given, for those that wait for it."""
        key = id(spec)
        there = self._specs.get(key)
        place = self._noted if there is None or there[0]() is not spec else -1
        self._noted += 1
        # It leaves with the spec, so that a long generator's are not kept, nor ids mistaken.

        def forget(_: object) -> None:
            self._specs.pop(key, None)

        self._specs[key] = (weakref.ref(spec, forget), place)

    def edges(self) -> list[Edge]:
        """Return what waits for what.

        Raises BadInput for a name or spec that is not in the call, or there twice, and for jobs
        that wait for each other in a circle, naming it.
        """
        found = [
            self._edge(place, index, after)
            for place, index, afters in self._waiting
            for after in afters
        ]
        _refuse_circles(found, {place: name for name, place in self._named.items()})
        return found

    def _edge(self, child: int, index: int | None, after: After) -> Edge:
        target = after.target
        if isinstance(target, int):
            return Edge(child, after.condition, parent_id=target)
        if isinstance(target, ArrayRef):
            if after.each and index is None:
                raise BadInput(
                    f"each: only a job of an array waits for array {target.id} index by index",
                    hint="submit_array with the same indices",
                )
            return Edge(
                child,
                after.condition,
                after.quantifier,
                array_id=target.id,
                index=index if after.each else None,
            )
        return Edge(child, after.condition, place=self._place(target))

    def _place(self, target: Any) -> int:
        if isinstance(target, str):
            place = self._named.get(target)
            what = f"a job named {shown(target)}"
        else:
            there = self._specs.get(id(target))
            place = there[1] if there is not None and there[0]() is target else None
            what = f"the spec {shown(target.name)}" if target.name else "a spec"
        if place is None:
            raise BadInput(
                f"{what} is waited for, but not submitted in the same call",
                hint="for jobs submitted before give their ids",
            )
        if place < 0:
            raise BadInput(
                f"{what} is waited for, and there is more than one in the call",
                hint="give the jobs names of their own",
            )
        return place


def _refuse_circles(edges: Iterable[Edge], names: Mapping[int, str]) -> None:
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for edge in edges:
        if edge.place is not None:
            sorter.add(edge.child, edge.place)
            if edge.child == edge.place:
                raise BadInput(f"job {_called(edge.child, names)} waits for itself")
    try:
        sorter.prepare()
    except CycleError as error:
        # Each is one that the next waits for; told the other way round.
        circle = [_called(place, names) for place in reversed(error.args[1])]
        if len(circle) > _SHOWN_IN_A_CIRCLE:
            left_out = f"... {len(circle) - _SHOWN_IN_A_CIRCLE} more ..."
            circle = [*circle[: _SHOWN_IN_A_CIRCLE - 1], left_out, circle[-1]]
        raise BadInput(f"jobs wait for each other in a circle: {' → '.join(circle)}") from None


def _called(place: int, names: Mapping[int, str]) -> str:
    return repr(names[place]) if place in names else f"number {place}"


def parse_after(text: str) -> After:
    """Return what `12`, `12:failure`, `name:end`, `array:3`, `array:3:any:end`, `array:3:each` say.

    Raises BadInput.
    """
    return _parsed(iter(text.split(":")), text)


def _parsed(words: Iterator[str], text: str) -> After:
    first = next(words)
    of_array = first == "array"
    number = next(words, "") if of_array else first
    if of_array and not (number.isascii() and number.isdigit()):
        raise BadInput(f"{shown(text)} names no array", hint="array:12, array:12:any")
    numeric = number.isascii() and number.isdigit() and len(number) < 20
    target: Any = int(number) if numeric else number
    if of_array:
        target = ArrayRef(whole("the id of an array", target, least=1, most=_MOST_ID))
    more: dict[str, Any] = {}
    for word in words:
        if word in CONDITIONS and "condition" not in more:
            more["condition"] = word
        elif word in QUANTIFIERS and "quantifier" not in more:
            more["quantifier"] = word
        elif word == "each" and "each" not in more:
            more["each"] = True
        else:
            raise BadInput(
                f"{shown(text)}: {shown(word)} says nothing here",
                hint=f"known: {', '.join((*CONDITIONS, *QUANTIFIERS, 'each'))}",
            )
    return After(target, **more)
