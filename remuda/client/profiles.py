"""What the client offers of profiles, the named templates that pools are made from."""

from __future__ import annotations

from typing import Any

from remuda.checks import text_of
from remuda.client import pool_settings
from remuda.client.context import Context
from remuda.errors import BadInput
from remuda.models import profiles

# What is one pool's own, or has to be found by whoever makes the pool.
_NOT_IN_PROFILES = ("name", "shortname", "profile", "resources", "secrets")


class Profiles:
    """The profiles' part of `remuda.client.Client`."""

    _context: Context

    def create_profile(
        self,
        name: str,
        *,
        description: str = "",
        provider: str = "local",
        backend: str | None = None,
        image: str = "default",
        replace: bool = False,
        **fields: Any,
    ) -> None:
        """Store a template of pools: any settings of a pool, but its names, resources and secrets.

        Pools made before from a profile that is replaced stay as they are. Raises BadInput naming
        the wrong field, AlreadyExists unless it is to `replace`.
        """
        pool_settings.pool_name(name)
        pool_settings.kind("provider", provider)
        if backend is not None:
            pool_settings.kind("backend", backend)
        pool_settings.image_name(image)
        text_of("description", description)
        own = sorted(set(fields) & set(_NOT_IN_PROFILES))
        if own:
            raise BadInput(f"a profile has no {', '.join(own)}", hint="these are of one pool alone")
        checked = pool_settings.checked(fields)
        pool_settings.check_bounds(checked, pool_settings.NO_BOUNDS)
        self._context.commit(
            lambda c: profiles.put(
                c,
                name,
                description=description,
                provider=provider,
                backend=backend,
                image=image,
                fields=checked,
                replace=replace,
            )
        )

    def profiles(self) -> list[dict[str, Any]]:
        """Return the profiles by name: {name, description, provider, backend, image, fields, ...}."""
        return self._context.read(profiles.listing)

    def profile(self, name: str) -> dict[str, Any]:
        """Return one profile; raises UnknownProfile."""
        return self._context.read(lambda c: profiles.find(c, checked_name(name)))

    def delete_profile(self, name: str) -> None:
        """Remove a profile; pools made from it stay as they are. Raises UnknownProfile."""
        self._context.commit(lambda c: profiles.delete(c, checked_name(name)))


def checked_name(name: Any) -> str:
    """Return the name of a profile as it is looked up; raises BadInput."""
    return text_of("the name of a profile", name)
