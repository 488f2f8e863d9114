"""A Slurm cluster with accounting: slurmdbd, and a MariaDB of its own on a socket in its folder."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurmd import Slurm, free_ports, new_folder, running

_DEADLINE_S = 30.0
# Where MariaDB has the definitions of its own tables, whose names begin as the folder's: Debian 13's, 12's.
_SHARES = (Path("/usr/share/mariadb"), Path("/usr/share/mysql"))
_SHARE = next((folder for folder in _SHARES if folder.is_dir()), _SHARES[0])
_QUICK = ("--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0")


class AccountedSlurm(Slurm):
    """One cluster whose jobs are accounted for; its third port is slurmdbd's."""

    @property
    def accounting(self) -> str:
        return (
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
            f"AccountingStoragePort={self.ports[2]}\nAccountingStorageUser=remuda\n"
            f"AccountingStoragePass={self.folder}/munge.sock\n"  # it names munged's socket
        )

    @property
    def environ(self) -> dict[str, str]:
        return {"MYSQL_UNIX_PORT": str(self.folder / "db.sock")}  # what slurmdbd's client reads

    def words(self, name: str) -> list[str]:
        if name == "mariadbd":
            return [*self._database(), "--skip-grant-tables", "--skip-networking"]
        return ["-D"] if name == "slurmdbd" else super().words(name)

    def _database(self) -> list[str]:
        user = pwd.getpwuid(os.geteuid()).pw_name
        words = ["--no-defaults", f"--user={user}", f"--datadir={self.folder}/db"]
        words += [f"--socket={self.folder}/db.sock", f"--pid-file={self.folder}/db.pid"]
        return [*words, f"--lc-messages-dir={_SHARE}", *_QUICK]

    def configure(self) -> None:
        super().configure()
        (self.folder / "db").mkdir()
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self.ports[2]}\n"
            f"SlurmUser={pwd.getpwuid(os.geteuid()).pw_name}\n"
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge.sock\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=remuda\n"
            f"StorageLoc=accounts\nMessageTimeout=5\nPidFile={self.folder}/slurmdbd.pid\n"
        )
        conf.chmod(0o600)
        tables = "".join(
            (_SHARE / f"{_SHARE.name}_system_tables{part}.sql").read_text()
            for part in ("", "_data")
        )
        subprocess.run(
            [*self.command("mariadbd")[:5], *self._database(), "--bootstrap"],
            input=f"CREATE DATABASE mysql;\nUSE mysql;\n{tables}CREATE DATABASE accounts;\n",
            text=True,
            check=True,
            capture_output=True,
            timeout=_DEADLINE_S,
        )

    def prepare(self) -> None:
        self.start("mariadbd")
        self.until("the database listens", (self.folder / "db.sock").exists)
        self.start("slurmdbd")
        add = ("sacctmgr", "--immediate", "add")
        self.wait("the cluster is known", *add, "cluster", "remuda", says="already exists")
        self.ask(*add, "account", "physics")


@pytest.fixture(scope="session")
def accounted() -> Iterator[AccountedSlurm]:
    """The cluster with accounting of this test session."""
    with running(AccountedSlurm(new_folder(), free_ports(3), remembers_s=2)) as cluster:
        yield cluster
