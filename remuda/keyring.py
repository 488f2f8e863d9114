"""The keys that secrets are encrypted with at rest: a file of mode 0600, or the environment.

The first key encrypts, any decrypts. Each stored value is bound to its owner and name, so none can
pass for another. Keys, values and what is derived from them are in no message and no repr.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remuda.errors import ConfigError, SecretUnreadable

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

    from remuda.config import Settings

__all__ = ["KeyRing"]


class KeyRing:
    """The keys of one process; reads the file again when it was changed. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Read nothing yet."""
        given = settings.secrets_keys
        self._given = None if given is None else given.get_secret_value()
        self.path = settings.secrets_key_file or settings.data_dir / "secrets.keys"
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, ...], list[str]] | None = None

    def __repr__(self) -> str:
        return f"<KeyRing {'of the environment' if self._given else self.path}>"

    @property
    def from_environment(self) -> bool:
        """Whether the keys are given by the environment: then no file is read or written."""
        return self._given is not None

    def exists(self) -> bool:
        """Return whether there are keys."""
        return self.from_environment or self.path.exists()

    def create(self) -> bool:
        """Make a file with a first key, unless there is one; True if it was made."""
        if self.exists():
            return False
        self._write([_new_key()], new=True)
        return True

    def encrypt(self, owner: str, name: str, value: str) -> bytes:
        """Return a value as it is stored; raises ConfigError if there is no key."""
        sealed = json.dumps([owner, name, value]).encode()
        return _fernet(self._keys()).encrypt(sealed)

    def decrypt(self, owner: str, name: str, stored: bytes) -> str:
        """Return what was stored under this name of this owner; raises SecretUnreadable."""
        from cryptography.fernet import InvalidToken

        try:
            found = json.loads(_fernet(self._keys()).decrypt(stored))
        except InvalidToken:
            raise SecretUnreadable(
                f"secret {name} was encrypted with a key that is not here",
                hint="give the workers the same key ring; see docs/secrets.md",
            ) from None
        if found[:2] != [owner, name]:
            raise SecretUnreadable(f"secret {name} was stored for another owner or name")
        return str(found[2])

    def add(self, *, first: bool) -> None:
        """Add a new key: first, to encrypt with from now on; else last, only to decrypt."""
        self._only_files()
        keys, new = self._keys(), _new_key()
        self._write([new, *keys] if first else [*keys, new])

    def promote(self) -> None:
        """Encrypt with the last key from now on."""
        self._only_files()
        *others, last = self._keys()
        self._write([last, *others])

    def drop_others(self) -> None:
        """Keep only the key that encrypts."""
        self._only_files()
        self._write(self._keys()[:1])

    def _only_files(self) -> None:
        if self.from_environment:
            raise ConfigError(
                "the key ring is given by REMUDA_SECRETS_KEYS",
                hint="put a new key first there, then `remuda secret rotate --reencrypt`",
            )

    def _keys(self) -> list[str]:
        if self._given is not None:
            return _checked(self._given.replace(",", "\n").split("\n"), "REMUDA_SECRETS_KEYS")
        with self._lock:
            try:
                found = os.stat(self.path)
                mark = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._read is not None and self._read[0] == mark:
                    return self._read[1]
                if stat.S_IMODE(found.st_mode) & 0o077:
                    raise ConfigError(
                        f"{self.path} can be read by others", hint=f"chmod 600 {self.path}"
                    )
                lines = self.path.read_text("ascii").split("\n")
            except FileNotFoundError:
                raise ConfigError(
                    f"there is no key ring {self.path}",
                    hint="`remuda secret init` makes one; give all workers the same",
                ) from None
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise ConfigError(f"cannot read the key ring {self.path}: {why}") from None
            keys = _checked(lines, str(self.path))
            self._read = (mark, keys)
            return keys

    def _write(self, keys: Sequence[str], *, new: bool = False) -> None:
        """Replace the file at once; if `new`, leave one alone that somebody else just made."""
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, aside = tempfile.mkstemp(dir=folder, prefix=".secrets.")  # of mode 0600
            try:
                with open(fd, "w", encoding="ascii") as file:
                    file.write("".join(f"{key}\n" for key in keys))
                    file.flush()
                    os.fsync(file.fileno())
                if new:
                    with contextlib.suppress(FileExistsError):
                        os.link(aside, self.path)
                else:
                    os.replace(aside, self.path)
            finally:
                Path(aside).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write the key ring {self.path}: {error.strerror}") from error


def _new_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _checked(lines: Sequence[str], where: str) -> list[str]:
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{where} holds no key")
    try:
        _fernet(keys)
    except ValueError:
        raise ConfigError(
            f"{where} holds something that is no key", hint="32 bytes in URL-safe base64 each"
        ) from None
    return keys


def _fernet(keys: Sequence[str]) -> MultiFernet:
    from cryptography.fernet import Fernet, MultiFernet

    return MultiFernet([Fernet(key) for key in keys])
