"""One way to ask for rows: filters, order, pages, counts by group, distinct values.

A kind of thing (VMs, images, jobs) is one subquery with one row for each, whatever it is joined
with, and a list of its fields. Filters are conditions on these fields; unknown ones are refused.

A filter's value says how it is compared:

    value           equal; text with `*` matches as a pattern; None: has none
    [a, b]          one of them (list, set, frozenset; an empty one matches nothing)
    (low, high)     from low up to, but without, high; None: no bound on that side
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection

from remuda.checks import seconds, shown, text_of, whole
from remuda.errors import BadInput
from remuda.models.database import rows

MOST_VALUES = 100_000  # of one filter
MOST_ROWS = 2**31
_MOST_AGE_S = 315_360_000.0
_BIG = 2**63 - 1

FieldType = Literal["text", "whole", "real", "time", "flag"]
States: TypeAlias = "type[StrEnum] | None"


@dataclass(frozen=True, slots=True)
class Field:
    """A column that can be asked for; `states`: the only values there are."""

    type: FieldType
    states: States = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: the subquery of its rows, one each with an `id` and `born`, and its fields."""

    name: str
    rows: str
    fields: Mapping[str, Field]
    born: str = "created_at"


def fields(
    *,
    text: str = "",
    whole: str = "",
    real: str = "",
    time: str = "",
    flag: str = "",
    state: type[StrEnum],
) -> dict[str, Field]:
    """Return fields by name, given as words for each type."""
    words: dict[FieldType, str] = {
        "text": text,
        "whole": whole,
        "real": real,
        "time": time,
        "flag": flag,
    }
    found = {name: Field(type_) for type_, names in words.items() for name in names.split()}
    return {"state": Field("text", state), **found}


def field_of(kind: Kind, name: object) -> Field:
    """Return a field; raises BadInput naming those there are."""
    found = kind.fields.get(name) if isinstance(name, str) else None
    if found is None:
        raise BadInput(
            f"{kind.name} have no field {shown(name)}", hint=f"fields: {', '.join(kind.fields)}"
        )
    return found


class Selection:
    """Conditions on the rows of a kind; checked as they are added."""

    def __init__(self, kind: Kind) -> None:
        """Take all rows."""
        self.kind = kind
        self.clauses: list[str] = []
        self.values: dict[str, Any] = {}

    def where(self, filters: Mapping[str, Any]) -> Selection:
        """Add filters by field; see the module. Raises BadInput, naming the field."""
        for name, value in filters.items():
            self.clauses.append(self._condition(name, field_of(self.kind, name), value))
        return self

    def aged(self, *, older_s: float | None = None, newer_s: float | None = None) -> Selection:
        """Keep those made at least `older_s` seconds ago, or less than `newer_s` seconds ago."""
        for what, sign, value in (("older_s", "<=", older_s), ("newer_s", ">", newer_s)):
            if value is not None:
                age = self._bind(seconds(what, value, most=_MOST_AGE_S, zero=True))
                born = self.kind.born
                self.clauses.append(f"{born} {sign} now() - make_interval(secs => {age})")
        return self

    def get(
        self,
        connection: Connection,
        *,
        sort: str | Sequence[str] | None = None,
        start: int = 0,
        limit: int | None = None,
    ) -> Sequence[Mapping[str, Any]]:
        """Return the rows in order, `limit` of them from number `start` on.

        `sort`: fields, the most important first, `-` before one for descending; missing values
        come last, equals by id.
        """
        order = self._order(sort)
        page = f"OFFSET {whole('start', start, least=0, most=MOST_ROWS)}"
        if limit is not None:
            page += f" LIMIT {whole('limit', limit, least=0, most=MOST_ROWS)}"
        return rows(
            connection, f"SELECT * FROM {self._from()} ORDER BY {order} {page}", **self.values
        )

    def count(self, connection: Connection) -> int:
        """Return how many there are."""
        [found] = rows(connection, f"SELECT count(*) AS n FROM {self._from()}", **self.values)
        return int(found["n"])

    def count_by(self, connection: Connection, by: Sequence[str]) -> list[dict[str, Any]]:
        """Return the combinations of these fields' values that there are, each with its `count`."""
        names = ", ".join(self._names("a group", by))
        statement = f"SELECT {names}, count(*) AS count FROM {self._from()} GROUP BY {names}"
        return [
            dict(row) for row in rows(connection, f"{statement} ORDER BY {names}", **self.values)
        ]

    def distinct(self, connection: Connection, name: str) -> list[Any]:
        """Return the values of a field that there are, in order, without None."""
        field_of(self.kind, name)
        self.clauses.append(f"{name} IS NOT NULL")
        statement = f"SELECT DISTINCT {name} AS value FROM {self._from()} ORDER BY 1"
        return [row["value"] for row in rows(connection, statement, **self.values)]

    def _from(self) -> str:
        where = f" WHERE {' AND '.join(self.clauses)}" if self.clauses else ""
        return f"({self.kind.rows}) AS x{where}"

    def _order(self, sort: str | Sequence[str] | None) -> str:
        words = sort.split(",") if isinstance(sort, str) else list(sort or ())
        for word in words:
            text_of("sort", word)
        names = [word.strip().removeprefix("-") for word in words]
        self._names("sort", names)
        down = [" DESC" if word.strip().startswith("-") else "" for word in words]
        order = [f"{name}{way} NULLS LAST" for name, way in zip(names, down, strict=True)]
        return ", ".join([*order, "id"])

    def _names(self, what: str, names: Sequence[str]) -> list[str]:
        for name in names:
            field_of(self.kind, name)
        if len(set(names)) != len(names):
            raise BadInput(f"{what} names a field twice: {shown(', '.join(names))}")
        return list(names)

    def _condition(self, name: str, field: Field, value: Any) -> str:
        if value is None:
            return f"{name} IS NULL"
        if isinstance(value, tuple):
            return self._range(name, field, value)
        if isinstance(value, (list, set, frozenset)):
            if len(value) > MOST_VALUES:
                raise BadInput(f"{name}: at most {MOST_VALUES} values can be asked for")
            found = [checked(name, field, one) for one in value]
            return f"{name} = ANY(CAST({self._bind(found)} AS {_ARRAYS[field.type]}))"
        if field.type == "text" and field.states is None and "*" in str(value):
            return f"{name} LIKE {self._bind(like(text_of(name, value)))}"
        return f"{name} = {self._bind(checked(name, field, value))}"

    def _range(self, name: str, field: Field, value: tuple[Any, ...]) -> str:
        if len(value) != 2 or field.type == "flag" or field.states:
            raise BadInput(f"{name}: a range is a pair of what can be ordered")
        ends = [None if end is None else checked(name, field, end) for end in value]
        if None not in ends and ends[0] > ends[1]:  # type: ignore[operator]
            raise BadInput(f"{name}: a range goes up, not from {shown(ends[0])}")
        parts = [
            f"{name} {sign} {self._bind(end)}"
            for sign, end in zip((">=", "<"), ends, strict=True)
            if end is not None
        ]
        return " AND ".join(parts) or "true"

    def _bind(self, value: Any) -> str:
        key = f"v{len(self.values)}"
        self.values[key] = value
        return f":{key}"


_ARRAYS = {
    "text": "text[]",
    "whole": "bigint[]",
    "real": "float8[]",
    "time": "timestamptz[]",
    "flag": "boolean[]",
}


def checked(name: str, field: Field, value: Any) -> Any:
    """Return a value the field can be compared with; raises BadInput."""
    if field.states is not None:
        [state] = states_of(field.states, [value]) or [""]
        return state
    if field.type == "text":
        return text_of(name, value)
    if field.type == "whole":
        return whole(name, value, least=-_BIG, most=_BIG)
    if field.type == "flag" and isinstance(value, bool):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if field.type == "real" and number and abs(value) < 1e300:  # neither infinite nor none
        return float(value)
    if field.type == "time" and isinstance(value, datetime) and value.tzinfo is not None:
        return value
    wanted = {
        "real": "a finite number",
        "time": "a datetime with its time zone",
        "flag": "True or False",
    }
    raise BadInput(f"{name} is compared with {wanted[field.type]}, not {shown(value)}")


def read(kind: Kind, name: str, text: str) -> Any:
    """Return the value of a filter written as text: `a,b` one of, `low..high` a range, `none`.

    Times are ISO 8601, in UTC unless they say otherwise. Raises BadInput.
    """
    field = field_of(kind, name)
    if text.lower() == "none":
        return None
    if field.type in ("whole", "real", "time") and ".." in text:
        low, _, high = text.partition("..")
        return tuple(_read(name, field, end) if end else None for end in (low, high))
    if "," in text:
        return [_read(name, field, part.strip()) for part in text.split(",") if part.strip()]
    return _read(name, field, text)


def _read(name: str, field: Field, text: str) -> Any:
    try:
        if field.type == "whole":
            return int(text[:40])
        if field.type == "real":
            return float(text[:40])
        if field.type == "time":
            found = datetime.fromisoformat(text[:40])
            return found if found.tzinfo else datetime.fromisoformat(f"{text[:40]}+00:00")
    except ValueError:
        raise BadInput(f"{name}: {shown(text)} is no {_WORDS[field.type]}") from None
    if field.type == "flag":
        if text.lower() not in ("true", "false", "yes", "no"):
            raise BadInput(f"{name}: {shown(text)} is neither true nor false")
        return text.lower() in ("true", "yes")
    return text.upper() if field.states else text


_WORDS = {"whole": "whole number", "real": "number", "time": "time (2026-01-31T23:59:59)"}


def states_of(kind: type[StrEnum], given: str | Iterable[str] | None) -> list[str] | None:
    """Return the states as a list (None: all); raises BadInput, with those there are."""
    if given is None:
        return None
    names: list[Any] = [given] if isinstance(given, str) else list(given)
    known = kind.__members__
    unknown = [str(name)[:50] for name in names if not (isinstance(name, str) and name in known)]
    if unknown:
        raise BadInput(
            f"there is no state {', '.join(unknown)}", hint=f"states: {', '.join(known)}"
        )
    return [str(name) for name in names]


def like(name: str) -> str:
    """Return the pattern of LIKE for a name in which `*` is any text."""
    plain = name.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return plain.replace("*", "%")
