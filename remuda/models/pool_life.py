"""Pools as their users handle them: create, change, submit, close; each call all or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from remuda.checks import text_of
from remuda.errors import (
    AlreadyExists,
    BadInput,
    Refused,
    RemudaError,
    SetTooLate,
    UnknownPool,
)
from remuda.models import pool_resources, secrets, shelves
from remuda.models.cancel import request_cancel
from remuda.models.database import first_line, rows
from remuda.models.pool_deletion import make_room
from remuda.models.pool_fields import SETTABLE, UNTIL_SUBMITTED
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL, PoolState
from remuda.models.submit import owner_id

_NOT_ENDED = "state NOT IN ('CLOSED', 'PENDING_DELETE')"


def find_pool(connection: Connection, name: str, *, lock: bool = False) -> Mapping[str, Any]:
    """Return the row of the pool called `name`: an open one, else the latest closed.

    Of two open ones (or closed ones) a name goes before a shortname or UUID. Raises UnknownPool,
    with the names there are, and BadInput for what is no text.
    """
    text_of("the name of a pool", name)
    # Nearly always it is the name of an open pool, for which there is an index.
    for called in (
        f"name = :name AND {_NOT_ENDED}",
        "(name = :name OR shortname = :name OR uuid::text = :name)",
    ):
        found = rows(
            connection,
            f"""SELECT * FROM pools WHERE {called} AND state <> 'PENDING_DELETE'
                ORDER BY ({_NOT_ENDED}) DESC, (name = :name) DESC, id DESC LIMIT 1
                {"FOR NO KEY UPDATE" if lock else ""}""",
            name=name,
        )
        if found:
            break
    if not found:
        there = rows(
            connection, f"SELECT name FROM pools WHERE {_NOT_ENDED} ORDER BY name LIMIT 20"
        )
        names = ", ".join(row["name"] for row in there) or "none yet"
        raise UnknownPool(
            f"there is no pool {name[:100]!r}",
            hint=f"pools: {names}; `remuda pool create` makes one",
        )
    return found[0]


def image_id(connection: Connection, provider: str, name: str) -> int:
    """Return the id of the provider's image of that name, made when new."""
    named = {"provider": provider, "name": name}
    statement = text("SELECT id FROM images WHERE provider = :provider AND name = :name")
    found = connection.scalar(statement, named)
    if found is None:
        # A second look, in a statement of its own, sees the one somebody else just made.
        connection.execute(
            text(
                """INSERT INTO images (provider, name) VALUES (:provider, :name)
                   ON CONFLICT DO NOTHING"""
            ),
            named,
        )
        found = connection.scalar(statement, named)
    return int(found)


def insert_pool(
    connection: Connection,
    name: str,
    *,
    owner: str,
    provider: str,
    backend: str,
    image: str = "default",
    fields: Mapping[str, Any],
    uuid: str | None = None,
) -> int:
    """Insert a pool in UNSUBMITTED and return its id; `uuid` None: it is given one.

    Raises AlreadyExists for a taken name, PoolLimitReached if the owner may have no more.
    """
    _check_fields(fields)
    shelves.check_groups(
        connection,
        {
            "provider": provider,
            "settings": fields.get("settings", {}),
            "offers": fields.get("offers", []),
        },
    )
    paying = owner_id(connection, owner)
    make_room(connection, paying)
    secrets.check_names(connection, paying, fields.get("secrets", {}).get("names", ()))
    columns = {
        "name": name,
        "owner_id": paying,
        "image_id": image_id(connection, provider, image),
        "provider": provider,
        "backend": backend,
        **_columns(fields),
        **({} if uuid is None else {"uuid": uuid}),
    }
    names = ", ".join(columns)
    values = ", ".join(_value(column, value) for column, value in columns.items())
    try:
        with connection.begin_nested():
            _check_words(connection, name=name, shortname=fields.get("shortname"))
            made = connection.scalar(
                text(f"INSERT INTO pools ({names}) VALUES ({values}) RETURNING id"),
                _bound(columns),
            )
    except (IntegrityError, DataError) as error:
        raise _wrong(error, columns) from None
    if fields.get("resources"):
        pool_resources.replace(connection, int(made), fields["resources"])
    return int(made)


def _check_words(
    connection: Connection, *, name: str | None, shortname: str | None, pool_id: int = 0
) -> None:
    """Raise AlreadyExists if a pool would be hidden by another: names are looked up before shortnames."""
    found = rows(
        connection,
        f"""SELECT name, shortname FROM pools WHERE {_NOT_ENDED} AND id <> :id
              AND (name = CAST(:short AS text) OR shortname = CAST(:name AS text)) LIMIT 1""",
        id=pool_id,
        name=name,
        short=shortname,
    )
    for row in found:
        if row["name"] == shortname:
            raise AlreadyExists(f"shortname {shortname!r} is the name of another pool")
        raise AlreadyExists(f"{name!r} is the shortname of pool {row['name']!r}")


def change_pool(connection: Connection, pool_id: int, fields: Mapping[str, Any]) -> None:
    """Set columns of a pool that has not ended.

    Raises BadInput for unknown ones, SetTooLate when one is settable only before `submit`,
    Refused when it has ended, AlreadyExists for a taken name.
    """
    _check_fields(fields)
    found = rows(connection, "SELECT * FROM pools WHERE id = :id FOR NO KEY UPDATE", id=pool_id)
    if not found:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    if not fields:
        return
    state = found[0]["state"]
    late = sorted(UNTIL_SUBMITTED & set(fields)) if state != PoolState.UNSUBMITTED else []
    if late:
        raise too_late(found[0]["name"], state, late)
    if state in (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE):
        raise Refused(
            f"pool {found[0]['name']} is {state}: cannot set {', '.join(sorted(fields))}",
            hint="the pool has ended",
        )
    words = {"name": fields.get("name"), "shortname": fields.get("shortname")}
    if any(words.values()):
        _check_words(connection, **words, pool_id=pool_id)
    if {"settings", "offers"} & set(fields):
        shelves.check_groups(connection, {**found[0], **fields}, pool_id=pool_id)
    wanted = fields.get("secrets", {}).get("names", ())
    secrets.check_names(connection, found[0]["owner_id"], wanted)
    columns = _columns(fields)
    assignments = ", ".join(f"{column} = {_value(column, v)}" for column, v in columns.items())
    if "policies" in fields:  # which of them rules is found with the next sweep
        assignments += ", policy_changes_at = now()"
    try:
        with connection.begin_nested():
            connection.execute(
                text(
                    f"UPDATE pools SET {assignments}, updated_at = clock_timestamp() WHERE id = :id"
                ),
                {**_bound(columns), "id": pool_id},
            )
    except (IntegrityError, DataError) as error:
        raise _wrong(error, columns) from None
    if "resources" in fields:
        pool_resources.replace(connection, pool_id, fields["resources"])


def too_late(name: str, state: str, columns: Sequence[str]) -> SetTooLate:
    """Return the error of who sets what cannot be set any more."""
    return SetTooLate(
        f"pool {name} is {state}: cannot set {', '.join(columns)}",
        hint="these can be set until the pool is submitted",
    )


def write_info(connection: Connection, pool_id: int, pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Set keys of a pool's info, remove those set to None, and return all of it.

    Raises BadInput when that would be too much.
    """
    info = connection.scalar(
        text(
            """UPDATE pools SET info = jsonb_strip_nulls(info || CAST(:pairs AS jsonb))
               WHERE id = :id AND pg_column_size(info || CAST(:pairs AS jsonb)) < 65536
               RETURNING info"""
        ),
        {"id": pool_id, "pairs": json.dumps(dict(pairs))},
    )
    if info is None:
        raise BadInput("a pool's info takes at most 64 KiB")
    return dict(info)


def submit_pool(connection: Connection, pool_id: int) -> None:
    """Open the pool for work; an already open one stays as it is.

    Raises UnknownPool, or Refused when it ended.
    """
    done = connection.execute(
        text(
            """UPDATE pools SET state = 'SUBMITTED', state_changed_at = now(),
                 previous_state_changed_at = state_changed_at, updated_at = clock_timestamp()
               WHERE id = :id AND state = 'UNSUBMITTED'"""
        ),
        {"id": pool_id},
    )
    state = connection.scalar(text("SELECT state FROM pools WHERE id = :id"), {"id": pool_id})
    if state is None:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    if done.rowcount == 0 and state not in (*OPEN_POOL, PoolState.FAILURE):
        raise Refused(f"the pool is {state} and cannot be submitted", hint="create a new one")


def close_pool(connection: Connection, pool_id: int, *, now: bool = False) -> bool:
    """Begin to close: its waiting jobs are cancelled, running ones end first unless `now`.

    Its VMs are terminated when their work is done. Returns False when it was closed or closing.
    """
    found = rows(connection, "SELECT state FROM pools WHERE id = :id FOR NO KEY UPDATE", id=pool_id)
    if not found:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    state = found[0]["state"]
    if state in (PoolState.CLOSED, PoolState.PENDING_DELETE):
        return False
    leave_pool(connection, pool_id)
    # Only jobs without an attempt end here at once; what runs is left to finish unless told so.
    wanted = "<> 'TERMINATED'" if now else "= 'NEW'"
    waiting = rows(
        connection, f"SELECT id FROM jobs WHERE pool_id = :id AND state {wanted}", id=pool_id
    )
    request_cancel(connection, [row["id"] for row in waiting])
    target = PoolState.CLOSED if state == PoolState.UNSUBMITTED else PoolState.CLOSING
    connection.execute(
        text(
            f"""UPDATE pools SET state = :target, close_now = close_now OR :now,
                 state_changed_at = CASE WHEN state = :target THEN state_changed_at ELSE now() END,
                 previous_state_changed_at = CASE WHEN state = :target
                   THEN previous_state_changed_at ELSE state_changed_at END,
                 ended_at = CASE WHEN :target = 'CLOSED' THEN now() END,
                 updated_at = clock_timestamp()
               WHERE id = :id AND state IN ('UNSUBMITTED', 'FAILURE', 'CLOSING', {sql_list(OPEN_POOL)})"""
        ),
        {"id": pool_id, "now": now, "target": target},
    )
    return bool(state != PoolState.CLOSING)


def leave_pool(connection: Connection, pool_id: int) -> int:
    """Leave jobs that wait for this pool or others to the others; return how many.

    They stay behind if none of those is open, or will be.
    """
    done = connection.execute(
        text(
            """WITH others AS (
                 SELECT j.id, array_agg(p.id ORDER BY array_position(j.pool_ids, p.id)) AS pool_ids
                 FROM jobs j JOIN pools p ON p.id = ANY(j.pool_ids) AND p.id <> :pool
                 WHERE j.state = 'NEW' AND j.pool_ids IS NOT NULL
                   AND j.pool_ids @> ARRAY[CAST(:pool AS bigint)]
                   AND p.state NOT IN ('CLOSING', 'CLOSED', 'PENDING_DELETE')
                 GROUP BY j.id
               ), locked AS (
                 SELECT o.*, j.state FROM others o JOIN jobs j ON j.id = o.id ORDER BY o.id
                 FOR NO KEY UPDATE OF j
               )
               UPDATE jobs SET pool_id = l.pool_ids[1],
                 pool_ids = CASE WHEN cardinality(l.pool_ids) > 1 THEN l.pool_ids END
               FROM locked l WHERE jobs.id = l.id AND l.state = 'NEW'"""
        ),
        {"pool": pool_id},
    )
    return int(done.rowcount)


def _check_fields(fields: Mapping[str, Any]) -> None:
    unknown = sorted(set(fields) - SETTABLE)
    if unknown:
        raise BadInput(
            f"a pool has no setting {', '.join(unknown)}",
            hint=f"settings: {', '.join(sorted(SETTABLE))}",
        )


def _constraint(error: DBAPIError) -> str:
    return getattr(getattr(error.orig, "diag", None), "constraint_name", "") or ""


def _wrong(error: DBAPIError, columns: Mapping[str, Any]) -> RemudaError:
    constraint = _constraint(error)
    if constraint == "uq_pools_name_open":
        name = columns["name"]
        return AlreadyExists(
            f"there is already a pool {name!r}",
            hint=f"choose another name, or `remuda pool close {name}` first",
        )
    if constraint == "uq_pools_shortname_open":
        return AlreadyExists(f"shortname {columns['shortname']!r} is taken by another pool")
    return BadInput(
        f"the pool would break the rule {constraint}" if constraint else first_line(error.orig)
    )


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are columns; resources have a table, and a version here."""
    columns = {name: value for name, value in fields.items() if name != "resources"}
    if "resources" in fields:
        columns["resources_version"] = int(bool(fields["resources"]))
    return columns


def _value(column: str, value: Any) -> str:
    return f"CAST(:{column} AS jsonb)" if isinstance(value, (dict, list)) else f":{column}"


def _bound(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in columns.items()}


__all__: Sequence[str] = [
    "SETTABLE",
    "UNTIL_SUBMITTED",
    "change_pool",
    "close_pool",
    "find_pool",
    "image_id",
    "insert_pool",
    "leave_pool",
    "submit_pool",
    "too_late",
    "write_info",
]
