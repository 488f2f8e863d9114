"""User data for a VM's first boot, and its host key that every worker can tell."""

from __future__ import annotations

import email
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remuda.errors import AuthError, PermanentProviderError
from remuda.hosts import host_of
from remuda.workers.login import hang_up, log_in
from remuda.workers.providers import firstboot
from remuda.workers.providers.firstboot import PoolKey, read_key, user_data
from tests.sshd import Sshd, free_port, keygen, me


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "pool_key"
    keygen(path)
    return path


@pytest.fixture
def key(key_file: Path) -> PoolKey:
    return read_key(str(key_file))


def config_of(data: bytes) -> dict[str, Any]:
    head, _, rest = data.decode().partition("\n")
    assert head == "#cloud-config"
    config = json.loads(rest)
    assert isinstance(config, dict)
    return config


def parts_of(data: bytes) -> list[tuple[str, bytes, Any]]:
    """Return the type, content and merging of each part."""
    leaves = [p for p in email.message_from_bytes(data).walk() if not p.is_multipart()]
    contents = [bytes(part.get_payload(decode=True)) for part in leaves]
    kinds = [(part.get_content_type(), part["Merge-Type"]) for part in leaves]
    return [(kind, content, merge) for (kind, merge), content in zip(kinds, contents, strict=True)]


class TestHostKey:
    def test_ssh_keygen_reads_it(self, key: PoolKey, tmp_path: Path) -> None:
        host_key = key.host_key("token")
        path = tmp_path / "host_key"
        path.write_text(host_key.private)
        path.chmod(0o600)
        told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, check=True)
        assert told.stdout.decode().split() == host_key.public.split()

    def test_it_is_the_same_for_the_same_vm_alone(self, key: PoolKey, tmp_path: Path) -> None:
        keygen(tmp_path / "other")
        other = read_key(str(tmp_path / "other"))
        keys = [key.host_key("a"), key.host_key("b"), other.host_key("a")]
        assert key.host_key("a") == keys[0]
        assert len({k.public for k in keys}) == len({k.private for k in keys}) == 3

    @pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
    def test_the_form_of_the_pools_key_does_not_matter(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "key"
        bits = ["-b", "1024"] if kind == "rsa" else []
        make = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", "one", "-f", str(path)]
        subprocess.run(make, check=True)
        before = read_key(str(path)).host_key("t")
        words = ["-c", "-C", "two"] if kind == "ed25519" else ["-p", "-N", "", "-m", "PEM"]
        subprocess.run(["ssh-keygen", "-q", *words, "-f", path], check=True)
        assert read_key(str(path)).host_key("t") == before
        public = path.with_name("key.pub").read_text().split()[:2]
        assert read_key(str(path)).public.split() == public

    def test_nothing_private_is_shown(self, key: PoolKey, key_file: Path) -> None:
        host_key = key.host_key("t")
        shown = f"{key!r} {key} {host_key!r} {host_key}"
        assert "PRIVATE" not in shown
        assert "secret" not in shown
        assert key_file.read_text().split()[3] not in shown

    def test_a_server_with_it_is_believed_and_no_other(self, tmp_path: Path) -> None:
        server = Sshd(tmp_path, me(), free_port())
        server.prepare()
        key = read_key(str(server.key_file))
        (server.folder / "host_key").write_text(key.host_key("token").private)
        server.configure()
        try:
            server.start()
            address = firstboot.address_of(key, "token", server.address, user=server.user)
            assert (address.pop("home"), address["port"]) == (".remuda/vm", 22)
            right = host_of({**address, "port": server.port})
            hang_up(log_in(right, 10.0))
            wrong = host_of({**right.way(), "host_key": key.host_key("other").public})
            with pytest.raises(AuthError, match="HOST KEY CHANGED"):
                log_in(wrong, 10.0)
        finally:
            server.kill()


class TestReading:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
    def test_a_key_that_others_may_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        keygen(tmp_path / "key")
        (tmp_path / "key").chmod(mode)
        with pytest.raises(PermanentProviderError, match=rf"mode is {mode:o}.*chmod 600"):
            read_key(str(tmp_path / "key"))

    @pytest.mark.parametrize(
        "content", [b"", b"junk\xff", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx"]
    )
    def test_what_is_no_key_is_refused_and_not_shown(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(PermanentProviderError, match="no private key") as caught:
            read_key(str(path))
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("form", [[], ["-m", "PEM"]])
    def test_a_passphrase_is_refused(self, tmp_path: Path, form: list[str]) -> None:
        path = tmp_path / "key"
        kind = "ecdsa" if form else "ed25519"
        make = ["ssh-keygen", "-q", "-t", kind, *form, "-N", "a phrase", "-f", str(path)]
        subprocess.run(make, check=True)
        with pytest.raises(PermanentProviderError, match="has a passphrase"):
            read_key(str(path))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        for read in (read_key, firstboot.read_user_data):
            with pytest.raises(PermanentProviderError, match=r"none.*No such file.*workers"):
                read(str(tmp_path / "none"))

    def test_user_data_is_text_of_some_length(self, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_text("#!/bin/sh\necho ü\n")
        assert firstboot.read_user_data(str(path)) == "#!/bin/sh\necho ü\n"
        path.write_bytes(b"\xff secret")
        with pytest.raises(PermanentProviderError, match="UTF-8") as caught:
            firstboot.read_user_data(str(path))
        assert "secret" not in str(caught.value)
        path.write_bytes(b"x" * (firstboot.MAX_FILE_BYTES + 1))
        with pytest.raises(PermanentProviderError, match="more than"):
            firstboot.read_user_data(str(path))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_a_key_of_another_owner_may_be_read_by_our_group(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        keygen(path)
        os.chown(path, 12345, -1)
        path.chmod(0o440)
        assert read_key(str(path)).public.startswith("ssh-ed25519 ")


class TestUserData:
    def test_it_lets_one_user_in_and_shows_the_host_key(self, key: PoolKey) -> None:
        config = config_of(user_data(key, "t", user="jobs", hostname="sim-1"))
        (account,) = config["users"]
        assert account == {
            "name": "jobs",
            "lock_passwd": True,
            "ssh_authorized_keys": [key.public],
        }
        assert config["ssh_keys"]["ed25519_public"] == key.host_key("t").public
        assert config["ssh_keys"]["ed25519_private"] == key.host_key("t").private
        assert (config["disable_root"], config["ssh_pwauth"]) == (True, False)
        assert config["hostname"] == "sim-1"

    def test_options(self, key: PoolKey) -> None:
        data = user_data(key, "t", user="jobs", sudo=True, default_user=True, hostname="no/name")
        config = config_of(data)
        assert config["users"][0] == "default"
        assert config["users"][1]["sudo"] == "ALL=(ALL) NOPASSWD:ALL"
        assert "hostname" not in config

    @pytest.mark.parametrize(
        ("extra", "kind"),
        [
            ("#cloud-config\npackages: [git]\n", "text/cloud-config"),
            ("#!/bin/sh\necho ü\n", "text/x-shellscript"),
            ("\n  #!/bin/sh\n" + "x" * 2000, "text/x-shellscript"),
            ("#include\nhttps://example.org/x\n", "text/x-include-url"),
            ("## template: jinja\n#cloud-config\n", "text/jinja2"),
            ("#cloud-boothook\n", "text/cloud-boothook"),
        ],
    )
    def test_more_of_it_comes_first(self, key: PoolKey, extra: str, kind: str) -> None:
        data = user_data(key, "t", user="jobs", extra=extra)
        assert data == user_data(key, "t", user="jobs", extra=extra)
        (first_kind, first, _), (_, last, merge) = parts_of(data)
        assert (first_kind, first.decode()) == (kind, extra.lstrip())
        assert config_of(last)["users"][0]["name"] == "jobs"
        assert merge == "dict(replace)+list()+str()"

    def test_an_archive_is_taken_apart(self, key: PoolKey) -> None:
        inner = user_data(key, "x", user="a", extra="#!/bin/sh\n").decode()
        parts = parts_of(user_data(key, "t", user="b", extra=inner))
        kinds = ["text/x-shellscript", "text/cloud-config", "text/cloud-config"]
        assert [kind for kind, _, _ in parts] == kinds

    @pytest.mark.parametrize("extra", ["secret", "packages: [secret]", "Content-Type: secret\n\nx"])
    def test_what_cloud_init_does_not_know_is_refused(self, key: PoolKey, extra: str) -> None:
        with pytest.raises(PermanentProviderError, match="nothing that cloud-init knows") as caught:
            user_data(key, "t", user="jobs", extra=extra)
        assert "secret" not in str(caught.value)

    def test_there_is_a_limit(self, key: PoolKey) -> None:
        size = len(user_data(key, "t", user="jobs"))
        assert user_data(key, "t", user="jobs", most_bytes=size)
        with pytest.raises(PermanentProviderError, match=rf"{size} bytes, .* at most {size - 1}"):
            user_data(key, "t", user="jobs", most_bytes=size - 1)
