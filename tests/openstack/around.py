"""What is around Nova: Keystone, Glance and Neutron, as small as can be. Standard library only."""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

PASSWORD = "secret-password"
PROJECT = "6f70656e737461636b20342065766572"
# As Nova's own fixtures of Glance and Neutron have them.
IMAGE = "155d900f-4e14-4e4c-a73d-069cbf4541e6"
NETWORK = "3cb9bc59-5699-4588-a4b1-b87f96708bc6"
OUTSIDE = "0c1a7b5e-0000-4000-8000-00000000e801"
Answer = tuple[int, dict[str, Any]]


@dataclass
class Around:
    """Answers for the services at `url`; `refuse_login`: nobody gets in any more."""

    url: str
    refuse_login: bool = False
    tokens: set[str] = field(default_factory=set)
    floating_ips: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, str], dict[str, Any]] | None:
        """Return status, headers and body of an answer; None if it is Nova that is asked."""
        with self._lock:
            if path.startswith("/identity"):
                return self._identity(method, path, body)
            if path.startswith("/image"):
                return (*_plain(self._image(path, query)),)
            if path.startswith("/network"):
                return (*_plain(self._network(method, path, query, body)),)
        return None

    # ---- Keystone

    def _identity(
        self, method: str, path: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        if not path.endswith("/auth/tokens"):
            return 200, {}, {"version": self._version("v3.14", "/identity/v3")}
        user = body["auth"]["identity"]["password"]["user"]
        if self.refuse_login or user["password"] != PASSWORD:
            said = "The request you have made requires authentication."
            return 401, {}, {"error": {"code": 401, "message": said, "title": "Unauthorized"}}
        token = uuid.uuid4().hex
        self.tokens.add(token)
        ends = [("compute", "/v2.1"), ("image", "/image"), ("network", "/network")]
        catalog = [
            {
                "type": kind,
                "id": kind,
                "name": kind,
                "endpoints": [
                    {
                        "id": kind,
                        "interface": "public",
                        "region": "here",
                        "region_id": "here",
                        "url": self.url + path,
                    }
                ],
            }
            for kind, path in ends
        ]
        granted = {
            "methods": ["password"],
            "user": {"id": "u", "name": "u", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": PROJECT, "name": "p", "domain": {"id": "default", "name": "Default"}},
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2126-01-01T00:00:00.000000Z",
            "roles": [{"id": "member", "name": "member"}],
            "catalog": catalog,
        }
        return 201, {"X-Subject-Token": token}, {"token": granted}

    def _version(self, version: str, path: str) -> dict[str, Any]:
        link = {"rel": "self", "href": f"{self.url}{path}/"}
        return {"id": version, "status": "CURRENT", "links": [link]}

    # ---- Glance and Neutron

    def _image(self, path: str, query: dict[str, str]) -> Answer:
        if "/v2/images" not in path:
            return 300, {"versions": [self._version("v2.9", "/image/v2")]}
        known = {"id": IMAGE, "name": "cirros", "status": "active"}
        wanted = path.partition("/v2/images")[2].strip("/")
        if wanted:
            return (200, known) if wanted == IMAGE else (404, {})
        same = query.get("name") in (None, known["name"])
        return 200, {"images": [known] if same else []}

    def _network(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        if "/v2.0/" not in path:
            return 200, {"versions": [self._version("v2.0", "/network/v2.0")]}
        kind, _, wanted = path.partition("/v2.0/")[2].partition("/")
        if kind == "networks":
            found = [{"id": NETWORK, "name": "private"}, {"id": OUTSIDE, "name": "outside"}]
            if wanted:
                one = [n for n in found if n["id"] == wanted]
                return (200, {"network": one[0]}) if one else (404, {})
            return 200, {"networks": [n for n in found if query.get("name") in (None, n["name"])]}
        if kind == "ports":
            owner = query.get("device_id", "")
            return 200, {"ports": [{"id": f"port-{owner}", "device_id": owner}]}
        if kind == "floatingips":
            return self._floating(method, wanted, query, body)
        return 404, {}

    def _floating(
        self, method: str, wanted: str, query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        if method == "POST":
            asked = body["floatingip"]
            if any(f["port_id"] == asked["port_id"] for f in self.floating_ips.values()):
                return 409, _neutron("that port already has a floating IP")
            made = {"id": str(uuid.uuid4()), **asked}
            made["floating_ip_address"] = f"198.51.100.{len(self.floating_ips) + 1}"
            self.floating_ips[made["id"]] = made
            return 201, {"floatingip": made}
        if method == "DELETE":
            return (204, {}) if self.floating_ips.pop(wanted, None) else (404, {})
        keys = ("port_id", "description")
        found = [
            f
            for f in self.floating_ips.values()
            if all(query.get(key) in (None, f.get(key)) for key in keys)
        ]
        return 200, {"floatingips": found}


def _neutron(message: str) -> dict[str, Any]:
    return {"NeutronError": {"type": "Conflict", "message": message, "detail": ""}}


def _plain(answer: Answer) -> tuple[int, dict[str, str], dict[str, Any]]:
    return answer[0], {}, answer[1]


def clouds_yaml(url: str, *, password: str = PASSWORD) -> str:
    """Return a clouds.yaml with the cloud `test`; JSON is YAML."""
    auth = {
        "auth_url": f"{url}/identity/v3",
        "username": "u",
        "password": password,
        "project_id": PROJECT,
        "user_domain_id": "default",
    }
    return json.dumps({"clouds": {"test": {"auth": auth, "region_name": "here"}}})
