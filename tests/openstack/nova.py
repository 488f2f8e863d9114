"""A fake Nova: servers that are but rows, built a moment after they were asked for."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.openstack.around import IMAGE, Answer

VERSION = {"version": "2.104", "min_version": "2.1", "id": "v2.1", "status": "CURRENT"}
FLAVORS = {"2": "m1.small", "huge": "huge"}
SIZE = {"vcpus": 2, "ram": 2048, "disk": 20, "ephemeral": 0, "swap": 0, "extra_specs": {}}
QUOTA = 10
BUILD_S = 0.05
PAGE = 1000


def fault(code: int, message: str) -> Answer:
    """Return an error as Nova has it."""
    kind = {400: "badRequest", 403: "forbidden", 404: "itemNotFound", 409: "conflictingRequest"}
    return code, {kind.get(code, "computeFault"): {"code": code, "message": message}}


@dataclass
class FakeNova:
    """Answers for Nova at `url`.

    For tests to change: `refuse` gives an answer instead, by method and path; `no_host` tells whether
    a server finds no host; `page` is how many servers a list has at most.
    """

    url: str
    refuse: Callable[[str, str], Answer | None] = lambda method, path: None
    no_host: Callable[[dict[str, Any]], bool] = lambda server: False
    page: int = PAGE
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        """Answer a request."""
        with self._lock:
            self.asked.append((method, path, body))
            refused = self.refuse(method, path)
            if refused is not None:
                return refused
            self._go_on()
            _, _, kind, *rest = [*path.split("/"), ""]
            if kind == "":
                link = {"rel": "self", "href": f"{self.url}/v2.1/"}
                return 200, {"version": {**VERSION, "links": [link]}}
            if kind == "flavors":
                return self._flavors(rest[0])
            if kind == "servers":
                return self._servers(method, rest[0], query, body)
            return fault(404, "The resource could not be found.")

    def _flavors(self, wanted: str) -> Answer:
        flavors = [{"id": key, "name": name} for key, name in FLAVORS.items()]
        if wanted in ("", "detail"):
            return 200, {"flavors": flavors}
        one = [flavor for flavor in flavors if flavor["id"] == wanted]
        return (
            (200, {"flavor": one[0]}) if one else fault(404, f"Flavor {wanted} could not be found.")
        )

    def _servers(
        self, method: str, wanted: str, query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        if method == "POST":
            return self._make(body["server"])
        if wanted in ("", "detail"):
            return self._list(query)
        server = self.servers.get(wanted)
        if server is None:
            return fault(404, f"Instance {wanted} could not be found.")
        if method == "DELETE":
            server["OS-EXT-STS:task_state"] = "deleting"
            server["_until"] = time.monotonic() + BUILD_S
            return 204, {}
        return 200, {"server": _shown(server)}

    def _list(self, query: dict[str, str]) -> Answer:
        pattern = re.compile(query.get("name", ""))
        found = [s for s in self.servers.values() if pattern.search(s["name"])]
        found.sort(key=lambda s: s["_number"], reverse=True)
        if "marker" in query:
            ids = [server["id"] for server in found]
            if query["marker"] not in ids:
                return fault(400, f"marker [{query['marker']}] not found")
            found = found[ids.index(query["marker"]) + 1 :]
        answer: dict[str, Any] = {"servers": [_shown(s) for s in found[: self.page]]}
        if len(found) > self.page:
            last = found[self.page - 1]["id"]
            href = f"{self.url}/v2.1/servers/detail?marker={last}"
            answer["servers_links"] = [{"rel": "next", "href": href}]
        return 200, answer

    def _make(self, asked: dict[str, Any]) -> Answer:
        if asked["flavorRef"] not in FLAVORS:
            return fault(400, f"Flavor {asked['flavorRef']} could not be found.")
        if asked["imageRef"] != IMAGE:
            return fault(400, "Can not find requested image")
        if asked.get("availability_zone", "nova") not in ("nova", "west"):
            return fault(400, "The requested availability zone is not available")
        if len(self.servers) >= QUOTA:
            said = f"Requested 1, but already used {QUOTA} of {QUOTA} instances"
            return fault(403, f"Quota exceeded for instances: {said}")
        server = {
            "id": str(uuid.uuid4()),
            "name": asked["name"],
            "status": "BUILD",
            "OS-EXT-STS:task_state": "scheduling",
            "OS-EXT-STS:vm_state": "building",
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "metadata": asked.get("metadata", {}),
            "OS-EXT-AZ:availability_zone": asked.get("availability_zone", ""),
            "addresses": {},
            "accessIPv4": "",
            "accessIPv6": "",
            "flavor": {"original_name": FLAVORS[asked["flavorRef"]], **SIZE},
            "_until": time.monotonic() + BUILD_S,
            "_number": len(self.asked),
            "_asked": asked,
        }
        self.servers[server["id"]] = server
        return 202, {"server": {"id": server["id"], "adminPass": "x", "links": []}}

    def _go_on(self) -> None:
        """Let what is being built or ended go a step on."""
        for server in list(self.servers.values()):
            if server["_until"] is None or time.monotonic() < server["_until"]:
                continue
            server["_until"] = None
            if server["OS-EXT-STS:task_state"] == "deleting":
                del self.servers[server["id"]]
            elif server["_asked"]["flavorRef"] == "huge" or self.no_host(server["_asked"]):
                why = {"code": 500, "message": "No valid host was found. "}
                server |= {"status": "ERROR", "OS-EXT-STS:task_state": None, "fault": why}
            else:
                ip = f"192.168.1.{server['_number'] % 250 + 2}"
                one = {"addr": ip, "version": 4, "OS-EXT-IPS:type": "fixed"}
                server |= {"status": "ACTIVE", "OS-EXT-STS:task_state": None}
                server["addresses"] = {"private": [one]}


def _shown(server: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in server.items() if not key.startswith("_")}
