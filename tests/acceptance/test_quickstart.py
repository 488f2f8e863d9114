"""The README's lines, run verbatim: on the embedded default, and on PostgreSQL with RabbitMQ."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import running_system

README = Path(__file__).parents[2] / "README.md"
SHELL = """
import sys
open(sys.argv[1] + '.txt', 'w').write('tile ' + sys.argv[1])
print('rendered', sys.argv[1])
"""
# What the README's Python leaves to the reader's own files.
SIM = "import sys\nopen('out.csv', 'w').write('seed,' + sys.argv[1])\n"


def section(title: str) -> list[str]:
    """Return the indented code blocks under a heading of the README."""
    text = README.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^(?:    .*)?\n)+", text, flags=re.MULTILINE)
    return [block for block in (textwrap.dedent(b).strip("\n") for b in found) if block.strip()]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which nothing is configured, with a home of its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REMUDA_", "XDG_"))
    }
    environment["HOME"] = str(tmp_path / "a home")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    (tmp_path / "a home").mkdir()
    yield environment
    remuda = [sys.executable, "-m", "remuda"]
    subprocess.run([*remuda, "down", "--now"], env=environment, check=False, timeout=60)


@pytest.fixture(params=["embedded", "amqp"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str
) -> Iterator[dict[str, str]]:
    """Each of the two worlds the lines must run in."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    url = request.getfixturevalue("rabbitmq_url")
    with running_system(tmp_path, database_url=database_url, broker_url=url) as system:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield {**system.environment, "PATH": path}


def commands() -> list[str]:
    """Return the shell lines of the README, their continuations joined, comments kept."""
    text = "\n".join(section("From the shell")).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


def test_shell(environment: dict[str, str], tmp_path: Path) -> None:
    """Every shell line does what it says; `remuda run` gives the command's own output and code."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "tile.py").write_text(SHELL)
    lines = commands()
    assert len(lines) == 9, lines

    def run(line: str, *, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=work,
            env=environment,
            text=True,
            timeout=timeout_s,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done

    assert run(lines[0]).stdout == "hello\n"
    run(lines[1])
    submitted = run(lines[2]).stdout
    first = re.search(r"\d+(?=\.\.)|^\d+", submitted, flags=re.MULTILINE)
    assert first, submitted
    run(lines[3])
    assert run(lines[4].replace("ID", first[0])).stdout == "rendered 0\n"
    run(lines[5], timeout_s=200)
    run(lines[6].replace("ID", first[0]))
    assert (work / "results" / "0.txt").read_text() == "tile 0"
    told = run(lines[7]).stdout
    assert "sim" in told
    run(lines[8])
    own = shlex.join([sys.executable, "-m", "remuda"])
    code = subprocess.run(
        ["bash", "-c", f"{own} run -- sh -c 'echo out; echo err >&2; exit 3'"],
        cwd=work,
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (code.returncode, code.stdout, code.stderr) == (3, "out\n", "err\n")


def test_python(environment: dict[str, str], tmp_path: Path) -> None:
    """The Python of the README runs verbatim, with 40 seeds for its thousand."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "sim.py").write_text(SIM)
    blocks = section("From Python")
    assert len(blocks) == 3, blocks
    main = blocks[0].replace("range(1000)", "range(40)")
    # The other two stand after the first, inside its `with`; what they take for granted is made.
    given = """
from sqlalchemy import Column, Integer, create_engine
from sqlalchemy.orm import DeclarativeBase, Session
from remuda.config import load_settings
from remuda.system import database_url
class Base(DeclarativeBase): pass
class Order(Base):
    __tablename__ = "orders"
    id = Column(Integer, primary_key=True)
engine = create_engine(database_url(load_settings()))
Base.metadata.create_all(engine)
with Client() as remuda:
    for name in ("billing", "builders", "spare"):
        made = remuda.create_pool(name, provider="local", slots_per_vm=1)
        made.setup_elastic(maximum_total_slots=1, resize_period=1)
        made.submit()
"""
    rest = "\n".join(blocks[1:]).replace("Order(...)", "Order()")
    after = """
    billed = remuda.jobs(pool="billing")
    assert [job.state for job in billed] != [] and len(billed) == 1, billed
    for name in ("billing", "builders", "spare"):
        remuda.pool(name).close(now=True)
"""
    script = main + "\n" + given + textwrap.indent(rest, "    ") + after
    (work / "quickstart.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "quickstart.py"],
        cwd=work,
        env=environment,
        text=True,
        timeout=200,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    ended = [line for line in lines if line.startswith("sim-")]
    assert len(ended) == 40, done.stdout
    assert all(line.split()[1] == "0" for line in ended), ended
    for seed in range(40):
        assert (work / "results" / str(seed) / "out.csv").read_text() == f"seed,{seed}"
    assert lines[-1].startswith("127.0.0.1 "), lines[-3:]
