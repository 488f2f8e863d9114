"""First boot: the user data that lets a new VM show a host key which is known beforehand.

A VM's host key follows from its pool's private key and the VM's token. So every worker that may log
in knows the key to expect, and it is kept nowhere; who knows one VM's key knows no other's. All of it
is the same, byte for byte, for the same VM: a cloud that is asked twice must see one request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_string
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from remuda.errors import PermanentProviderError
from remuda.hosts import Host

__all__ = ["HOME", "HostKey", "PoolKey", "address_of", "read_key", "read_user_data", "user_data"]

HOME = ".remuda/vm"  # of the runner on such a VM, in the user's home
MAX_FILE_BYTES = 1 << 20
_LABEL = b"remuda host key\0"
_KIND = b"ssh-ed25519"
_STARTS = {
    "#cloud-config-archive": "cloud-config-archive",
    "#cloud-config-jsonp": "cloud-config-jsonp",
    "#cloud-config": "cloud-config",
    "#cloud-boothook": "cloud-boothook",
    "#include-once": "x-include-once-url",
    "#include": "x-include-url",
    "#part-handler": "part-handler",
    "## template: jinja": "jinja2",
    "#!": "x-shellscript",
}
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class HostKey:
    """A VM's host key: `public` as in `ssh-ed25519 AAAA...`, `private` in OpenSSH's format."""

    public: str
    private: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PoolKey:
    """The key that logs in to a pool's VMs; `public` is the line for authorized_keys."""

    path: str
    public: str
    secret: bytes = field(repr=False)

    def host_key(self, token: str) -> HostKey:
        """Return the host key of the VM of that token."""
        seed = hmac.new(self.secret, _LABEL + token.encode(), hashlib.sha256).digest()
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        blob = _strings(_KIND, raw)
        return HostKey(f"ssh-ed25519 {base64.b64encode(blob).decode()}", _openssh(seed, raw, blob))


def read_key(path: str) -> PoolKey:
    """Read the private key that logs in to a pool's VMs.

    Raises PermanentProviderError if it cannot be read, others than its owner may read it, it has a
    passphrase, or it is no key.
    """
    where = Path(path).expanduser()
    try:
        with where.open("rb") as file:
            about = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise PermanentProviderError(
            f"cannot read the key file {path}: {error.strerror}",
            hint="it must be on the workers, readable by them alone",
        ) from None
    shared = 0o077 if about.st_uid == os.geteuid() else 0o007
    if about.st_mode & shared:
        raise PermanentProviderError(
            f"the key file {path} may be read by others (its mode is {about.st_mode & 0o777:o})",
            hint=f"chmod 600 {path}",
        )
    try:
        read = load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key
        key: Any = read(data, password=None)
        secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except TypeError:  # what both say of a passphrase
        raise PermanentProviderError(
            f"the key in {path} has a passphrase", hint="a pool's key has none"
        ) from None
    except (ValueError, UnsupportedAlgorithm):  # it may tell of the content
        raise PermanentProviderError(
            f"there is no private key in {path}", hint="ssh-keygen -t ed25519 makes one"
        ) from None
    return PoolKey(path, public.decode(), secret)


def read_user_data(path: str) -> str:
    """Return the content of a file of user data; raises PermanentProviderError, not telling of it."""
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PermanentProviderError(
            f"cannot read the user data {path}: {error.strerror}", hint="it must be on the workers"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise PermanentProviderError(f"the user data {path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PermanentProviderError(f"the user data {path} is not text in UTF-8") from None


def user_data(
    key: PoolKey,
    token: str,
    *,
    user: str,
    sudo: bool = False,
    default_user: bool = False,
    hostname: str = "",
    extra: str = "",
    most_bytes: int | None = None,
) -> bytes:
    """Return what cloud-init is to do: let `user` in by the key, show the host key, let nobody else in.

    `sudo`: `user` may become root. `default_user`: the image's own user is made, too. `extra` is more
    user data, of any kind that cloud-init knows; where both say something of the same key of
    cloud-config, ours holds. Raises PermanentProviderError if `extra` is of no such kind, or if it is
    more than `most_bytes`.
    """
    one = _cloud_config(key, token, user, sudo=sudo, default_user=default_user, hostname=hostname)
    data = (_multipart(extra, one) if extra.strip() else one).encode()
    if most_bytes is not None and len(data) > most_bytes:
        raise PermanentProviderError(
            f"the user data has {len(data)} bytes, the cloud takes at most {most_bytes}",
            hint="have it fetch what is big: #include and a URL",
        )
    return data


def address_of(
    key: PoolKey, token: str, address: str, *, user: str, port: int = 22
) -> dict[str, Any]:
    """Return how the ssh backend reaches such a VM, its host key pinned."""
    host = Host(address, port, user, key.path, key.host_key(token).public)
    return {**host.way(), "home": HOME}


# ---- cloud-init


def _cloud_config(
    key: PoolKey, token: str, user: str, *, sudo: bool, default_user: bool, hostname: str
) -> str:
    """Return it as JSON, which is YAML."""
    host_key = key.host_key(token)
    account: dict[str, Any] = {
        "name": user,
        "lock_passwd": True,
        "ssh_authorized_keys": [key.public],
    }
    if sudo:
        account["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    config: dict[str, Any] = {
        "users": ["default", account] if default_user else [account],
        "disable_root": True,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
    }
    if _HOSTNAME.fullmatch(hostname):
        config["hostname"] = hostname
    return f"#cloud-config\n{json.dumps(config, ensure_ascii=False, indent=1)}\n"


def _multipart(extra: str, ours: str) -> str:
    """Return both as one: the last wins in cloud-init, so ours comes last."""
    boundary = hashlib.sha256(f"{extra}\0{ours}".encode()).hexdigest()[:32]
    whole = MIMEMultipart("mixed", f"remuda-{boundary}")
    for part in _parts(extra):
        whole.attach(part)
    last = _part("cloud-config", ours)
    last["Merge-Type"] = "dict(replace)+list()+str()"
    whole.attach(last)
    return whole.as_string()


def _parts(extra: str) -> Iterator[Message]:
    text = extra.lstrip("\ufeff \t\r\n")
    for start, kind in _STARTS.items():
        if text.lower().startswith(start):
            yield _part(kind, text)
            return
    parsed = message_from_string(text)
    if not parsed.is_multipart() or parsed.defects:
        raise PermanentProviderError(
            "the user data begins with nothing that cloud-init knows",
            hint="such as #cloud-config, #!/bin/sh, #include, or a MIME multipart archive",
        )
    yield from (part for part in parsed.walk() if not part.is_multipart())


def _part(kind: str, text: str) -> Message:
    part = MIMENonMultipart("text", kind, charset="utf-8")
    ascii_only = text.isascii() and all(len(line) < 900 for line in text.splitlines())
    part["Content-Transfer-Encoding"] = "7bit" if ascii_only else "base64"
    part.set_payload(text if ascii_only else base64.encodebytes(text.encode()).decode())
    return part


# ---- OpenSSH's format


def _strings(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _openssh(seed: bytes, raw: bytes, blob: bytes) -> str:
    """Return the private key; libraries put random bytes in it, here they follow from the key."""
    check = hashlib.sha256(seed + b"check").digest()[:4]
    inner = check + check + _strings(_KIND, raw, seed + raw, b"")
    inner += bytes(range(1, 1 + -len(inner) % 8))
    data = b"openssh-key-v1\0" + _strings(b"none", b"none", b"") + struct.pack(">I", 1)
    text = base64.b64encode(data + _strings(blob, inner)).decode()
    lines = [text[i : i + 70] for i in range(0, len(text), 70)]
    return "\n".join(
        ["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""]
    )
