"""Backups: the database by pg_dump, the storage beside it if it is a folder; and the way back.

    manifest.json   what it is of, and the dump's checksum; written last
    database.dump   pg_dump's custom format
    storage/        the storage's files, as they are there

The database is taken first: all that it tells of is in the storage then, and is copied after.
Files there never change, so a further backup into the same folder copies what is new.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url

from remuda import embedded
from remuda.config import Settings
from remuda.errors import BadInput, ConfigError, DatabaseUnavailable, NotFound, Refused
from remuda.files import sha256_of
from remuda.models import fencing, migrate
from remuda.models.database import make_engine, transact
from remuda.storage import Storage
from remuda.system import database_url, present_revision

__all__ = ["Manifest", "Restored", "make", "read_manifest", "restore"]

FORMAT = 1
MANIFEST, DUMP, STORAGE = "manifest.json", "database.dump", "storage"

T = TypeVar("T")
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is of. `storage_url`: where the files were; `files`: those copied with it."""

    format: int
    release: str
    revision: str
    made_at: str
    dump_bytes: int
    dump_sha256: str
    storage_url: str
    files: int | None


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back, and what was done so that nothing of the time between does harm."""

    manifest: Manifest
    files: int
    moved: int
    fenced: fencing.Fenced


def make(settings: Settings, folder: Path, *, progress: Progress = lambda _: None) -> Manifest:
    """Write a backup into `folder`, which is new, empty, or holds an earlier one of the same system.

    The system may be at work meanwhile. Raises BadInput for a folder of something else, Refused if
    there is no schema, DatabaseUnavailable, ConfigError when pg_dump is missing.
    """
    earlier = _of_backups(folder)
    if earlier is not None and earlier.storage_url != settings.storage:
        raise BadInput(
            f"{folder} holds a backup of another system, whose storage is {earlier.storage_url}",
            hint="choose another folder",
        )
    url = database_url(settings)
    revision = _with_engine(url, present_revision)
    if revision is None:
        raise Refused("the database is empty: there is nothing to back up")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = folder / f"{DUMP}.new"
    progress("the database")
    _postgres("pg_dump", url, "--format=custom", "--no-owner", f"--file={aside}")
    files = None
    root = Storage(settings.storage).folder
    if root is not None:
        progress(f"the storage at {root}")
        files = _copy_new(root, folder / STORAGE)
    manifest = Manifest(
        format=FORMAT,
        release=importlib.metadata.version("remuda"),
        revision=revision,
        made_at=datetime.now(UTC).isoformat(),
        dump_bytes=aside.stat().st_size,
        dump_sha256=_checksum(aside),
        storage_url=settings.storage,
        files=files,
    )
    os.replace(aside, folder / DUMP)
    _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def restore(
    settings: Settings,
    folder: Path,
    *,
    replace: bool = False,
    gap: int = fencing.GAP,
    progress: Progress = lambda _: None,
) -> Restored:
    """Bring a backup back, migrate it to this release and fence it (`remuda.models.fencing`).

    The database must be empty, or hold no pool and no job, unless `replace`. The files come to
    the storage in force, wherever they were before. Raises Refused while workers are at work or the
    database is in use, BadInput for a damaged backup.
    """
    manifest = read_manifest(folder)
    progress("checking the backup")
    if _checksum(folder / DUMP) != manifest.dump_sha256:
        raise BadInput(f"{folder / DUMP} is damaged: its checksum is not the manifest's")
    if manifest.revision not in migrate.revisions():
        raise Refused(
            f"the backup is of schema {manifest.revision}, which this release does not know",
            hint=f"restore it with Remuda {manifest.release} or later",
        )
    root = Storage(settings.storage).folder
    if manifest.files is not None and root is None:
        raise Refused(
            f"the backup's files cannot be put at {settings.storage}",
            hint="set REMUDA_STORAGE_URL to a folder",
        )
    url = database_url(settings)
    _with_engine(url, lambda engine: _empty(engine, replace=replace))
    files = 0
    if root is not None and manifest.files is not None:
        progress(f"the storage at {root}")
        files = _copy_new(folder / STORAGE, root)
    progress("the database")
    options = ["--no-owner", "--exit-on-error", "--single-transaction"]
    _postgres("pg_restore", url, *options, f"--dbname={_without_password(url)}", str(folder / DUMP))

    def finish(engine: Engine) -> tuple[int, fencing.Fenced]:
        migrate.upgrade(engine)

        def work(connection: Connection) -> tuple[int, fencing.Fenced]:
            # What the dump says of sweeps and watches is of its time.
            connection.execute(text("DELETE FROM sweeps"))
            connection.execute(text("UPDATE vms SET watcher = NULL, watch_expires_at = NULL"))
            moved = 0
            if manifest.files is not None and manifest.storage_url != settings.storage:
                moved = fencing.move_storage(connection, manifest.storage_url, settings.storage)
            return moved, fencing.fence(connection, gap=gap)

        return transact(engine, work)

    progress("fencing what has happened since")
    moved, fenced = _with_engine(url, finish)
    return Restored(manifest=manifest, files=files, moved=moved, fenced=fenced)


def read_manifest(folder: Path) -> Manifest:
    """Return what the backup in `folder` is of; raises NotFound, BadInput for what is no backup."""
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        manifest = Manifest(**found)
    except FileNotFoundError:
        raise NotFound(
            f"there is no backup in {folder}", hint="`remuda db backup` makes one"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{folder / MANIFEST} is no backup's manifest: {error}") from None
    if manifest.format != FORMAT:
        raise BadInput(f"{folder} is a backup of format {manifest.format!r}, not {FORMAT}")
    return manifest


def _of_backups(folder: Path) -> Manifest | None:
    """Return the earlier backup's manifest, None for an empty folder; raises BadInput for others."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    left = {path.name for path in folder.iterdir()} - {f"{DUMP}.new", STORAGE, DUMP}
    if not left:  # one that was interrupted
        return None
    try:
        return read_manifest(folder)
    except NotFound:
        raise BadInput(f"{folder} is not empty, and holds no backup") from None


def _empty(engine: Engine, *, replace: bool) -> None:
    """Remove the schema, if there is none worth keeping or `replace`; raises Refused."""

    def work(connection: Connection) -> None:
        fencing.refuse_at_work(connection)
        used = connection.scalar(text("SELECT EXISTS (TABLE pools) OR EXISTS (TABLE jobs)"))
        if used and not replace:
            raise Refused(
                "the database holds pools and jobs",
                hint="restore into an empty one, or give --replace: what it holds is gone then",
            )

    if present_revision(engine) is not None:
        transact(engine, work)
        transact(engine, lambda c: c.execute(text("DROP SCHEMA public CASCADE")))
        transact(engine, lambda c: c.execute(text("CREATE SCHEMA public")))
    # The dump makes the schema itself where that is the server's way.


def _copy_new(source: Path, target: Path) -> int:
    """Copy the files that are not there yet, each whole or not at all; return how many there are."""
    count = 0
    for path in _files(source):
        aim = target / path.relative_to(source)
        count += 1
        if aim.exists() and aim.stat().st_size == path.stat().st_size:
            continue
        aim.parent.mkdir(parents=True, exist_ok=True)
        aside = aim.with_name(f".{aim.name}.new")
        shutil.copy2(path, aside)
        os.replace(aside, aim)
    return count


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        if Path(folder) == root and "partial" in folders:
            folders.remove("partial")  # beginnings of what workers write just now
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno())


def _postgres(tool: str, url: str, *options: str) -> None:
    """Run pg_dump or pg_restore; the password goes by the environment."""
    words = [_binary(tool), *options]
    if tool == "pg_dump":
        words.append(f"--dbname={_without_password(url)}")
    password = make_url(url).password
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    done = subprocess.run(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DatabaseUnavailable(f"{tool} failed: {said[0] if said else done.returncode}")


def _binary(tool: str) -> str:
    """Return the tool's path: the newest of the embedded server's and the one in the PATH."""
    found = shutil.which(tool)
    own = embedded.client_binary(tool)
    if own is not None and (found is None or _version(own) >= _version(found)):
        return own
    if found is None:
        raise ConfigError(
            f"there is no {tool}",
            hint="install PostgreSQL's client programs, or `pip install 'remuda[embedded]'`",
        )
    return found


def _version(binary: str) -> int:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\b(\d+)[.\w]*\s*(?:\(|$)", said.stdout.strip())
    return int(match[1]) if match else 0


def _without_password(url: str) -> str:
    plain = make_url(url).set(drivername="postgresql", password=None)
    return plain.render_as_string(hide_password=False)


def _with_engine(url: str, work: Callable[[Engine], T]) -> T:
    engine = make_engine(url, pool_size=1)
    try:
        return work(engine)
    finally:
        engine.dispose()


def _write(path: Path, text_: str) -> None:
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text_, "utf-8")
    os.replace(aside, path)
