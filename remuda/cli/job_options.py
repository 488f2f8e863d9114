"""The options that `run` and `job submit` share, and the JobSpec made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from remuda.cli.types import DURATION, SIZE, Assignment, Input

if TYPE_CHECKING:
    from remuda.spec import JobSpec

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class SpecOptions:
    """What the command line says of a job; the fields are the options of `job_options`."""

    pool: str | None
    name: str
    cores: int
    memory: int | None
    walltime: float | None
    input: tuple[str | tuple[str, str], ...]
    output: tuple[str, ...]
    optional_output: tuple[str, ...]
    output_dir: str | None
    env: tuple[tuple[str, str], ...]
    retries: int
    priority: int
    shell: bool

    def spec(self, command: tuple[str, ...], **more: Any) -> JobSpec:
        """Return the spec, `more` being fields of it. Raises BadInput."""
        from remuda.spec import JobSpec
        from remuda.spec_files import Output

        return JobSpec(
            " ".join(command) if self.shell else list(command),
            name=self.name,
            inputs=self._inputs(),
            outputs=[*self.output, *(Output(name, optional=True) for name in self.optional_output)],
            output_dir=self.output_dir,
            environment=dict(self.env),
            cores=self.cores,
            memory_bytes=self.memory,
            walltime_s=self.walltime,
            priority=self.priority,
            retries=self.retries,
            shell=self.shell,
            **more,
        )

    def _inputs(self) -> list[str | tuple[str, str]]:
        # The spec's pairs are (here, there), the option reads "there=here".
        return [item if isinstance(item, str) else (item[1], item[0]) for item in self.input]


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
    click.option("--pool", metavar="POOL", help="The pool it runs on; the default pool if none."),
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
        help="A file put into its working folder. Repeatable.",
    ),
    click.option(
        "--output",
        multiple=True,
        metavar="NAME",
        help="A file it leaves there, to be kept; it fails without it. Repeatable.",
    ),
    click.option(
        "--optional-output",
        multiple=True,
        metavar="NAME",
        help="A file to be kept if it leaves one. Repeatable.",
    ),
    click.option(
        "--output-dir",
        type=click.Path(path_type=str, file_okay=False),
        metavar="DIR",
        help="Where its outputs are copied to when they are asked for.",
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
        default=0,
        show_default=True,
        metavar="N",
        help="Times it is tried again after failing by itself.",
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
]
