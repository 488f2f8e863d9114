"""The options that `run` and `job submit` share, and the JobSpec made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from remuda.cli.types import DURATION, SIZE, Assignment, Input, JsonValue, Output, Policy, inputs_of

if TYPE_CHECKING:
    from remuda.retries import RetryPolicy
    from remuda.spec import JobSpec

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class SpecOptions:
    """What the command line says of a job; the fields are the options of `job_options`."""

    pool: tuple[str, ...]
    name: str
    cores: int
    memory: int | None
    walltime: float | None
    input: tuple[str | tuple[str, str], ...]
    output: tuple[str | tuple[str, str], ...]
    optional_output: tuple[str | tuple[str, str], ...]
    output_dir: str | None
    no_overwrite: bool
    output_limit: int | None
    env: tuple[tuple[str, str], ...]
    retries: int | None
    retry_policy: RetryPolicy | None
    priority: int
    shell: bool
    gpus: int
    arch: str | None
    constraint: tuple[tuple[str, Any], ...]
    wait_for_resources: bool | None
    sandbox: str
    tag: tuple[str, ...]
    pin_cpus: bool
    max_queue_time: float | None
    deferrable: bool
    workdir: str
    prologue: str | None
    epilogue: str | None

    @property
    def pools(self) -> str | list[str] | None:
        """The pool it goes to, or those it may go to in order of preference; None: the default."""
        names = [name for names in self.pool for name in names.split(",")]
        return names[0] if len(names) == 1 else names or None

    def spec(self, command: tuple[str, ...], **more: Any) -> JobSpec:
        """Return the spec, `more` being fields of it. Raises BadInput."""
        from remuda.spec import JobSpec

        if self.retries is not None and self.retry_policy is not None:
            raise click.UsageError("give one of --retries and --retry-policy")
        return JobSpec(
            " ".join(command) if self.shell else list(command),
            name=self.name,
            inputs=inputs_of(self.input),
            outputs=self._outputs(),
            output_dir=self.output_dir,
            overwrite=not self.no_overwrite,
            output_limit_bytes=self.output_limit,
            environment=dict(self.env),
            cores=self.cores,
            memory_bytes=self.memory,
            walltime_s=self.walltime,
            priority=self.priority,
            retries=self.retries or 0,
            # None asked for: not those of the pool's policy either.
            retry={"max_retries": 0} if self.retries == 0 else self.retry_policy,
            shell=self.shell,
            gpus=self.gpus,
            architecture=self.arch,
            constraints=dict(self.constraint) or None,
            sandbox=self.sandbox,
            tags=self.tag,
            pin_cpus=self.pin_cpus,
            max_queue_s=self.max_queue_time,
            deferrable=self.deferrable,
            workdir=self.workdir,
            prologue=self.prologue,
            epilogue=self.epilogue,
            wait_for_resources=self.wait_for_resources,
            **more,
        )

    def _outputs(self) -> list[Any]:
        from remuda.spec_files import Output as Wanted

        pairs = [item if isinstance(item, tuple) else (item, "") for item in self.optional_output]
        return [*self.output, *(Wanted(name, place, optional=True) for name, place in pairs)]


def take(options: Mapping[str, Any]) -> SpecOptions:
    """Return the shared options among a command's parameters."""
    names = [field.name for field in dataclasses.fields(SpecOptions)]
    return SpecOptions(**{name: options[name] for name in names})


def job_options(function: F) -> F:
    """Add the shared options."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--pool",
        multiple=True,
        metavar="POOL[,POOL]",
        help="The pool it runs on; of several the first with room.  [default: the default pool]",
    ),
    click.option("--name", default="", metavar="NAME", help="A name to find it by."),
    click.option("--cores", default=1, show_default=True, metavar="N", help="Slots it takes."),
    click.option("--memory", type=SIZE, help="Memory it takes: 512M, 2G."),
    click.option(
        "--walltime", type=DURATION, help="It is ended after this time: 90s, 10m, 1h30m, 2d."
    ),
    click.option(
        "--input",
        type=Input(),
        multiple=True,
        help="A file put into its working folder; or a folder, a pattern ('data/*.csv'), a URL. "
        "Repeatable.",
    ),
    click.option(
        "--output",
        type=Output(),
        multiple=True,
        help="A file it leaves there, to be kept; it fails without it. 'out/' is a whole folder, "
        "'*.csv' a pattern, '**' all; PLACE may be a URL. Repeatable.",
    ),
    click.option(
        "--optional-output",
        type=Output(),
        multiple=True,
        help="A file to be kept if it leaves one. Repeatable.",
    ),
    click.option(
        "--output-dir",
        type=click.Path(path_type=str, file_okay=False),
        metavar="DIR",
        help="Where its outputs are copied to when they are asked for.",
    ),
    click.option(
        "--no-overwrite",
        is_flag=True,
        help="Refuse to copy outputs where one of those files is there already.",
    ),
    click.option(
        "--output-limit",
        type=SIZE,
        help="Of a longer stdout or stderr only the head and the tail are kept: 1M.",
    ),
    click.option(
        "--env",
        type=Assignment(from_environment=True),
        multiple=True,
        metavar="NAME[=VALUE]",
        help="An environment variable of it; a bare NAME passes yours on. Repeatable.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 999),
        metavar="N",
        help="Times it is tried again after failing by itself.  [default: as its pool says, or 0]",
    ),
    click.option(
        "--retry-policy",
        type=Policy(),
        metavar="FILE|JSON",
        help="When, how often and with how much memory it is tried again: "
        '\'{"max_retries": 3, "delay_s": 10}\'; see docs/retries.md.',
    ),
    click.option(
        "--priority",
        type=click.IntRange(-1000, 1000),
        default=0,
        show_default=True,
        metavar="P",
        help="Higher goes first.",
    ),
    click.option("--shell", is_flag=True, help="COMMAND is a line for sh, not words."),
    click.option("--gpus", default=0, metavar="N", help="GPUs it takes."),
    click.option("--arch", metavar="ARCH", help="What its machine is: x86_64, aarch64."),
    click.option(
        "--constraint",
        type=JsonValue(),
        multiple=True,
        help="What its machine has: min_memory_bytes=68719476736, ssd=true, cpu_model=*EPYC*; see "
        "docs/requirements.md. Repeatable.",
    ),
    click.option(
        "--sandbox",
        default="",
        metavar="NAME",
        help="Whom it may share a VM with, in a pool that isolates.",
    ),
    click.option("--tag", multiple=True, metavar="TAG", help="A word to find it by. Repeatable."),
    click.option(
        "--wait-for-resources/--no-wait-for-resources",
        default=None,
        help="It starts on a VM with the newest resources of its pool.  [default: as the pool says]",
    ),
    click.option("--pin-cpus", is_flag=True, help="It gets CPUs of its own."),
    click.option(
        "--max-queue-time", type=DURATION, help="It is ended if it has not started by then."
    ),
    click.option(
        "--deferrable",
        is_flag=True,
        help="Within --max-queue-time it may wait for a greener or cheaper hour.",
    ),
    click.option(
        "--workdir", default="", metavar="DIR", help="The folder in its sandbox that it runs in."
    ),
    click.option(
        "--prologue",
        metavar="CMD",
        help="A command run before it, as part of it: words, no line of a shell.",
    ),
    click.option("--epilogue", metavar="CMD", help="Likewise after it, however it ended."),
]
