"""`--setting KEY=VALUE`: a provider's setting, which is JSON except where its key is of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remuda.cli.types import JsonValue

if TYPE_CHECKING:
    import click


class ProviderSetting(JsonValue):
    """`KEY=VALUE` as JSON; for keys of text `true` and `1` are words as good as any other."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the pair."""
        key, found = super().convert(value, param, ctx)
        if isinstance(value, str) and isinstance(found, (bool, int, float)) and _is_text(key):
            return key, value.partition("=")[2]
        return key, found


def _is_text(key: str) -> bool:
    """Return whether it is a key of text with the providers that have it."""
    from dataclasses import fields

    from remuda.clouds import Ec2, Login, Openstack
    from remuda.guests import GuestSettings
    from remuda.hooks import CALLS

    texts = {
        field.name
        for kind in (Ec2, Openstack, Login, GuestSettings)
        for field in fields(kind)
        if field.type == "str"
    }
    return key in texts or key in {f"cmd_{call}" for call in CALLS}
