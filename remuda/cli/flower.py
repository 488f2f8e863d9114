"""`remuda flower`: become Flower, asking for a password and remembering what it has seen."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from remuda.cli.base import Command
from remuda.cli.processes import PASS_ON, become
from remuda.errors import BadInput

_USER = "remuda"
#: Options, and variables of the environment, by which Flower is told who may see it.
_ACCESS = ("auth", "basic_auth", "auth_provider")
_DEFAULTS = {
    "address": "127.0.0.1",
    "port": "5555",
    "persistent": "true",
    "state_save_interval": "60000",
    "max_tasks": "20000",
    "purge_offline_workers": "600",
    "tasks_columns": "name,state,args,kwargs,result,worker,received,runtime,uuid",
}


@click.command(
    "flower",
    cls=Command,
    context_settings=PASS_ON,
    short_help="Be Flower, the web view of VMs, jobs and Celery.",
)
@click.option(
    "--auth-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Who may use it: user:password, one a line.  [default: made in the state directory]",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTIONS]...")
def flower(auth_file: Path | None, flower_options: tuple[str, ...]) -> None:
    """Run `celery -A remuda.tasks flower` in the foreground, on http://127.0.0.1:5555.

    Options of Flower are passed on and win over the ones set here, as FLOWER_* of the environment
    do:

    \b
        remuda flower                        # user remuda, password made at the first start
        remuda flower --port=8080 --auth-file /etc/remuda/flower-users
        remuda flower --address=0.0.0.0 --certfile=tls.crt --keyfile=tls.key

    What it has seen it keeps in the state directory. docs/flower.md tells of TLS, other ways to log
    in, and what its /metrics and /healthcheck leave open.
    """
    from remuda.config import load_settings
    from remuda.embedded.daemon import private_dir

    settings = load_settings()
    given = {word.lstrip("-").split("=", 1)[0].replace("-", "_") for word in flower_options}
    given |= {name[7:].lower() for name in os.environ if name.startswith("FLOWER_")}
    folder = private_dir(settings.state_dir / "flower")
    if auth_file is not None or not given.intersection(_ACCESS):
        path = auth_file or folder / "auth"
        users = read_users(path) if auth_file or path.exists() else make_user(path)
        os.environ["FLOWER_BASIC_AUTH"] = ",".join(users)  # not an argument: those can be seen
        click.echo(f"users and passwords are in {path}", err=True)
    defaults = {**_DEFAULTS, "db": str(folder / "state")}
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in defaults.items()
        if name not in given
    ]
    become("flower", *options, *flower_options)


def make_user(path: Path) -> list[str]:
    """Write a file with one user and a random password, readable by its owner only; return it."""
    user = f"{_USER}:{secrets.token_urlsafe(18)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_users(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from None
    with open(descriptor, "w") as file:
        file.write(user + "\n")
    return [user]


def read_users(path: Path) -> list[str]:
    """Return the lines "user:password" of a file; raises BadInput, never telling a password."""
    try:
        text = path.read_bytes()[: 1 << 16].decode()
        readable = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInput(f"cannot read the users in {path}: {why}") from None
    if readable:
        raise BadInput(f"others may read {path}", hint=f"chmod 600 {path}")
    users = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password) or "," in line:
            raise BadInput(
                f"line {number} of {path} is not user:password",
                hint="without commas, which Flower takes for the end",
            )
        users.append(line.strip())
    if not users:
        raise BadInput(f"{path} names no user", hint="user:password, one a line")
    return users
