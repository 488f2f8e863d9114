"""The files that inputs mean on this machine: names as they are, patterns and directories looked up."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from remuda.errors import DataStagingError
from remuda.patterns import Found, Pattern, TooMany, fixed_part, is_pattern, walk
from remuda.spec_files import Input, is_url, name_inside

__all__ = ["MOST_FILES", "FoundInput", "found_inputs"]

MOST_FILES = 100_000  # inputs of one job
_MOST_SEEN = 1_000_000


@dataclass(frozen=True, slots=True)
class FoundInput:
    """A single file: its name in the job, its path here or URL, and how to call it in messages."""

    name: str
    path: str
    shown: str


def found_inputs(inputs: Iterable[Input], here: str) -> list[FoundInput]:
    """Return every single file that is meant, in an order that is always the same.

    `here`: where relative paths start. Raises DataStagingError naming what is missing, is no file,
    or leads out of where it was looked for; and for a name that would be there twice.
    """
    files: list[FoundInput] = []
    for item in inputs:
        for found in _of(item, here):
            files.append(found)
            if len(files) > MOST_FILES:
                raise _too_many(item)
    _distinct([(file.name, file.shown) for file in files])
    return files


def _of(item: Input, here: str) -> Iterator[FoundInput]:
    if is_url(item.local):
        yield FoundInput(item.name, item.local, item.local)
        return
    # What `..` means is left to the file system.
    path = os.path.join(here, item.local)
    prefix = item.name.removeprefix("./")
    if os.path.isdir(path):
        yield from _tree(item, path, f"{prefix.rstrip('/')}/" if prefix else "")
    elif is_pattern(item.local) and not os.path.lexists(path):
        yield from _matching(item, here, prefix)
    else:
        base = os.path.basename(path)
        name = prefix + base if item.name.endswith("/") else item.name
        yield FoundInput(name, path, item.local)


def _matching(item: Input, here: str, prefix: str) -> Iterator[FoundInput]:
    fixed = fixed_part(item.local)
    root = os.path.join(here, fixed or ".")
    pattern = Pattern(item.local[len(fixed) :])
    if not os.path.isdir(root):
        raise DataStagingError(f"input {item.local!r:.300}: there is no directory {fixed!r}")
    some = False
    for found in _walk(item, root, pattern, shown=fixed):
        some = True
        yield FoundInput(prefix + found.name, found.path, fixed + found.name)
    if not some:
        raise DataStagingError(
            f"no file matches the input {item.local!r:.300}",
            hint="relative paths start where you submit",
        )


def _tree(item: Input, path: str, prefix: str) -> Iterator[FoundInput]:
    """Yield the files of a whole directory; an empty one has none."""
    for found in _walk(item, path, Pattern("**"), shown=item.local):
        shown = os.path.join(item.local, found.name)
        yield FoundInput(prefix + found.name, found.path, shown)


def _walk(item: Input, root: str, pattern: Pattern, *, shown: str) -> Iterator[Found]:
    """Yield the files meant; raises DataStagingError for anything meant that is no file.

    `shown`: how to call `root` in messages.
    """
    try:
        for found in walk(root, pattern.within, most=_MOST_SEEN):
            if not (found.folder or pattern.matches(found.name)):
                continue
            if found.status is None or not stat.S_ISREG(found.status.st_mode):
                where = os.path.join(shown, found.name) or item.local
                raise DataStagingError(
                    f"input {where!r:.300}: {found.problem}", hint="name each file that is wanted"
                )
            name_inside("input", found.name)
            yield found
    except TooMany:
        raise DataStagingError(
            f"input {item.local!r:.300}: more than {_MOST_SEEN} files to look through"
        ) from None


def _too_many(item: Input) -> DataStagingError:
    return DataStagingError(
        f"input {item.local!r:.300}: more than {MOST_FILES} files", hint="pack them into one"
    )


def _distinct(names: list[tuple[str, str]]) -> None:
    """Refuse a name twice, and one that would be a directory of another."""
    seen: dict[str, str] = {}
    for name, shown in names:
        if name in seen:
            raise DataStagingError(
                f"inputs {seen[name]!r:.300} and {shown!r:.300} would both be {name!r:.300}",
                hint="give one of them another name",
            )
        seen[name] = shown
    for name in seen:
        above = name.rpartition("/")[0]
        while above:
            if above in seen:
                raise DataStagingError(
                    f"input {above!r:.300} cannot be a file and hold {name!r:.300}"
                )
            above = above.rpartition("/")[0]
