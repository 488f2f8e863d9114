"""What a user asks to run, checked the moment it is written down, before anything is touched."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from remuda.checks import seconds, shown, text_of, whole
from remuda.errors import BadInput

MAX_CORES = 100_000
MAX_MEMORY_BYTES = 1 << 53
MAX_WALLTIME_S = 315_360_000  # ten years
MAX_PRIORITY = 1000
MAX_RETRIES = 999
MAX_COMMAND_BYTES = 128 << 10  # what Linux takes as one argument
MAX_ENVIRONMENT_BYTES = 128 << 10
MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255
INDEX = "{index}"


@dataclass(frozen=True, slots=True)
class Input:
    """A file to bring: `local` here, relative to the directory of the submit; `name` there."""

    local: str
    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """A file to bring back: `name` in the job's directory, `local` under its `output_dir`.

    The job may succeed without an `optional` one.
    """

    name: str
    local: str = ""  # empty: as `name`
    optional: bool = False


PathLike: TypeAlias = str | os.PathLike[str]
Inputs: TypeAlias = Iterable[PathLike | Input | tuple[PathLike, str]] | Mapping[str, str]
Outputs: TypeAlias = Iterable[PathLike | Output | tuple[str, PathLike]] | Mapping[str, str]


@dataclass(frozen=True)
class JobSpec:
    """One command with its files and needs; raises BadInput if any of it can never be right.

    `command`: words, or a string that is split as a shell would. No shell runs it, unless `shell`
        is true: then it is one string for `/bin/sh -c`.
    `inputs`: names, (local, name) pairs or a {local: name} mapping; a bare name is both.
    `outputs`: names, (name, local) pairs or a {name: local} mapping.
    `output_dir`: where outputs are copied to; none: they stay in the storage.
    `cores`, `memory_bytes`: its share of a VM. `walltime_s`: it is ended when it takes longer.
    `priority`: -1000 to 1000, higher goes first. `retries`: further attempts after failed ones.
    `join_output`: stderr goes into stdout. `follow`: its output is passed on while it runs.
    `idempotency_key`: submitting the same key again gives the first job.
    """

    command: Sequence[PathLike] | str
    _: KW_ONLY
    name: str = ""
    inputs: Inputs = ()
    outputs: Outputs = ()
    output_dir: PathLike | None = None
    environment: Mapping[str, str] | None = field(default=None, hash=False)
    cores: int = 1
    memory_bytes: int | None = None
    walltime_s: float | None = None
    priority: int = 0
    retries: int = 0
    join_output: bool = False
    idempotency_key: str | None = None
    follow: bool = False
    shell: InitVar[bool] = False

    def __post_init__(self, shell: bool) -> None:
        put = object.__setattr__
        put(self, "command", _command(self.command, shell=shell))
        put(self, "name", text_of("name", self.name))
        put(self, "cores", whole("cores", self.cores, least=1, most=MAX_CORES))
        put(
            self,
            "priority",
            whole("priority", self.priority, least=-MAX_PRIORITY, most=MAX_PRIORITY),
        )
        put(self, "retries", whole("retries", self.retries, least=0, most=MAX_RETRIES))
        for flag in ("join_output", "follow"):
            if not isinstance(getattr(self, flag), bool):
                raise BadInput(f"{flag} must be True or False, not {shown(getattr(self, flag))}")
        if self.memory_bytes is not None:
            memory = whole("memory_bytes", self.memory_bytes, least=1, most=MAX_MEMORY_BYTES)
            put(self, "memory_bytes", memory)
        if self.walltime_s is not None:
            put(self, "walltime_s", seconds("walltime_s", self.walltime_s, most=MAX_WALLTIME_S))
        if self.idempotency_key is not None:
            put(self, "idempotency_key", text_of("idempotency_key", self.idempotency_key, least=1))
        if self.environment is not None:
            put(self, "environment", _environment(self.environment))
        if self.output_dir is not None:
            put(self, "output_dir", _local("output_dir", self.output_dir))
        put(self, "inputs", _inputs(self.inputs) if self.inputs != () else ())
        put(self, "outputs", _outputs(self.outputs) if self.outputs != () else ())

    if TYPE_CHECKING:

        @property
        def words(self) -> tuple[str, ...]: ...
        @property
        def input_files(self) -> tuple[Input, ...]: ...
        @property
        def output_files(self) -> tuple[Output, ...]: ...

    else:
        # The fields hold these types once they are checked.
        words = property(lambda self: self.command)
        input_files = property(lambda self: self.inputs)
        output_files = property(lambda self: self.outputs)

    @property
    def templated(self) -> bool:
        """Whether `{index}` occurs where an array fills it in."""
        return any(
            INDEX in text
            for text in (
                *self.words,
                self.name,
                str(self.output_dir or ""),
                *(part for i in self.input_files for part in (i.local, i.name)),
                *(part for o in self.output_files for part in (o.name, o.local)),
            )
        )

    def filled(self, index: int | str) -> JobSpec:
        """Return the spec of one job of an array, `{index}` filled in everywhere."""
        text = str(index)
        return replace(
            self,
            command=tuple(word.replace(INDEX, text) for word in self.words),
            name=self.name.replace(INDEX, text),
            inputs=tuple(
                Input(i.local.replace(INDEX, text), i.name.replace(INDEX, text))
                for i in self.input_files
            ),
            outputs=tuple(
                Output(o.name.replace(INDEX, text), o.local.replace(INDEX, text), o.optional)
                for o in self.output_files
            ),
            output_dir=str(self.output_dir).replace(INDEX, text) if self.output_dir else None,
        )


def _path(what: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise BadInput(f"{what} must be a path, not {shown(value)}")
    return value


def _local(what: str, value: Any) -> str:
    return text_of(what, _path(what, value), least=1, most=MAX_PATH_BYTES)


def _command(value: Any, *, shell: bool) -> tuple[str, ...]:
    if not isinstance(shell, bool):
        raise BadInput(f"shell must be True or False, not {shown(shell)}")
    if shell:
        if not isinstance(value, str):
            raise BadInput("with shell=True the command must be one string")
        if not value.strip():
            raise BadInput("the command is empty")
        value = ("/bin/sh", "-c", value)
    elif isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise BadInput(f"the command cannot be split into words: {error}") from None
    elif not isinstance(value, (list, tuple)):
        raise BadInput(
            f"the command must be a list of words or a string, not {shown(value)}",
            hint='for example ["python3", "sim.py"]',
        )
    if not value:
        raise BadInput("the command is empty", hint='for example ["python3", "sim.py"]')
    words = []
    for place, word in enumerate(value):
        what = f"command[{place}]"
        if not isinstance(word, (str, os.PathLike)):
            raise BadInput(f"{what} must be text, not {shown(word)}", hint="use str()")
        words.append(text_of(what, _path(what, word), most=MAX_COMMAND_BYTES - 1))
    if not words[0]:
        raise BadInput("the command is empty: its first word is an empty string")
    total = sum(len(word.encode()) + 1 for word in words)
    if total > MAX_COMMAND_BYTES:
        raise BadInput(
            f"the command has {total} bytes, at most {MAX_COMMAND_BYTES} are possible",
            hint="pass much data in an input file",
        )
    return tuple(words)


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BadInput(f"environment must be a mapping, not {shown(value)}")
    checked = {}
    total = 0
    for key, text in value.items():
        name = text_of("the name of an environment variable", key, least=1)
        if "=" in name:
            raise BadInput(f"the environment variable {shown(name)} must not hold '='")
        checked[name] = text_of(f"environment[{name!r}]", text, most=MAX_ENVIRONMENT_BYTES)
        total += len(name.encode()) + len(checked[name].encode()) + 2
    if total > MAX_ENVIRONMENT_BYTES:
        raise BadInput(
            f"environment has {total} bytes, at most {MAX_ENVIRONMENT_BYTES} are possible"
        )
    return checked


def _name(what: str, value: Any, *, hint: str = "") -> str:
    """Return a path inside the job's directory, `.` and doubled slashes taken out."""
    text = text_of(what, _path(what, value), least=1, most=MAX_PATH_BYTES)
    if text.startswith("/"):
        raise BadInput(f"{what} {shown(text)} must not be absolute", hint=hint)
    if text.endswith("/"):
        raise BadInput(f"{what} {shown(text)} must be a file, not a directory")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadInput(f"{what} {shown(text)} must not hold '..'", hint=hint)
    if not parts:
        raise BadInput(f"{what} {shown(text)} names no file")
    for part in parts:
        if len(part.encode()) > MAX_COMPONENT_BYTES:
            raise BadInput(
                f"{what} {shown(text)} has a part of {len(part.encode())} bytes, "
                f"at most {MAX_COMPONENT_BYTES} are possible"
            )
    return "/".join(parts)


def _items(what: str, value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise BadInput(f"{what} must be a list of files, not {shown(value)}", hint="use [...]")
    return value


def _inputs(value: Any) -> tuple[Input, ...]:
    found = []
    for item in _items("inputs", value):
        if isinstance(item, Input):
            item = (item.local, item.name)
        if isinstance(item, tuple):
            if len(item) != 2:
                raise BadInput(f"an input is a name or a (local, name) pair, not {item!r:.80}")
            found.append(Input(_local("an input's local path", item[0]), _name("input", item[1])))
        else:
            hint = "give a pair (local path, name in the job)"
            found.append(Input(_path("input", item), _name("input", item, hint=hint)))
    _distinct("input", [file.name for file in found])
    return tuple(found)


def _outputs(value: Any) -> tuple[Output, ...]:
    found = []
    for item in _items("outputs", value):
        optional = False
        if isinstance(item, Output):
            optional = item.optional
            item = (item.name, item.local) if item.local else item.name
        if isinstance(item, tuple):
            if len(item) != 2:
                raise BadInput(f"an output is a name or a (name, local) pair, not {item!r:.80}")
            file = Output(_name("output", item[0]), _name("output", item[1]), optional)
        else:
            name = _name("output", item)
            file = Output(name, name, optional)
        if "*" in file.name:
            raise BadInput(
                f"output {shown(file.name)}: patterns are not possible",
                hint="name each file, or pack them into one",
            )
        found.append(file)
    _distinct("output", [file.name for file in found])
    _distinct("local path of an output", [file.local for file in found])
    return tuple(found)


def _distinct(what: str, names: list[str]) -> None:
    """Refuse a name twice, and one that is a directory of another."""
    seen = set(names)
    if len(seen) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadInput(f"{what} {shown(twice)} is there twice")
    for name in names:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in seen:
                raise BadInput(f"{what} {shown(above)} cannot be a file and hold {shown(name)}")
