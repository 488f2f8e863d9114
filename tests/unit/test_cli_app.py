"""The root command: help without imports, errors in a line, exit codes, completion."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from remuda.cli.base import App, Command, Entry, LazyGroup
from remuda.errors import BadInput, DatabaseUnavailable, RemudaError


def remuda(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), prog_name="remuda")


def commands(group: LazyGroup, path: str = "") -> Iterator[tuple[str, Entry, click.Command]]:
    ctx = click.Context(group)
    for name, entry in group.entries.items():
        command = group.get_command(ctx, name)
        assert command is not None
        yield f"{path}{name}", entry, command
        if isinstance(command, LazyGroup):
            yield from commands(command, f"{path}{name} ")


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    script = (
        "import sys\n"
        "from remuda.cli import main\n"
        "sys.argv = ['remuda', '--help']\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'sqlalchemy', 'celery', 'kombu', 'pydantic', 'rich', 'psycopg', 'alembic'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    took: list[float] = []  # in processor time: how busy the machine is, is none of its matter
    while len(took) < 10 and (not took or took[-1] > 0.4):
        began = cpu_of_children_s()
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        took.append(cpu_of_children_s() - began)
        assert done.stderr.strip() == "[]"
        assert "Batch jobs on a herd" in done.stdout
    assert min(took) <= 0.4


def cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_every_help_line_is_that_of_its_command_and_every_command_takes_debug() -> None:
    found = list(commands(root))
    assert len(found) > 30
    for path, entry, command in found:
        assert command.get_short_help_str(200) == entry.help, path
        assert command.name == path.rsplit(" ", 1)[-1], path
        if not isinstance(command, LazyGroup):
            assert isinstance(command, Command), path
            assert "--debug" in {name for option in command.params for name in option.opts}, path


def test_every_command_has_a_help_page() -> None:
    for path, _, _ in commands(root):
        result = remuda(*path.split(), "--help")
        assert result.exit_code == 0, path
        assert result.stdout.startswith(f"Usage: remuda {path}"), path


def test_every_command_named_in_the_issue_is_there() -> None:
    names = {path for path, _, _ in commands(root)}
    wanted = """up down status doctor run demo worker beat flower completion
        job_submit job_list job_show job_logs job_cancel job_wait job_retry job_explain job_results
        pool_create pool_list pool_show pool_set pool_close pool_delete pool_explain
        vm_list vm_show vm_drain vm_terminate db_upgrade db_check"""
    assert {name.replace("_", " ") for name in wanted.split()} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jbo",), "there is no command 'jbo'; did you mean 'job'?"),
        (("job", "lst"), "there is no command 'lst'; did you mean 'list'?"),
        (("--nope",), "No such option '--nope'"),
        (("job", "list", "--state", "ASLEEP"), "Invalid value for '--state'"),
        (("job", "submit"), "Missing argument 'COMMAND...'"),
        (("job", "wait", "seven"), "'seven' is not a job's id"),
        (("job", "wait"), "say which jobs"),
        (("job", "cancel", "1", "--pool", "p"), "say which jobs"),
        (("job", "submit", "--memory", "lots", "--", "true"), "'lots' is not a size"),
        (("job", "submit", "--walltime", "nan", "--", "true"), "'nan' is not a duration"),
        (("pool", "create", "p", "--min-slots", "2"), "an elastic pool needs --max-slots"),
        (("pool", "create", "p", "--vms", "1", "--max-slots", "2"), "--vms is for a pool of fixed"),
        (("pool", "create", "p", "--min-slots", "3", "--max-slots", "2"), "is above --max-slots"),
        (("pool", "set", "p"), "nothing to set"),
        (("completion", "tcsh"), "Invalid value"),
    ],
)
def test_a_wrong_usage_is_one_line_and_a_hint(arguments: tuple[str, ...], message: str) -> None:
    result = remuda(*arguments)
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert lines[0].startswith("remuda: error: ")
    assert message in lines[0]
    assert [line[:6] for line in lines[1:]] == ["hint: "]


def test_no_arguments_at_all_show_the_help_page() -> None:
    result = remuda()
    assert result.exit_code == 2
    assert "Usage: remuda" in result.stderr


def test_version() -> None:
    assert remuda("--version").stdout.startswith("remuda ")


def app_raising(error: BaseException) -> App:
    class Broken(App):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            def body() -> None:
                raise error

            return Command("fail", callback=body)

    return Broken("remuda", {"Commands": {"fail": Entry("none", "Fail.")}})


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BadInput("no such thing", hint="try another"), 2,
         "remuda: error: no such thing\nhint: try another\n"),
        (RemudaError("broken"), 1, "remuda: error: broken\n"),
        (DatabaseUnavailable(), 1, "remuda: error: The database does not answer.\n"),
        (RemudaError("two\nlines"), 1, "remuda: error: two lines\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1,
         "remuda: error: /x: Permission denied\n"),
        (KeyError("gone"), 1, "remuda: error: unexpected KeyError: 'gone'\nhint: this is a bug"
         " of Remuda; the same command with --debug shows where\n"),
        (BrokenPipeError(), 141, ""),
        (click.exceptions.Exit(7), 7, ""),
    ],
)  # fmt: skip
def test_errors_become_a_line_and_an_exit_code(error: Exception, code: int, told: str) -> None:
    result = CliRunner().invoke(app_raising(error), ["fail"])
    assert (result.exit_code, result.stderr) == (code, told)


def test_ctrl_c_is_130_without_a_traceback() -> None:
    result = CliRunner().invoke(app_raising(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr.strip() == ""


def test_a_traceback_only_with_debug() -> None:
    result = CliRunner().invoke(app_raising(RemudaError("broken")), ["fail", "--debug"])
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("remuda: error: broken\n")


def test_the_reader_of_a_pipe_may_leave() -> None:
    script = (
        "import sys, json\n"
        "import remuda.cli.output as o\n"
        "from remuda.cli.base import App, Command, Entry\n"
        "def body(): o.print_json(['x' * 70000] * 50)\n"
        "class A(App):\n    def get_command(self, ctx, name): return Command('f', callback=body)\n"
        "A('r', {'C': {'f': Entry('f', 'F.')}}).main(['f'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Unbuffered, Python itself does not notice.
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = remuda("completion", shell)
    assert result.exit_code == 0
    assert "_REMUDA_COMPLETE" in result.stdout


def test_completion_of_commands_and_options() -> None:
    def complete(words: str, at: int) -> list[str]:
        env = {"_REMUDA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        result = CliRunner().invoke(root, [], prog_name="remuda", env=env)
        return [line.partition(",")[2] for line in result.stdout.splitlines()]

    assert complete("remuda jo", 1) == ["job"]
    assert "submit" in complete("remuda job ", 2)
    assert complete("remuda job list --sta", 3) == ["--state"]
    assert "running" in complete("remuda job list --state ", 4)


def test_the_page_in_docs_names_every_option_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    named = set(re.findall(r"--[a-z][a-z-]*", page)) - {"--help"}
    real = {
        name
        for _, _, command in commands(root)
        for option in command.params
        for name in option.opts
        if name.startswith("--")
    }
    assert named == real
