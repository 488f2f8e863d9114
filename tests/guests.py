"""Machines behind moto's instances: each boots as its user data say, an sshd at its own address."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remuda.workers.providers.local import remove_tree
from tests.contract.test_providers import living
from tests.sshd import Sshd

NET = "127.77.0.0/16"  # all of 127/8 is this machine's own


class Guests:
    """Boots what runs at moto, in a thread, and ends what was terminated."""

    def __init__(self, api: Any, *, user: str, port: int) -> None:
        """Log `user` in, whatever account the user data ask for; sshd listens on `port`."""
        self.api, self.user, self.port = api, user, port
        self.up: dict[str, Sshd] = {}
        self.failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guests")

    def subnet(self) -> str:
        """Make a subnet whose addresses are this machine's, and return it."""
        vpc = self.api.create_vpc(CidrBlock=NET)["Vpc"]["VpcId"]
        return str(self.api.create_subnet(VpcId=vpc, CidrBlock=NET)["Subnet"]["SubnetId"])

    def running(self) -> dict[str, dict[str, Any]]:
        """Return the instances that are not terminated."""
        held = self.api.describe_instances()["Reservations"]
        return {
            i["InstanceId"]: i
            for r in held
            for i in r["Instances"]
            if i["State"]["Name"] != "terminated"
        }

    def _run(self) -> None:
        try:
            while not self._over.wait(0.05):
                there = self.running()
                for vm_id in there.keys() - self.up.keys():
                    if there[vm_id]["PrivateIpAddress"].startswith("127."):
                        self.up[vm_id] = self._boot(vm_id, there[vm_id]["PrivateIpAddress"])
                for vm_id in self.up.keys() - there.keys():
                    _end(self.up.pop(vm_id))
        except BaseException as error:
            self.failure = error

    def _boot(self, vm_id: str, address: str) -> Sshd:
        """Do what cloud-init would."""
        told = self.api.describe_instance_attribute(InstanceId=vm_id, Attribute="userData")
        text = base64.b64decode(told["UserData"]["Value"]).decode()
        assert text.startswith("#cloud-config\n"), text[:40]
        config = json.loads(text.partition("\n")[2])
        folder = Path(tempfile.mkdtemp(prefix="remuda-guest-"))
        server = Sshd(folder, self.user, self.port, address)
        server.prepare()
        (folder / "host_key").write_text(config["ssh_keys"]["ed25519_private"])
        (folder / "authorized_keys").write_text(
            "\n".join(config["users"][0]["ssh_authorized_keys"])
        )
        server.configure()
        server.start()
        return server

    def stop(self) -> None:
        """Stop booting, and end all that is up."""
        self._over.set()
        self._thread.join(20)
        for server in self.up.values():
            _end(server)

    def start(self) -> None:
        """Begin."""
        self._thread.start()


def _end(server: Sshd) -> None:
    server.kill()
    for pid in living(server.home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    remove_tree(server.folder)


@contextlib.contextmanager
def guests(api: Any, *, user: str, port: int) -> Iterator[Guests]:
    """Have instances boot."""
    made = Guests(api, user=user, port=port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
    if made.failure is not None:
        raise made.failure
