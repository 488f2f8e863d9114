"""What a user asks to run, checked the moment it is written down, before anything is touched."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from remuda.checks import seconds, shown, text_of, whole
from remuda.constraints import architecture_of, constraints_of, tags_of
from remuda.dependencies import After, Afters, after_of
from remuda.errors import BadInput
from remuda.retries import RetryPolicy, retry_of
from remuda.spec_files import (
    Input,
    Inputs,
    Output,
    Outputs,
    PathLike,
    filler,
    inputs_of,
    local_path,
    name_inside,
    outputs_of,
    path_of,
)

MAX_CORES = 100_000
MAX_MEMORY_BYTES = 1 << 53
MAX_WALLTIME_S = 315_360_000  # ten years
MAX_PRIORITY = 1000
MAX_RETRIES = 999
MAX_GPUS = 1024
MAX_COMMAND_BYTES = 128 << 10  # what Linux takes as one argument
MAX_ENVIRONMENT_BYTES = 128 << 10
INDEX = "{index}"


@dataclass(frozen=True)
class JobSpec:
    """One command with its files and needs; raises BadInput if any of it can never be right.

    `command`: words, or a string that is split as a shell would. No shell runs it, unless `shell`
        is true: then it is one string for `/bin/sh -c`.
    `inputs`: names, (local, name) pairs or a {local: name} mapping; a bare name is both. Patterns
        (`data/*.csv`, `**`), directories and URLs are possible, see `remuda.spec_files`.
    `outputs`: names, (name, local) pairs or a {name: local} mapping; patterns, directories ("out/")
        and ANY_OUTPUT are possible, and URLs to put them at.
    `output_dir`: where outputs are copied to; none: they stay in the storage.
    `cores`, `memory_bytes`: its share of a VM. `walltime_s`: it is ended when it takes longer.
    `priority`: -1000 to 1000, higher goes first. `retries`: further attempts after failed ones.
    `join_output`: stderr goes into stdout. `follow`: its output is passed on while it runs.
    `idempotency_key`: submitting the same key again gives the first job.
    `output_dir`'s files are replaced, unless `overwrite` is false.
    `output_limit_bytes`: of stdout and stderr each; of longer ones the head and the tail are kept.
    `workdir`: the directory inside the sandbox it runs in.
    `prologue`, `epilogue`: commands run before and after it, as part of it.
    `gpus`, `architecture` (as `uname -m` tells), `constraints`: what its VM must have, see
        `remuda.constraints`. `sandbox`: jobs of one share VMs with no others, where the pool says so.
    `tags`: words to find it by. `pin_cpus`: it gets CPUs of its own.
    `max_queue_s`: it is ended, reason QUEUE_TIMEOUT, if it has not started by then.
    `deferrable`: within that time its start may be put off to hours that are greener or cheaper.
    `retry`: a RetryPolicy; `retries=N` is short for one of N + 1 attempts.
    `after`: jobs it waits for, see `remuda.dependencies`.
    `wait_for_resources`: it starts on a VM that has the newest resources of its pool; None: as the
        pool says.
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
    overwrite: bool = True
    output_limit_bytes: int | None = None
    workdir: str = ""
    prologue: Sequence[PathLike] | str | None = None
    epilogue: Sequence[PathLike] | str | None = None
    gpus: int = 0
    architecture: str | None = None
    constraints: Mapping[str, Any] | None = field(default=None, hash=False)
    sandbox: str = ""
    tags: Sequence[str] = ()
    pin_cpus: bool = False
    max_queue_s: float | None = None
    deferrable: bool = False
    retry: RetryPolicy | Mapping[str, Any] | None = field(default=None, hash=False)
    after: Afters = field(default=(), hash=False)
    wait_for_resources: bool | None = None
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
        for flag in ("join_output", "follow", "overwrite", "pin_cpus", "deferrable"):
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
            put(self, "output_dir", local_path("output_dir", self.output_dir))
        self._check_seldom()
        put(self, "inputs", inputs_of(self.inputs) if self.inputs != () else ())
        put(self, "outputs", outputs_of(self.outputs) if self.outputs != () else ())

    def _check_seldom(self) -> None:
        """Check what few jobs have; skipped as a whole by those that have none of it."""
        put = object.__setattr__
        if self.output_limit_bytes is not None:
            limit = whole("output_limit_bytes", self.output_limit_bytes, least=4096, most=1 << 40)
            put(self, "output_limit_bytes", limit)
        wait: Any = self.wait_for_resources
        if wait is not None and not isinstance(wait, bool):
            raise BadInput(f"wait_for_resources must be True, False or None, not {shown(wait)}")
        if self.workdir:
            put(self, "workdir", name_inside("workdir", self.workdir))
        for name in ("prologue", "epilogue"):
            if getattr(self, name) is not None:
                put(self, name, _command(getattr(self, name), shell=False, what=name))
        if self.gpus != 0:
            put(self, "gpus", whole("gpus", self.gpus, least=0, most=MAX_GPUS))
        if self.architecture is not None:
            put(self, "architecture", architecture_of(self.architecture))
        if self.constraints is not None:
            put(self, "constraints", constraints_of(self.constraints))
        if self.sandbox != "":
            put(self, "sandbox", text_of("sandbox", self.sandbox))
        if self.tags != ():
            put(self, "tags", tags_of(self.tags))
        if self.max_queue_s is not None:
            put(self, "max_queue_s", seconds("max_queue_s", self.max_queue_s, most=MAX_WALLTIME_S))
        if self.deferrable and self.max_queue_s is None:
            raise BadInput("deferrable needs max_queue_s: by when the job has to start")
        if self.retry is not None:
            put(self, "retry", retry_of(self.retry))
            if self.retries:
                raise BadInput("give one of retries and retry: a policy says itself how often")
        if self.after != ():
            put(self, "after", after_of(self.after))

    if TYPE_CHECKING:

        @property
        def words(self) -> tuple[str, ...]: ...
        @property
        def input_files(self) -> tuple[Input, ...]: ...
        @property
        def output_files(self) -> tuple[Output, ...]: ...
        @property
        def afters(self) -> tuple[After, ...]: ...

    else:
        # The fields hold these types once they are checked.
        words = property(lambda self: self.command)
        input_files = property(lambda self: self.inputs)
        output_files = property(lambda self: self.outputs)
        afters = property(lambda self: self.after)

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

    def filled(self, index: int | str | None, params: Mapping[str, str] | None = None) -> JobSpec:
        """Return the spec of one job of an array, `{index}` and `{names}` filled in everywhere."""
        fill = filler(index, params)

        def words(command: Any) -> tuple[str, ...] | None:
            return None if command is None else tuple(map(fill, command))

        return replace(
            self,
            command=tuple(map(fill, self.words)),
            name=fill(self.name),
            inputs=tuple(
                replace(i, local=fill(i.local), name=fill(i.name)) for i in self.input_files
            ),
            outputs=tuple(
                replace(o, name=fill(o.name), local=fill(o.local)) for o in self.output_files
            ),
            output_dir=fill(str(self.output_dir)) if self.output_dir else None,
            # Parameters are for the environment too; a literal {index} has always stayed there.
            environment={name: fill(text) for name, text in self.environment.items()}
            if self.environment and params
            else self.environment,
            workdir=fill(self.workdir),
            prologue=words(self.prologue),
            epilogue=words(self.epilogue),
        )


def _command(value: Any, *, shell: bool, what: str = "command") -> tuple[str, ...]:
    if not isinstance(shell, bool):
        raise BadInput(f"shell must be True or False, not {shown(shell)}")
    if shell:
        if not isinstance(value, str):
            raise BadInput("with shell=True the command must be one string")
        if not value.strip():
            raise BadInput(f"the {what} is empty")
        value = ("/bin/sh", "-c", value)
    elif isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise BadInput(f"the {what} cannot be split into words: {error}") from None
    elif not isinstance(value, (list, tuple)):
        raise BadInput(
            f"the {what} must be a list of words or a string, not {shown(value)}",
            hint='for example ["python3", "sim.py"]',
        )
    if not value:
        raise BadInput(f"the {what} is empty", hint='for example ["python3", "sim.py"]')
    words = []
    for place, word in enumerate(value):
        which = f"{what}[{place}]"
        if not isinstance(word, (str, os.PathLike)):
            raise BadInput(f"{which} must be text, not {shown(word)}", hint="use str()")
        words.append(text_of(which, path_of(which, word), most=MAX_COMMAND_BYTES - 1))
    if not words[0]:
        raise BadInput(f"the {what} is empty: its first word is an empty string")
    total = sum(len(word.encode()) + 1 for word in words)
    if total > MAX_COMMAND_BYTES:
        raise BadInput(
            f"the {what} has {total} bytes, at most {MAX_COMMAND_BYTES} are possible",
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
