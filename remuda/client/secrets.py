"""What the client offers of secrets: to store, to list, to remove, to rotate their keys."""

from __future__ import annotations

from typing import Any, Literal

from remuda.checks import shown, text_of
from remuda.client.context import Context
from remuda.client.secret_access import SECRET_NAME
from remuda.errors import BadInput, ConfigError
from remuda.keyring import KeyRing
from remuda.models import secrets
from remuda.models.submit import owner_id

MAX_VALUE_BYTES = 64 << 10


class Secrets:
    """The secrets' part of `remuda.client.Client`; each is its owner's.

    A value can be stored, and given to jobs, but not read back.
    """

    _context: Context

    def put_secret(self, name: str, value: str) -> None:
        """Store a secret, in place of an older one; `name`: of the variable jobs find it in.

        Raises BadInput, ConfigError if there is no key ring (the embedded default makes one).
        """
        _name(name)
        _value(value)
        ring, owner = KeyRing(self._context.settings), self._context.owner
        if self._context.settings.embedded:
            ring.create()
        ring.encrypt(owner, name, "")  # a ring in trouble is told before anything is begun
        self._context.commit(
            lambda c: secrets.put(
                c, owner_id(c, owner), name, lambda: ring.encrypt(owner, name, value)
            )
        )

    def secrets(self) -> list[dict[str, Any]]:
        """Return the secrets by name: {name, created_at, updated_at, pools}, without values."""
        return self._context.read(lambda c: secrets.listing(c, self._context.owner))

    def delete_secret(self, name: str) -> None:
        """Remove a secret; raises UnknownSecret, Refused while an open pool names it."""
        _name(name)
        self._context.commit(lambda c: secrets.delete(c, self._context.owner, name))

    def rotate_secrets(self, step: Literal["all", "prepare", "finish", "reencrypt"] = "all") -> int:
        """Encrypt all owners' secrets with a new key, and drop the old ones; return how many.

        Where several machines have the key ring: "prepare" only adds the new key, to be copied to
        all; then "finish" encrypts with it. "reencrypt": with the first key there is, and no key is
        added or dropped. Raises ConfigError, SecretUnreadable; then every secret is as it was.
        """
        if step not in ("all", "prepare", "finish", "reencrypt"):
            raise BadInput(f"there is no step {shown(step)}")
        ring = KeyRing(self._context.settings)
        if step == "prepare":
            ring.add(first=False)
            return 0
        if step != "reencrypt" and ring.from_environment:
            ring.drop_others()  # which says how it is done

        def prepare() -> None:
            if step == "all":
                ring.add(first=True)
            elif step == "finish":
                ring.promote()

        def change(owner: str, name: str, stored: bytes) -> bytes:
            return ring.encrypt(owner, name, ring.decrypt(owner, name, stored))

        count = self._context.commit(lambda c: secrets.reencrypt(c, change, prepare))
        if step != "reencrypt":
            ring.drop_others()
        return count

    def init_secrets(self) -> str:
        """Make a key ring, unless there is one, and return where it is; raises ConfigError."""
        ring = KeyRing(self._context.settings)
        if ring.from_environment:
            raise ConfigError("the key ring is given by REMUDA_SECRETS_KEYS")
        ring.create()
        return str(ring.path)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not SECRET_NAME.fullmatch(name) or name.startswith("REMUDA_"):
        raise BadInput(
            f"{shown(name)} cannot be the name of a secret",
            hint="1 to 200 letters, digits, underscores, no digit first, and not REMUDA_",
        )
    return name


def _value(value: Any) -> str:
    """Check a value; no message tells anything of it."""
    if not isinstance(value, str):
        raise BadInput("the value of a secret must be text")
    try:
        text_of("the value of a secret", value, least=1, most=MAX_VALUE_BYTES)
    except BadInput:
        raise BadInput(
            f"the value of a secret must be text of 1 to {MAX_VALUE_BYTES} bytes, without NUL"
        ) from None
    return value
