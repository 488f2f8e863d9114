"""What is said of a cloud's VMs in a pool's settings: those of the providers `ec2` and `openstack`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput

__all__ = ["CHECKS", "Ec2", "Login", "Openstack", "ec2_of", "openstack_of"]

MAX_PLACES = 100
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@ -]{0,254}")
_LOGIN = ("user", "key_file", "port", "sudo", "user_data_file")
OURS = "remuda-"  # tags that begin so say whose a machine is


@dataclass(frozen=True, slots=True)
class Login:
    """How one logs in to a VM: made at its first boot, see `remuda.workers.providers.firstboot`.

    `key_file`: the private key, a path on the workers. `sudo`: the user may become root.
    `user_data_file`: more for cloud-init to do, a path on the workers, too.
    """

    key_file: str
    user: str = "remuda"
    port: int = 22
    sudo: bool = False
    user_data_file: str = ""


@dataclass(frozen=True, slots=True)
class Ec2:
    """VMs of EC2. `subnets` and `zones` are tried in their order while they have no capacity.

    Credentials are boto3's own affair, of which `profile` names one. `address`: "public" or
    "private", "" for whichever there is, public first. `public_ip`: None for what the subnet says.
    """

    login: Login
    instance_type: str = ""
    launch_template: str = ""
    launch_template_version: str = "$Default"
    region: str = ""
    profile: str = ""
    endpoint_url: str = ""
    subnets: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    key_name: str = ""
    instance_profile: str = ""
    spot: bool = False
    public_ip: bool | None = None
    address: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Openstack:
    """VMs of OpenStack. `zones` are tried in their order while they have no capacity.

    `cloud`: its name in `clouds.yaml`, where the credentials are. `networks`: names or ids, [] for
    what Nova chooses. `floating_network`: where each VM gets a floating IP from; "": none.
    """

    login: Login
    cloud: str = ""
    region: str = ""
    flavor: str = ""
    networks: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    key_name: str = ""
    config_drive: bool | None = None
    floating_network: str = ""
    address: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


def ec2_of(settings: Mapping[str, Any]) -> Ec2:
    """Return what an ec2 pool's settings say; raises BadInput naming the wrong key."""
    read = _Reader("ec2", settings, (*_LOGIN, *(key for key in Ec2.__slots__ if key != "login")))
    found = Ec2(
        login=read.login(),
        instance_type=read.word("instance_type"),
        launch_template=read.word("launch_template"),
        launch_template_version=read.launch_template_version(),
        region=read.word("region"),
        profile=read.word("profile"),
        endpoint_url=read.url("endpoint_url"),
        subnets=read.words("subnets", starts="subnet-"),
        zones=read.words("zones"),
        security_groups=read.words("security_groups", starts="sg-"),
        key_name=read.word("key_name"),
        instance_profile=read.word("instance_profile"),
        spot=bool(read.flag("spot")),
        public_ip=read.flag("public_ip"),
        address=read.choice("address", ("public", "private")),
        tags=read.tags(),
    )
    if not found.instance_type and not found.launch_template:
        raise BadInput("instance_type is missing", hint="such as c7i.large; or a launch_template")
    if found.subnets and found.zones:
        raise BadInput("subnets and zones cannot both be given", hint="a subnet has its zone")
    return found


def openstack_of(settings: Mapping[str, Any]) -> Openstack:
    """Return what an openstack pool's settings say; raises BadInput naming the wrong key."""
    known = (*_LOGIN, *(key for key in Openstack.__slots__ if key != "login"))
    read = _Reader("openstack", settings, known)
    found = Openstack(
        login=read.login(),
        cloud=read.word("cloud"),
        region=read.word("region"),
        flavor=read.word("flavor"),
        networks=read.words("networks"),
        zones=read.words("zones"),
        security_groups=read.words("security_groups"),
        key_name=read.word("key_name"),
        config_drive=read.flag("config_drive"),
        floating_network=read.word("floating_network"),
        address=read.choice("address", ("public", "private")),
        tags=read.tags(),
    )
    if not found.flavor:
        raise BadInput("flavor is missing", hint="a name or id that `openstack flavor list` shows")
    return found


class _Reader:
    """Reads settings key by key; each method raises BadInput naming its key."""

    def __init__(self, kind: str, settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
        unknown = sorted(str(key) for key in settings if key not in known)
        if unknown:
            raise BadInput(
                f"the {kind} provider has no setting {', '.join(unknown)[:200]}",
                hint=f"settings: {', '.join(known)}",
            )
        self._settings = settings

    def login(self) -> Login:
        key_file = self._text("key_file", 4096)
        if not key_file:
            raise BadInput(
                "key_file is missing", hint="the private key that logs in, a path on the workers"
            )
        user = self._text("user") or "remuda"
        if not _USER.fullmatch(user) or user == "root":
            raise BadInput(f"user cannot be {shown(user)}", hint="a new user, not root")
        port = self._settings.get("port")
        return Login(
            key_file,
            user,
            22 if port is None else whole("port", port, least=1, most=65535),
            bool(self.flag("sudo")),
            self._text("user_data_file", 4096),
        )

    def word(self, key: str) -> str:
        text = self._text(key)
        if text and not _WORD.fullmatch(text):
            raise BadInput(f"{key} cannot be {shown(text)}")
        return text

    def words(self, key: str, *, starts: str = "") -> tuple[str, ...]:
        value = self._settings.get(key)
        listed = () if value is None else value
        if isinstance(listed, str) or not isinstance(listed, (list, tuple)):
            raise BadInput(f"{key} must be a list of names, not {shown(value)}")
        if len(listed) > MAX_PLACES:
            raise BadInput(f"{key} has {len(listed)} names, at most {MAX_PLACES} are possible")
        for each in listed:
            if not isinstance(each, str) or not _WORD.fullmatch(each):
                raise BadInput(f"{key} cannot have {shown(each)}")
            if not each.startswith(starts):
                raise BadInput(f"{key} must be ids such as {starts}..., not {shown(each)}")
        if len(set(listed)) != len(listed):
            raise BadInput(f"{key} has a name twice")
        return tuple(listed)

    def flag(self, key: str) -> bool | None:
        value = self._settings.get(key)
        if value is not None and not isinstance(value, bool):
            raise BadInput(f"{key} must be true or false, not {shown(value)}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        text = self._text(key)
        if text and text not in choices:
            raise BadInput(f"{key} must be one of {', '.join(choices)}, not {shown(text)}")
        return text

    def url(self, key: str) -> str:
        text = self._text(key)
        try:
            parts = urlsplit(text)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if text and (not good or "@" in text):
            raise BadInput(f"{key} must be an http or https URL without a password")
        return text

    def launch_template_version(self) -> str:
        text = self._text("launch_template_version") or "$Default"
        if text not in ("$Default", "$Latest") and not re.fullmatch(r"[0-9]{1,9}", text):
            raise BadInput(
                f"launch_template_version cannot be {shown(text)}",
                hint='a number as text, "$Latest" or "$Default"',
            )
        return text

    def tags(self) -> dict[str, str]:
        value = self._settings.get("tags")
        if value is not None and not isinstance(value, Mapping):
            raise BadInput(f"tags must be a mapping, not {shown(value)}")
        tags: dict[str, str] = {}
        for key, text in (value or {}).items():
            name = text_of("a key of tags", key, least=1, most=127)
            if name.startswith((OURS, "aws:")) or name == "Name":
                raise BadInput(f"tags cannot have {shown(name)}", hint="that one is not yours")
            tags[name] = text_of(f"tags.{name}", text, most=255)
        if len(tags) > 40:
            raise BadInput(f"tags has {len(tags)} keys, at most 40 are possible")
        return tags

    def _text(self, key: str, most: int = 500) -> str:
        value = self._settings.get(key)
        text = "" if value is None else text_of(key, value, most=most)
        if not text.isprintable():
            raise BadInput(f"{key} must be one line of text, not {shown(text)}")
        return text


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "ec2": ec2_of,
    "openstack": openstack_of,
}
