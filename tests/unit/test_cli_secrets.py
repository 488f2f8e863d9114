"""`remuda secret` over a client that only remembers: values come by stdin or files alone."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from tests.unit.cli import stand_in


@dataclass
class FakeClient:
    """Remembers what is asked of it."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def put_secret(self, name: str, value: str) -> None:
        self.calls.append(("put", name, value))

    def secrets(self) -> list[dict[str, Any]]:
        return [{"name": "TOKEN", "pools": ["a", "b"], "updated_at": None}]

    def delete_secret(self, name: str) -> None:
        self.calls.append(("delete", name))

    def init_secrets(self) -> str:
        return "/x/secrets.keys"

    def rotate_secrets(self, step: str) -> int:
        self.calls.append(("rotate", step))
        return 2


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def remuda(line: str, **more: Any) -> Result:
    return CliRunner().invoke(root, shlex.split(line), prog_name="remuda", **more)


def test_a_value_comes_from_stdin_or_a_file(client: FakeClient, tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text("two\nlines\n\n")
    assert remuda("secret put TOKEN", input="päss\n").stdout == "secret TOKEN is stored\n"
    assert remuda(f"secret put OTHER --file {file}").exit_code == 0
    assert client.calls == [("put", "TOKEN", "päss"), ("put", "OTHER", "two\nlines\n")]


def test_a_value_is_never_a_word_of_the_command(client: FakeClient) -> None:
    result = remuda("secret put TOKEN hunter2")
    assert (result.exit_code, client.calls) == (2, [])
    assert remuda("secret put TOKEN --value hunter2").exit_code == 2
    result = remuda("secret put TOKEN", input=b"\xff\xfe")
    assert result.exit_code != 0
    assert "UTF-8" in result.stderr
    assert client.calls == []


def test_the_other_commands(client: FakeClient) -> None:
    assert "TOKEN" in remuda("secret list").stdout
    assert "a,b" in remuda("secret list").stdout
    assert remuda("secret init").stdout == "/x/secrets.keys\n"
    assert remuda("secret delete A B").exit_code == 0
    assert remuda("secret rotate").stdout == "2 secrets encrypted anew\n"
    assert "copy the file" in remuda("secret rotate --prepare").stdout
    for step in ("finish", "reencrypt"):
        assert remuda(f"secret rotate --{step}").exit_code == 0
    assert client.calls == [
        ("delete", "A"), ("delete", "B"), ("rotate", "all"), ("rotate", "prepare"),
        ("rotate", "finish"), ("rotate", "reencrypt"),
    ]  # fmt: skip
