"""The `remuda` command: thin functions over the client, loaded only when they are called."""

from remuda.cli.app import main

__all__ = ["main"]
