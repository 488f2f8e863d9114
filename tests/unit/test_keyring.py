"""The key ring: what it takes, what it refuses, and that it tells nobody anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from remuda.config import Settings, load_settings
from remuda.errors import ConfigError, SecretUnreadable
from remuda.keyring import KeyRing
from tests.integration.builders import together


def settings_of(folder: Path, **more: object) -> Settings:
    return load_settings(data_dir=folder / "data", state_dir=folder / "state", **more)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    made = KeyRing(settings_of(tmp_path))
    assert made.create()
    return made


def test_what_was_stored_is_read_by_owner_and_name_alone(ring: KeyRing) -> None:
    stored = ring.encrypt("alice", "TOKEN", "päss\nword")
    assert b"word" not in stored
    assert ring.decrypt("alice", "TOKEN", stored) == "päss\nword"
    for owner, name in (("bob", "TOKEN"), ("alice", "OTHER")):
        with pytest.raises(SecretUnreadable, match="another owner or name"):
            ring.decrypt(owner, name, stored)
    for wrong in (stored[:-1], b"", b"x" * 100):
        with pytest.raises(SecretUnreadable):
            ring.decrypt("alice", "TOKEN", wrong)
    assert "TOKEN" not in repr(ring)


def test_the_file_is_private_and_made_once(ring: KeyRing, tmp_path: Path) -> None:
    assert ring.path.stat().st_mode & 0o777 == 0o600
    before = ring.path.read_bytes()
    assert not ring.create()
    assert ring.path.read_bytes() == before
    assert [p.name for p in ring.path.parent.iterdir()] == ["secrets.keys"]
    fresh = tmp_path / "fresh"
    made = together(*[KeyRing(settings_of(fresh)).create] * 4)
    assert made.count(True) >= 1
    assert len((fresh / "data" / "secrets.keys").read_text().split()) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_that_others_can_read_is_refused(ring: KeyRing, mode: int) -> None:
    stored = ring.encrypt("alice", "TOKEN", "x")
    ring.path.chmod(mode)
    again = KeyRing(settings_of(ring.path.parent.parent))
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        again.decrypt("alice", "TOKEN", stored)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("text", ["", "# only a comment\n", "secret-key-nobody-sees\n", "ü"])
def test_a_file_with_no_key_is_refused_without_telling_what_is_in_it(
    ring: KeyRing, text: str
) -> None:
    ring.path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        ring.encrypt("alice", "TOKEN", "x")
    assert "secret-key" not in str(caught.value)


def test_without_a_ring_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no key ring") as caught:
        KeyRing(settings_of(tmp_path)).encrypt("alice", "TOKEN", "x")
    assert "remuda secret init" in caught.value.hint


def test_keys_are_rotated_in_steps(ring: KeyRing) -> None:
    other = KeyRing(settings_of(ring.path.parent.parent))  # another process with the same file
    old = ring.encrypt("alice", "TOKEN", "x")
    [first] = ring.path.read_text().split()
    ring.add(first=False)
    assert ring.path.read_text().split()[0] == first
    assert other.decrypt("alice", "TOKEN", ring.encrypt("alice", "TOKEN", "y")) == "y"
    ring.promote()
    new = ring.encrypt("alice", "TOKEN", "z")
    assert [other.decrypt("alice", "TOKEN", each) for each in (old, new)] == ["x", "z"]
    ring.drop_others()
    assert first not in ring.path.read_text()
    assert other.decrypt("alice", "TOKEN", new) == "z"
    with pytest.raises(SecretUnreadable, match="not here"):
        other.decrypt("alice", "TOKEN", old)
    assert ring.path.stat().st_mode & 0o777 == 0o600


def test_keys_of_the_environment(tmp_path: Path) -> None:
    one, two = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    old = KeyRing(settings_of(tmp_path, secrets_keys=SecretStr(one)))
    both = KeyRing(settings_of(tmp_path, secrets_keys=SecretStr(f"{two}, {one}")))
    new = KeyRing(settings_of(tmp_path, secrets_keys=SecretStr(two)))
    assert both.decrypt("a", "T", old.encrypt("a", "T", "x")) == "x"
    assert new.decrypt("a", "T", both.encrypt("a", "T", "y")) == "y"
    with pytest.raises(ConfigError, match="REMUDA_SECRETS_KEYS"):
        both.add(first=True)
    for change in (both.promote, both.drop_others):
        with pytest.raises(ConfigError, match="REMUDA_SECRETS_KEYS"):
            change()
    assert not both.create()
    assert one not in repr(both)
    assert one not in repr(settings_of(tmp_path, secrets_keys=SecretStr(one)))
    with pytest.raises(ConfigError, match="no key"):
        KeyRing(settings_of(tmp_path, secrets_keys=SecretStr("junk"))).encrypt("a", "T", "x")
    assert not os.path.exists(both.path)
