"""`remuda completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click

from remuda.cli.base import Command

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Command, short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the completion script of bash, zsh or fish (by default: of $SHELL).

    \b
        eval "$(remuda completion bash)"                                  # in ~/.bashrc
        eval "$(remuda completion zsh)"                                   # in ~/.zshrc
        remuda completion fish > ~/.config/fish/completions/remuda.fish
    """
    from click.shell_completion import get_completion_class

    name = shell or Path(os.environ.get("SHELL", "")).name
    complete = get_completion_class(name) if name in _SHELLS else None
    if complete is None:
        raise click.UsageError(f"say which shell: {', '.join(_SHELLS)}", ctx)
    root = ctx.find_root()
    script = complete(root.command, {}, root.info_name or "remuda", "_REMUDA_COMPLETE")
    click.echo(script.source(), nl=False)
