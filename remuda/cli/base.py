"""What the commands are made of: lazy groups, and errors told in a line instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.exceptions import Exit

from remuda.errors import BadInput, RemudaError

INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE: what the shell sees of any tool in `tool | head`

_DEBUG = "remuda.debug"
_FAILURE_CODE = "remuda.failure_code"


class Entry(NamedTuple):
    """Where a command is, as `module` or `module:attribute` of this package, and its one line."""

    target: str
    help: str


def debug_option(*, hidden: bool = True) -> click.Option:
    """Return the `--debug` option: accepted by every command, shown in the root's help."""

    def remember(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted:
            ctx.meta[_DEBUG] = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=remember,
        help="Show tracebacks and log lines.",
    )


class Command(click.Command):
    """A command that takes `--debug`, and may have its own exit code for Remuda's failures."""

    failure_code: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse; a wrong usage exits with the command's own code for failures."""
        if parent is not None and self.failure_code is not None:
            parent.meta[_FAILURE_CODE] = self.failure_code
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, with log lines on stderr under `--debug`."""
        if ctx.meta.get(_DEBUG):
            import logging

            logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        return super().invoke(ctx)


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines, and imports one when it is called."""

    def __init__(
        self, name: str, sections: Mapping[str, Mapping[str, Entry]], **attributes: Any
    ) -> None:
        """Take {heading: {command: entry}}, in the order of the help page."""
        super().__init__(name, **attributes)
        self.sections = sections
        self.entries = {n: entry for part in sections.values() for n, entry in part.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of the help page."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        found = getattr(import_module(f"remuda.cli.{module}"), attribute or module)
        if not isinstance(found, click.Command):
            raise TypeError(f"{entry.target} is not a command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a wrong name is answered with the nearest one."""
        name = args[0]
        if name not in self.entries and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, self.entries, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help page's list from the entries, importing nothing."""
        for heading, part in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, entry.help) for name, entry in part.items()])


class App(LazyGroup):
    """The root group: it turns every outcome into an exit code and at most a few lines."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> Any:
        """Run and exit: 2 for a wrong usage or bad input, 1 for other failures, 130 for Ctrl-C."""
        extra.pop("standalone_mode", None)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.ClickException as error:
            code = _tell_usage(error)
        except (click.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a broken pipe ends it quietly, an error with one line and a hint."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (Exit, click.Abort, click.ClickException, KeyboardInterrupt):
            raise
        except BrokenPipeError:
            silence_stdout()
            raise Exit(BROKEN_PIPE) from None
        except Exception as error:
            if ctx.meta.get(_DEBUG):
                import traceback

                traceback.print_exc()
            code = tell(error)
            raise Exit(ctx.meta.get(_FAILURE_CODE) or code) from None


def tell(error: Exception) -> int:
    """Write the error, and its hint, to stderr; return the exit code it deserves."""
    if isinstance(error, RemudaError):
        _lines(error.message, error.hint)
        return 2 if isinstance(error, BadInput) else 1
    if isinstance(error, OSError):
        _lines(f"{error.filename or 'the system'}: {error.strerror or error}", "")
        return 1
    first = (str(error).strip() or "no message").split("\n", 1)[0]
    _lines(
        f"unexpected {type(error).__name__}: {first}",
        "this is a bug of Remuda; the same command with --debug shows where",
    )
    return 1


def silence_stdout() -> None:
    """Let nothing more be written to a stdout whose reader is gone, not even at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def _tell_usage(error: click.ClickException) -> int:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        path = ctx.command_path if ctx is not None else "remuda"
        _lines(error.format_message().rstrip("."), f"`{path} --help` tells how it is used")
    own = ctx.meta.get(_FAILURE_CODE) if ctx is not None else None
    return int(own or error.exit_code)


def _lines(message: str, hint: str) -> None:
    text = " ".join(message.split("\n"))
    click.echo(f"remuda: error: {text}", err=True)
    if hint:
        click.echo(f"hint: {' '.join(hint.split(chr(10)))}", err=True)
