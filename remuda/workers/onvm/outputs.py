"""The outputs of a job that has ended: its sandbox searched for what was asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from remuda.patterns import ANY_OUTPUT, Found, Pattern, TooMany, is_pattern, walk
from remuda.workers.onvm.sandbox import STAMP_NS, find_file

MOST = 50_000  # files of one attempt
MOST_SEEN = 200_000  # files, and directories, looked through for them
MOST_NAME_BYTES = 2000  # of one name; of all together a thousand times that
SHOWN = 1000


class Outputs:
    """What is there of the outputs; `problem` says in words what is not as it should be."""

    def __init__(self) -> None:
        """Begin with none."""
        self.files: dict[str, int] = {}
        self.executable: list[str] = []
        self.missing: list[str] = []
        self.problem = ""
        self.bytes = 0

    def add(self, name: str, status: os.stat_result) -> None:
        """Take a file; once, however many patterns it matches."""
        if name in self.files:
            return
        self.files[name] = status.st_size
        self.bytes += len(os.fsencode(name))
        if status.st_mode & stat.S_IXUSR:
            self.executable.append(name)


def find_outputs(folder: str, wanted: Iterable[tuple[str, bool]], inputs: set[str]) -> Outputs:
    """Return the outputs a job left in its sandbox, of (name or pattern, optional) each.

    Only regular files below it count, or links to such. Of ANY_OUTPUT, inputs as they were brought
    are left out. More files than can be told of, or a name no table can hold, are a problem.
    """
    found = Outputs()
    patterns = []
    for name, optional in wanted:
        if is_pattern(name):
            patterns.append((name, optional, Pattern(name)))
            continue
        try:
            found.add(name, os.stat(find_file(folder, name) or ""))
        except OSError:
            if not optional:
                found.missing.append(name)
    if patterns:
        try:
            _match(found, folder, patterns, inputs)
        except TooMany:
            found.problem = f"more than {MOST} output files, or too many to look through: pack them"
            found.files, found.executable = {}, []
    if found.missing and not found.problem:
        told = ", ".join(_missed(folder, name) for name in found.missing)
        found.problem = f"missing output: {told:.{SHOWN}}"
    return found


def _missed(folder: str, name: str) -> str:
    """Return a missing output's name, and what it should have been called if it is a folder."""
    if is_pattern(name) or not os.path.isdir(os.path.join(folder, name)):
        return name
    return f"{name} (it is a folder: ask for {name}/)"


def _match(
    found: Outputs, folder: str, patterns: list[tuple[str, bool, Pattern]], inputs: set[str]
) -> None:
    """Walk the sandbox once for all patterns."""
    matched: set[str] = set()

    def enter(name: str) -> bool:
        return any(pattern.within(name) for _, _, pattern in patterns)

    there = [] if os.path.islink(folder) else walk(folder, enter, most=MOST_SEEN)
    for file in there:
        meant = [
            (text, optional)
            for text, optional, pattern in patterns
            if (file.folder or pattern.matches(file.name))
            and not (text == ANY_OUTPUT and _as_brought(file, inputs))
        ]
        if not meant:
            continue
        if file.status is not None and _tellable(file.name):
            found.add(file.name, file.status)
            matched.update(text for text, _ in meant)
            if len(found.files) > MOST or found.bytes > 1000 * MOST_NAME_BYTES:
                raise TooMany
        elif (file.status is not None or file.folder) and not all(o for _, o in meant):
            # What cannot be had, or told of, must not be lost unsaid. Anything else is no file.
            shown = os.fsencode(file.name).decode("ascii", "backslashreplace")
            found.missing.append(f"{shown or '.':.200}")
    found.missing += [
        text
        for text, optional, _ in patterns
        if not optional and text != ANY_OUTPUT and text not in matched
    ]


def _as_brought(file: Found, inputs: set[str]) -> bool:
    """Tell whether a file is an input nobody has written to since it was copied in."""
    status = file.status
    return (
        status is not None
        and file.name in inputs
        and status.st_mtime_ns % 1_000_000_000 == STAMP_NS
    )


def _tellable(name: str) -> bool:
    """Tell whether a name can be sent and kept: UTF-8, and not endless."""
    try:
        return len(name.encode()) <= MOST_NAME_BYTES
    except UnicodeEncodeError:
        return False
