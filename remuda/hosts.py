"""What is said of a host one logs in to by SSH, and the shelf of them that a `static` pool has."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from remuda.checks import seconds, shown, text_of, whole
from remuda.errors import BadInput

__all__ = ["Host", "host_of", "hosts_of", "slurm_of"]

MAX_HOSTS = 10_000
_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521))\s+[A-Za-z0-9+/]{40,}=*(\s.*)?"
)
_PLACE = re.compile(r"[A-Za-z0-9_.:%\[\]-]+")
_NUMERIC = re.compile(r"[0-9]+(\.[0-9]*)+|.*:.*")  # no name of a host is like that
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_WAY = ("address", "port", "user", "key_file", "host_key", "known_hosts", "jump", "cache_bytes")
_NUMBERS = {"port": 65535, "cores": 100_000, "memory_bytes": 1 << 53, "cache_bytes": 1 << 53}

_SLURM_WORDS = ("partition", "account", "qos", "conf", "bin")
_SLURM_NUMBERS = {"gpus": (0, 100_000), "array_max": (1, 1_000_000)}
_SLURM_SECONDS = ("poll_s", "account_grace_s", "file_grace_s")


@dataclass(frozen=True, slots=True)
class Host:
    """A host and how to log in to it; what is left out is as `ssh` would have it.

    `host_key`: its public key, the only one it may show. `known_hosts`: a file that has it.
    `jump`: hosts to go through first, as for `ssh -J`. `home`: a folder there, relative to the
    user's. `memory_bytes` and `cores`: 0 if not told. `cache_bytes`: the most that inputs may take
    there once nothing needs them; 0: 20 GiB or a tenth of the disk, whichever is less. `group`: the
    pools that are reserved for it (`reserved_group`) have the host for themselves; "": for others.
    `price_per_hour`: in your currency; None: not known.
    """

    address: str
    port: int = 0
    user: str = ""
    key_file: str = ""
    host_key: str = ""
    known_hosts: str = ""
    jump: str = ""
    home: str = ".remuda"
    cores: int = 0
    memory_bytes: int = 0
    cache_bytes: int = 0
    labels: tuple[str, ...] = field(default=())
    group: str = ""
    price_per_hour: float | None = None

    @property
    def name(self) -> str:
        """The host among those of its pool: no two have the same."""
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"{user}{self.address}{port}" + ("" if self.home == ".remuda" else f"/{self.home}")

    def way(self) -> dict[str, Any]:
        """Return what it takes to log in there and use it, as a VM's address has it."""
        return {key: value for key, value in asdict(self).items() if key in _WAY and value}


def host_of(value: Any, *, what: str = "host") -> Host:
    """Return the host that a mapping describes; raises BadInput naming the wrong key."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    known = Host.__dataclass_fields__
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise BadInput(
            f"{what} has no key {', '.join(unknown)[:200]}", hint=f"keys: {', '.join(known)}"
        )
    if not value.get("address"):
        raise BadInput(f"{what}.address is missing")
    texts: dict[str, Any] = {
        key: _line(f"{what}.{key}", value[key])
        for key in (*_WAY, "home")
        if key in value and key not in ("port", "cache_bytes")
    }
    for key, pattern in (("address", _PLACE), ("user", _USER)):
        if texts.get(key) and (not pattern.fullmatch(texts[key]) or texts[key].startswith("-")):
            raise BadInput(f"{what}.{key} cannot be {shown(texts[key])}")
    if _NUMERIC.fullmatch(texts["address"]):
        _check_ip(f"{what}.address", texts["address"])
    if texts.get("host_key") and not _KEY.fullmatch(texts["host_key"]):
        raise BadInput(
            f"{what}.host_key is no public key: {shown(texts['host_key'])}",
            hint="what /etc/ssh/ssh_host_ed25519_key.pub has on the host: ssh-ed25519 AAAA...",
        )
    group = value.get("group") or ""
    if group and (not isinstance(group, str) or not _GROUP.fullmatch(group)):
        raise BadInput(f"{what}.group must be a short name, not {shown(group)}")
    home = texts.pop("home", "") or ".remuda"
    if ".." in home.split("/") or home.strip("/.") == "" or home.startswith("-"):
        raise BadInput(f"{what}.home cannot be {shown(home)}", hint="a folder that is ours alone")
    numbers: dict[str, Any] = {
        key: whole(f"{what}.{key}", value[key], least=1, most=most)
        for key, most in _NUMBERS.items()
        if value.get(key) is not None
    }
    price = value.get("price_per_hour")
    if price is not None:
        price = seconds(f"{what}.price_per_hour", price, most=1e9, zero=True)
    labels = value.get("labels") or ()
    if isinstance(labels, str) or not isinstance(labels, (list, tuple)):
        raise BadInput(f"{what}.labels must be a list of words, not {shown(labels)}")
    words = tuple(text_of(f"{what}.labels", word, least=1) for word in labels)
    return Host(
        home=home.rstrip("/"), labels=words, group=group, price_per_hour=price, **texts, **numbers
    )


def hosts_of(settings: Mapping[str, Any]) -> tuple[Host, ...]:
    """Return the hosts of a static pool's settings; raises BadInput naming the wrong key."""
    unknown = sorted(str(key) for key in settings if key not in ("hosts", "slurm"))
    if unknown:
        raise BadInput(f"the static provider has no setting {', '.join(unknown)[:200]}")
    slurm_of(settings)
    listed = settings.get("hosts")
    if not isinstance(listed, (list, tuple)) or not 1 <= len(listed) <= MAX_HOSTS:
        raise BadInput(
            f"hosts must be a list of at least one host, not {shown(listed)}",
            hint='settings={"hosts": [{"address": "10.0.0.5", "host_key": "ssh-ed25519 ..."}]}',
        )
    hosts = tuple(host_of(value, what=f"hosts[{i}]") for i, value in enumerate(listed))
    seen: dict[str, int] = {}
    for i, host in enumerate(hosts):
        if host.name in seen:
            raise BadInput(f"hosts[{i}] is hosts[{seen[host.name]}] once more: {host.name}")
        seen[host.name] = i
    return hosts


def slurm_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a pool's jobs are handed to Slurm, None if they are not; raises BadInput.

    {"slurm": {}} is enough. `partition`, `account`, `qos`: as for sbatch. `flags`: more words for
    it. `conf`: the path of slurm.conf there, `bin`: of the folder that has the commands. `gpus`:
    how many may be had at once. `poll_s`: seconds between two looks by squeue. `array_max`: jobs in
    one array. `account_grace_s`, `file_grace_s`: how far the accounting and the shared filesystem
    may lag behind.
    """
    given = settings.get("slurm")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise BadInput(f"slurm must be a mapping, not {shown(given)}", hint='"slurm": {}')
    known = (*_SLURM_WORDS, *_SLURM_NUMBERS, *_SLURM_SECONDS, "flags")
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        raise BadInput(
            f"slurm has no key {', '.join(unknown)[:200]}", hint=f"keys: {', '.join(known)}"
        )
    options: dict[str, Any] = {}
    for key in (key for key in _SLURM_WORDS if given.get(key) is not None):
        options[key] = _line(f"slurm.{key}", given[key])
    for key, (least, most) in _SLURM_NUMBERS.items():
        if given.get(key) is not None:
            options[key] = whole(f"slurm.{key}", given[key], least=least, most=most)
    for key in (key for key in _SLURM_SECONDS if given.get(key) is not None):
        options[key] = seconds(f"slurm.{key}", given[key], most=86_400)
    flags = given.get("flags") or ()
    if isinstance(flags, str) or not isinstance(flags, (list, tuple)):
        raise BadInput(f"slurm.flags must be a list of words, not {shown(flags)}")
    if flags:
        options["flags"] = [_line("slurm.flags", flag) for flag in flags]
    return options


def _check_ip(what: str, text: str) -> None:
    try:
        ipaddress.ip_address(text[1:-1] if text[0] == "[" and text[-1] == "]" else text)
    except ValueError:
        hint = "a port has a key of its own: port" if ":" in text else ""
        raise BadInput(
            f"{what} is neither an IP address nor a name: {shown(text)}", hint=hint
        ) from None


def _line(what: str, value: Any) -> str:
    text = text_of(what, value, most=16384).strip()
    if any(ord(character) < 32 for character in text.replace("\t", " ")):
        raise BadInput(f"{what} must be one line")
    return text
