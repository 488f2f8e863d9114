"""What hooks print: of `cmd_new` what the new VM is, of `cmd_list` the names of those there are."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from remuda.errors import BadInput, PermanentProviderError, TransientProviderError
from remuda.hosts import host_of

__all__ = ["names_of", "place_of", "told_by"]

MOST_BYTES = 64 << 10
MOST_SIZE = 1 << 53
MOST_PRICE = 1e9
_LOGIN = (
    "address",
    "port",
    "user",
    "key_file",
    "host_key",
    "known_hosts",
    "jump",
    "home",
    "cache_bytes",
)
_IPS = ("private_ip", "public_ip")
_SIZES = ("cores", "memory_bytes")
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{0,99})=(.*)")
_HOST = re.compile(r"[A-Za-z0-9:.%_-]{1,253}")
_NUMERIC = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.%]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def told_by(printed: str) -> dict[str, Any]:
    """Return what `cmd_new` printed: a JSON object, lines of key=value, or an address alone.

    Nothing at all is fine: a resource that is only leased needs no address. Raises
    PermanentProviderError for anything else, and for an address that cannot be one.
    """
    if len(printed.encode()) > MOST_BYTES:
        raise _junk(f"more than {MOST_BYTES} bytes")
    text = printed.strip()
    if not text:
        return {}
    told = _json(text) if text[0] in "{[" else _lines(text)
    if told.get("address") is not None:
        told["address"] = _address(told["address"])
        try:
            host_of({key: told[key] for key in _LOGIN if key in told}, what="it")
        except BadInput as error:
            raise _junk(str(error)) from error
    for key in _SIZES:
        size = told.get(key)
        if size is not None and (type(size) is not int or not 0 < size <= MOST_SIZE):
            raise _junk(f"{str(size)[:80]!r} for {key}")
    if told.get("price") is not None:
        told["price"] = _price(told["price"])
    for key in _IPS:
        if told.get(key):
            told[key] = str(_ip(told[key]))
    return told


def place_of(
    told: Mapping[str, Any], *, name: str, login: Mapping[str, Any], home: str
) -> dict[str, Any]:
    """Return a VM's address: how to log in to it, or else its name and all that the hook told."""
    if told.get("address"):
        return {"home": home, **login, **{key: told[key] for key in _LOGIN if key in told}}
    data = {key: value for key, value in told.items() if key not in (*_IPS, "price")}
    return {"name": name, "data": data} if data else {"name": name}


def names_of(printed: str) -> list[str]:
    """Return the names that `cmd_list` printed, each once.

    Raises TransientProviderError where the output breaks off within a line, PermanentProviderError
    if there is something else than names.
    """
    if printed and not printed.endswith("\n"):
        raise TransientProviderError("what cmd_list printed breaks off in the middle of a line")
    names = printed.split()
    bad = next((name for name in names if not _NAME.fullmatch(name) or ".." in name), None)
    if bad is not None:
        raise PermanentProviderError(f"cmd_list printed {bad[:80]!r}, which is no name")
    return list(dict.fromkeys(names))


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _junk(f"what is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _junk(f"a JSON {type(found).__name__}, not an object")
    return found


def _lines(text: str) -> dict[str, Any]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [_PAIR.fullmatch(line) for line in lines]
    if all(pairs):
        told: dict[str, Any] = {pair[1]: pair[2] for pair in pairs if pair}
        for key in ("port", "cache_bytes", *_SIZES):
            if key in told and told[key].isdigit():
                told[key] = int(told[key])
        return told
    if len(lines) == 1 and _HOST.fullmatch(lines[0]):
        return {"address": lines[0]}
    wrong = next(line for line, pair in zip(lines, pairs, strict=True) if not pair)
    raise _junk(repr(wrong[:80]))


def _price(value: Any) -> float:
    """Return a price for an hour, printed as a number or as the text of one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= MOST_PRICE:
        raise _junk(f"{str(value)[:80]!r} for a price")
    return number


def _address(value: Any) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise _junk(f"{str(value)[:80]!r} for an address")
    return str(_ip(value)) if _NUMERIC.fullmatch(value) else value


def _ip(value: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        ip = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise _junk(f"{str(value)[:80]!r} for an IP") from None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _junk(what: str) -> PermanentProviderError:
    return PermanentProviderError(
        f"cmd_new printed {what}",
        hint="a JSON object, lines of key=value, or an address alone; all else to stderr",
    )
