"""Rows of parameters for an array: given, multiplied out, or read from a CSV or JSONL file."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from remuda.checks import shown, text_of
from remuda.errors import BadInput

Row = dict[str, str]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
MAX_JOBS = 10_000_000  # of one call
_MOST_NAMES = 1000
_MOST_VALUE_BYTES = 64 << 10


def rows_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the rows as text, all with the names of the first; raises BadInput."""
    given: Any = rows
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise BadInput(f"rows must be a list of mappings, not {shown(rows)}")
    return _checked(rows, "row")


def product(parameters: Mapping[str, Iterable[Any]]) -> Iterator[Row]:
    """Yield all combinations of the values, the last name's running fastest; raises BadInput."""
    given: Any = parameters
    if not isinstance(given, Mapping) or not given:
        raise BadInput("parameters must be a mapping of names to lists", hint='{"seed": range(10)}')
    names = _names(parameters)
    values = []
    for name, each in given.items():
        if isinstance(each, (str, bytes)) or not isinstance(each, Iterable):
            raise BadInput(f"parameters[{name!r}] must be a list, not {shown(each)}")
        some = [_value(f"parameters[{name!r}]", v) for v in itertools.islice(each, MAX_JOBS + 1)]
        if not some:
            raise BadInput(f"parameters[{name!r}] is empty")
        values.append(some)
        if math.prod(map(len, values)) > MAX_JOBS:
            raise BadInput(f"one call may submit at most {MAX_JOBS} jobs")
    return (dict(zip(names, row, strict=True)) for row in itertools.product(*values))


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Yield the rows of a file: `.csv` with a line of names, or `.jsonl` with an object a line.

    Raises BadInput naming the line that is wrong.
    """
    file = Path(path)
    kinds = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}
    kind = kinds.get(file.suffix.lower())
    if kind is None:
        raise BadInput(f"{shown(str(file))} is neither .csv nor .jsonl")
    return kind(file)


def _csv(file: Path) -> Iterator[Row]:
    with _open(file) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            names = _names([name.strip() for name in next(reader, [])])
            for values in reader:
                if not values:
                    continue  # an empty line
                if len(values) != len(names):
                    raise BadInput(
                        f"{file}, line {reader.line_num}: {len(values)} values for "
                        f"{len(names)} names"
                    )
                what = f"{file}, line {reader.line_num}"
                yield {n: _value(what, v) for n, v in zip(names, values, strict=True)}
        except csv.Error as error:
            raise BadInput(f"{file}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{file} is not UTF-8") from None


def _jsonl(file: Path) -> Iterator[Row]:
    return _checked(_objects(file), f"{file}, row")


def _objects(file: Path) -> Iterator[Any]:
    with _open(file) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise BadInput(f"{file}, line {number}: not JSON: {error}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{file} is not UTF-8") from None


def _open(file: Path) -> Any:
    try:
        return file.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None


def _checked(rows: Iterable[Any], what: str) -> Iterator[Row]:
    names: list[str] | None = None
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise BadInput(f"{what} {number} must be a mapping of names to values")
        if names is None:
            names = _names(row)
        if len(row) != len(names) or any(name not in row for name in names):
            raise BadInput(f"{what} {number} has not the same names as the first one")
        yield {name: _value(f"{what} {number}, {name}", row[name]) for name in names}


def _names(names: Iterable[Any]) -> list[str]:
    found = list(names)
    for name in found:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise BadInput(f"{shown(name)} is no name of a parameter", hint="for example seed")
        if name == "index":
            raise BadInput("a parameter cannot be called index: {index} is the row's number")
    if not found or len(found) > _MOST_NAMES or len(set(found)) != len(found):
        raise BadInput(f"a row needs 1 to {_MOST_NAMES} parameters of different names")
    return found


def _value(what: str, value: Any) -> str:
    if type(value) is str:
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{what}: {value} is no number a command could read")
    elif isinstance(value, (int, float, str, os.PathLike)):
        text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    elif hasattr(value, "item"):  # a number of numpy's
        return _value(what, value.item())
    else:
        raise BadInput(f"{what} must be text or a number, not {shown(value)}")
    return text_of(what, text, most=_MOST_VALUE_BYTES)


def source(
    rows: Iterable[Mapping[str, Any]] | str | os.PathLike[str] | None,
    parameters: Mapping[str, Iterable[Any]] | None,
    csv: str | os.PathLike[str] | None,
) -> Iterator[Row] | None:
    """Return the rows given in one of these ways, None if in none; raises BadInput for several."""
    if sum(given is not None for given in (rows, parameters, csv)) > 1:
        raise BadInput("an array has rows, parameters, or a csv file, not several of them")
    if parameters is not None:
        return product(parameters)
    if csv is not None:
        return _csv(Path(csv))
    if isinstance(rows, (str, os.PathLike)):
        return read(rows)
    return None if rows is None else rows_of(rows)
