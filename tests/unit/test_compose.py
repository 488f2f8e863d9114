"""What can be said of the files of compose/ without running them; compose/test runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from remuda.hosts import hosts_of

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text()
SCRIPTS = ["prepare", "test", "testing/postgres"]


def section(name: str) -> dict[str, str]:
    """Return the entries of a top-level mapping of compose.yaml, each with its text."""
    (body,) = re.findall(rf"^{name}:\n((?:(?:[ #].*)?\n)+)", TEXT, re.MULTILINE)
    parts = re.split(r"^  ([\w.-]+):", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def with_anchors(text: str) -> str:
    """Return an entry's text with the text of the anchors it merges."""
    for name in re.findall(r"<<: \*(\w+)", text):
        (body,) = re.findall(rf"^x-\w+: &{name}\n((?:[ #].*\n)+)", TEXT, re.MULTILINE)
        text += with_anchors(body)
    return text


def mentioned(name: str, text: str) -> set[str]:
    """Return the names of a list in an entry's text, written in one line or one line each."""
    found = set()
    for line in re.findall(rf"^ +{name}: \[(.*)\]$", text, re.MULTILINE):
        found |= set(line.split(", "))
    for block in re.findall(rf"^ +{name}:\n((?:      .*\n|    - .*\n)+)", text, re.MULTILINE):
        found |= set(re.findall(r"^ +- (?:source: )?([\w.-]+)", block, re.MULTILINE))
    return found


def test_the_file_is_plain_yaml() -> None:
    """No tab, even indentation, no key twice in a section, every anchor known."""
    for line in TEXT.splitlines():
        assert "\t" not in line, line
        assert line == line.rstrip(), line
        assert (len(line) - len(line.lstrip())) % 2 == 0, line
    keys = re.findall(r"^([\w-]+):", TEXT, re.MULTILINE)
    assert len(keys) == len(set(keys))
    for name in ("services", "secrets", "volumes"):
        (body,) = re.findall(rf"^{name}:\n((?:(?:[ #].*)?\n)+)", TEXT, re.MULTILINE)
        entries = re.findall(r"^  ([\w.-]+):", body, re.MULTILINE)
        assert len(entries) == len(set(entries)) > 0
    assert set(re.findall(r"\*(\w+)", TEXT)) <= set(re.findall(r"&(\w+)", TEXT))


def test_services() -> None:
    """All are there, none has rights it does not need, none waits for another."""
    services = section("services")
    nodes = {"node-1", "node-2"}
    ours = {"migrate", "worker", "beat", "flower", "metrics", "cli"}
    theirs = {"postgres", "rabbitmq", "prometheus", "grafana"}
    assert set(services) == theirs | ours | nodes
    for name, text in services.items():
        whole = with_anchors(text)
        assert "read_only: true" in whole, name
        assert "cap_drop: [ALL]" in whole, name
        assert "no-new-privileges:true" in whole, name
        assert "restart:" in whole, name
        assert "privileged: true" not in whole, name
    assert "depends_on" not in TEXT
    assert not re.search(r"PASSWORD[^_]", TEXT)


def test_secrets_and_volumes_are_declared_and_used() -> None:
    """Exactly those that services name."""
    services = [with_anchors(text) for text in section("services").values()]
    assert set.union(*(mentioned("secrets", text) for text in services)) == set(section("secrets"))
    volumes = set.union(*(mentioned("volumes", text) for text in services)) - {"."}
    assert volumes == set(section("volumes"))
    for path in re.findall(r"^ +- \./(\S+?):/", TEXT, re.MULTILINE):
        assert (COMPOSE / path).exists(), path


def test_prometheus_asks_whoever_serves_metrics() -> None:
    """`metrics` once, and every container of `worker`; neither port is published."""
    asked = (COMPOSE / "prometheus/compose.yml").read_text()
    services = section("services")
    (port,) = re.findall(r'"--metrics=0\.0\.0\.0:(\d+)"', services["worker"])
    assert re.findall(r"names: \[(\w+)\]\n +type: A\n +port: (\d+)", asked) == [("worker", port)]
    (port,) = re.findall(r'"--listen=0\.0\.0\.0:(\d+)"', services["metrics"])
    assert re.findall(r'targets: \["(.*)"\]', asked) == [f"metrics:{port}"]
    assert "ports:" not in services["worker"] + services["metrics"]


def test_variables_are_those_of_the_example() -> None:
    """Each has a default in compose.yaml, the same as in .env.example."""
    used = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", TEXT))
    assert len(re.findall(r"(?<!\$)\$\{?\w", TEXT)) == len(
        re.findall(r"(?<!\$)\$\{\w+:-[^}]*\}", TEXT)
    )
    example = (COMPOSE / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)) == used
    container = (COMPOSE / "Containerfile").read_text()
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", container, re.MULTILINE)
    assert base == used["REMUDA_BASE_IMAGE"]


def test_images() -> None:
    """Every target built exists and ends as an ordinary user; what is copied is there."""
    container = (COMPOSE / "Containerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", container, re.M | re.S))
    for target in re.findall(r"^ +target: (remuda|node)$", TEXT, re.MULTILINE):
        assert re.findall(r"^USER (.*)$", stages[target], re.MULTILINE) == ["remuda"]
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", container, re.MULTILINE):
        for source in sources.split():
            assert (COMPOSE.parent / source).exists(), source


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    """They can be executed, and their shell finds no mistake."""
    path = COMPOSE / script
    assert path.stat().st_mode & stat.S_IXUSR
    shell = path.read_text().partition("\n")[0].rpartition("/")[2].split()[-1]
    subprocess.run([shell, "-n", str(path)], check=True, timeout=30)


def test_test_says_what_is_missing(tmp_path: Path) -> None:
    """Without its tools it names the packages, and makes nothing."""
    for tool in ("bash", "dirname", "env", "timeout", "id"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    script = (COMPOSE / "test").read_text().replace("PATH=$PATH:/usr/sbin:/sbin\n", "")
    copy = tmp_path / "test"
    copy.write_text(script)
    copy.chmod(0o755)
    environment = {"PATH": str(tmp_path), "REMUDA_TEST_DIR": str(tmp_path / "work")}
    done = subprocess.run(
        [str(tmp_path / "bash"), str(copy)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    for package in ("podman", "mmdebstrap", "openssh-client", "runc", "podman-compose"):
        assert package in done.stderr
    assert not (tmp_path / "work").exists()


def test_prepare_makes_every_secret_once(tmp_path: Path) -> None:
    """The files that compose.yaml mounts, readable in containers, in a folder of the owner's."""
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run(
            [str(COMPOSE / "prepare"), str(folder)],
            check=True,
            timeout=60,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        made = {path.name: path.read_text() for path in folder.iterdir()}
        assert set(made) - {"complete"} == set(section("secrets"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in section("secrets")} == {0o444}
    settings = tomllib.loads(made["remuda.toml"])
    assert f":{made['postgres_password']}@postgres/" in settings["database_url"]
    (password,) = re.findall(r"default_pass = (\w{48})", made["rabbitmq.conf"])
    assert f":{password}@rabbitmq/" in settings["broker_url"]
    hosts = hosts_of({"hosts": json.loads(made["hosts.json"])})
    assert [host.address for host in hosts] == ["node-1", "node-2"]
    assert len({host.host_key for host in hosts}) == 2
