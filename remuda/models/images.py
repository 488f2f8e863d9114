"""Images: whether VMs may be launched from them, and who says so."""

from __future__ import annotations

from sqlalchemy import Connection, text

from remuda.checks import text_of
from remuda.errors import IllegalTransition, NotFound, Refused
from remuda.models.database import rows
from remuda.models.pool_life import image_id
from remuda.models.states import IMAGE_EDGES, ImageState

MOST_BYTES = 2000  # of what is wrong with one


# Of the VM `v` of the pool `p`: whether it is of another image than it would be made of now.
OUTDATED = """(v.image_id <> p.image_id AND NOT EXISTS (
    SELECT FROM jsonb_array_elements(p.offers) AS o
    WHERE o ->> 'name' = v.offer AND o ->> 'image' IS NOT NULL))"""


def check_image(connection: Connection, provider: str, name: str) -> int:
    """Return the id of the provider's image, noted as NEW if nobody named it before.

    Raises Refused, telling why, when it is in ERROR: no VM may be launched from it.
    """
    found = image_id(connection, text_of("a provider", provider, least=1), name_of(name))
    refuse_bad(connection, found)
    return found


def refuse_bad(connection: Connection, image: int) -> None:
    """Raise Refused, telling why, if no VM may be launched from the image."""
    [row] = rows(connection, "SELECT * FROM images WHERE id = :id", id=image)
    if row["state"] == ImageState.ERROR:
        raise Refused(
            f"image {row['name']} of {row['provider']} is in ERROR: {row['message'] or 'no reason'}",
            hint=f"`remuda image reset {row['id']}` when it is mended",
        )


def find_image(connection: Connection, image: int | str) -> int:
    """Return the id of the image of that id or name; raises NotFound, or if two have the name."""
    by_name = isinstance(image, str)
    found = rows(
        connection,
        f"SELECT id, provider FROM images WHERE {'name' if by_name else 'id'} = :key ORDER BY id",
        key=name_of(image) if isinstance(image, str) else image,
    )
    if not found:
        raise NotFound(f"there is no image {str(image)[:100]!r}", hint="`remuda image list`")
    if len(found) > 1:
        ids = ", ".join(f"{row['id']} ({row['provider']})" for row in found)
        raise NotFound(f"several images are called {image!r:.100}", hint=f"give the id: {ids}")
    return int(found[0]["id"])


def name_of(name: object) -> str:
    """Return an image's name; raises BadInput."""
    return text_of("an image's name", name, least=1)


def validate(connection: Connection, vm_id: int) -> None:
    """Mark the VM's image VALIDATED, if it is NEW: a machine made of it gave a sign of life."""
    connection.execute(
        text(
            """UPDATE images SET state = 'VALIDATED', validated_at = now(), state_changed_at = now()
               FROM vms WHERE vms.id = :vm AND images.id = vms.image_id AND images.state = 'NEW'"""
        ),
        {"vm": vm_id},
    )


def mark_error(connection: Connection, image: int, message: str) -> None:
    """Have no VM launched from the image any more; those there are go on.

    Raises NotFound, or IllegalTransition if it is in ERROR already.
    """
    told = text_of("the message", message, least=1, most=MOST_BYTES)
    _move(connection, image, ImageState.ERROR, message=told)


def reset(connection: Connection, image: int) -> None:
    """Bring an image from ERROR back to NEW: it may be launched from again, and is tried anew.

    Raises NotFound, or IllegalTransition if it is not in ERROR.
    """
    _move(connection, image, ImageState.NEW, message=None)


def _move(connection: Connection, image: int, target: ImageState, *, message: str | None) -> None:
    allowed = [str(old) for old, targets in IMAGE_EDGES.items() if target in targets]
    done = connection.execute(
        text(
            """UPDATE images SET state = :target, message = :message, state_changed_at = now(),
                 validated_at = CASE WHEN :target = 'NEW' THEN NULL ELSE validated_at END
               WHERE id = :id AND state = ANY(:allowed)"""
        ),
        {"id": image, "target": target, "message": message, "allowed": allowed},
    )
    if done.rowcount == 0:
        find_image(connection, image)
        found = connection.scalar(text("SELECT state FROM images WHERE id = :id"), {"id": image})
        raise IllegalTransition(
            f"image {image} is {found} and cannot become {target}",
            hint=f"it must be {' or '.join(allowed)}",
        )
