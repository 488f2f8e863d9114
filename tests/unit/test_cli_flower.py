"""`remuda flower`: its defaults, and who may use it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the process becomes."""
    monkeypatch.setenv("REMUDA_STATE_DIR", str(tmp_path / "state"))
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "")  # so that it is put back
    monkeypatch.delenv("FLOWER_BASIC_AUTH")
    words: list[str] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: words.extend(argv))
    return words


def flower(*options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(root, ["flower", *options])


def test_it_makes_a_user_whose_password_is_no_argument(became: list[str], tmp_path: Path) -> None:
    assert flower().exit_code == 0
    auth = tmp_path / "state" / "flower" / "auth"
    assert stat.S_IMODE(auth.stat().st_mode) == 0o600
    assert stat.S_IMODE(auth.parent.stat().st_mode) == 0o700
    user, password = auth.read_text().strip().split(":")
    assert user == "remuda"
    assert len(password) >= 20
    assert os.environ["FLOWER_BASIC_AUTH"] == f"remuda:{password}"
    assert became[:6] == [sys.executable, "-m", "celery", "-A", "remuda.tasks", "flower"]
    assert {"--address=127.0.0.1", "--persistent=true", "--port=5555"} <= set(became)
    assert f"--db={tmp_path}/state/flower/state" in became
    assert password not in " ".join(became)
    flower()
    assert os.environ["FLOWER_BASIC_AUTH"] == f"remuda:{password}"


def test_the_callers_options_win(became: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_MAX_TASKS", "5")
    assert flower("--port=8080", "--persistent=false", "--basic-auth=a:b").exit_code == 0
    assert "--port=5555" not in became
    assert "--persistent=true" not in became
    assert not [word for word in became if word.startswith("--max-tasks")]
    assert became[-3:] == ["--port=8080", "--persistent=false", "--basic-auth=a:b"]
    assert "FLOWER_BASIC_AUTH" not in os.environ


def test_users_come_from_a_file(became: list[str], tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# people\nann:s3cret:x\n\nbob:pw\n")
    users.chmod(0o600)
    assert flower("--auth-file", str(users)).exit_code == 0
    assert os.environ["FLOWER_BASIC_AUTH"] == "ann:s3cret:x,bob:pw"


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"ann:s3cret", 0o644, "others may read"),
        (b"ann s3cret", 0o600, "line 1 of"),
        (b"ann:s3cret,x", 0o600, "line 1 of"),
        (b":s3cret", 0o600, "line 1 of"),
        (b"# s3cret\n", 0o600, "names no user"),
        (b"\xff\xfe:s3cret", 0o600, "it is not text"),
    ],
)
def test_bad_files_are_refused_without_a_word_of_the_password(
    became: list[str], tmp_path: Path, content: bytes, mode: int, why: str
) -> None:
    users = tmp_path / "users"
    users.write_bytes(content)
    users.chmod(mode)
    result = flower("--auth-file", str(users))
    assert result.exit_code != 0
    assert why in result.stderr
    assert "s3cret" not in result.output
    assert became == []


def test_a_missing_file_is_refused(became: list[str], tmp_path: Path) -> None:
    result = flower("--auth-file", str(tmp_path / "none"))
    assert result.exit_code != 0
    assert "No such file" in result.stderr
    assert became == []
