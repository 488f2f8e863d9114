"""What a simulated job does: `noop` and its options are a small script, anything else succeeds.

    noop [--sleep S] [--exit N | --signal N | --oom] [--stdout TEXT] [--stderr TEXT] [--lines N]
         [--write NAME=TEXT]... [--cat NAME=INPUT,INPUT...]... [--executable NAME]...
         [--print-env NAME]... [--ignore-term]

Output and files are there at once; `--sleep` is the time until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PROGRAM", "Script", "read_script"]

PROGRAM = "noop"
MOST_SLEEP_S = 1_000_000_000
MOST_SIGNAL = 64
MOST_LINES = 1_000_000  # the output is in the worker's own memory


@dataclass(slots=True)
class Script:
    """The steps of one simulated process."""

    sleep_s: float = 0.0
    exit_code: int = 0
    signal: int | None = None
    oom: bool = False
    stdout: str = ""
    stderr: str = ""
    lines: int = 0
    ignore_term: bool = False
    files: list[tuple[str, bytes]] = field(default_factory=list)
    joined: list[tuple[str, list[str]]] = field(default_factory=list)
    executables: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)


def read_script(command: Sequence[str]) -> Script:
    """Return what a command does; one that is wrongly written complains, and exits with 2."""
    script = Script()
    if not command or command[0] != PROGRAM:
        return script
    words = iter(command[1:])
    try:
        for word in words:
            if word == "--oom":
                script.oom = True
            elif word == "--ignore-term":
                script.ignore_term = True
            else:
                _take(script, word, next(words))
    except StopIteration:
        return Script(exit_code=2, stderr="noop: the last option lacks its value\n")
    except ValueError as error:
        return Script(exit_code=2, stderr=f"noop: {error}\n")
    return script


def _within(option: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:  # nor is nan
        raise ValueError(f"{option} takes {least} to {most}, not {value}")
    return value


def _take(script: Script, option: str, value: str) -> None:
    if option == "--sleep":
        script.sleep_s = _within(option, float(value), 0, MOST_SLEEP_S)
    elif option == "--exit":
        script.exit_code = int(value) & 0xFF
    elif option == "--signal":
        script.signal = int(_within(option, int(value), 1, MOST_SIGNAL))
    elif option == "--lines":
        script.lines = int(_within(option, int(value), 0, MOST_LINES))
    elif option == "--stdout":
        script.stdout += value
    elif option == "--stderr":
        script.stderr += value
    elif option == "--executable":
        script.executables.append(value)
    elif option == "--print-env":
        script.variables.append(value)
    elif option in ("--write", "--cat"):
        name, equals, text = value.partition("=")
        if not equals:
            raise ValueError(f"{option} takes NAME=..., not {value!r}")
        if option == "--write":
            script.files.append((name, text.encode()))
        else:
            script.joined.append((name, text.split(",")))
    else:
        raise ValueError(f"unknown option {option!r}")
