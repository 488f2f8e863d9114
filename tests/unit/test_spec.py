"""JobSpec: what can never be right is refused at once, by name; the rest is kept as meant."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.spec import MAX_COMMAND_BYTES, JobSpec
from remuda.spec_files import Input, Output

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "retries twice": ({"retries": 2, "retry": {"max_retries": 0}}, "one of retries and retry"),
    "no word": ({"command": []}, "empty"),
    "an empty string": ({"command": ""}, "empty"),
    "an empty first word": ({"command": ["", "x"]}, "empty"),
    "blank for the shell": ({"command": "  ", "shell": True}, "empty"),
    "a list for the shell": ({"command": ["a"], "shell": True}, "one string"),
    "not a list": ({"command": {"a": 1}}, "list of words"),
    "no command": ({"command": None}, "list of words"),
    "a number among the words": ({"command": ["seq", 5]}, r"command\[1\] must be text, not 5"),
    "an open quotation": ({"command": "echo 'a"}, "split"),
    "NUL": ({"command": ["a\0b"]}, "NUL"),
    "a lone surrogate": ({"command": ["\udcff"]}, "UTF-8"),
    "too long a command": ({"command": ["x", *["y" * 1000] * 200]}, "at most 131072"),
    "too long a word": ({"command": ["x" * MAX_COMMAND_BYTES]}, "at most 131071"),
    "cores 0": ({"cores": 0}, "cores must be a whole number from 1 to 100000, not 0"),
    "cores -1": ({"cores": -1}, "cores"),
    "cores 10**9": ({"cores": 10**9}, "cores"),
    "cores as text": ({"cores": "4"}, "cores must be a whole number .* not '4'"),
    "cores True": ({"cores": True}, "cores"),
    "cores 1.0": ({"cores": 1.0}, "cores"),
    "cores nan": ({"cores": float("nan")}, "cores"),
    "cores None": ({"cores": None}, "cores"),
    "cores beyond printing": ({"cores": 10**5000}, "more than 60 digits"),
    "memory 0": ({"memory_bytes": 0}, "memory_bytes"),
    "memory negative": ({"memory_bytes": -1}, "memory_bytes"),
    "memory 10**18": ({"memory_bytes": 10**18}, "memory_bytes"),
    "memory as text": ({"memory_bytes": "512M"}, "memory_bytes .* not '512M'"),
    "memory nan": ({"memory_bytes": float("nan")}, "memory_bytes"),
    "walltime 0": ({"walltime_s": 0}, "walltime_s must be a number, more than 0"),
    "walltime negative": ({"walltime_s": -5}, "walltime_s"),
    "walltime nan": ({"walltime_s": float("nan")}, "walltime_s .* not nan"),
    "walltime inf": ({"walltime_s": float("inf")}, "walltime_s .* not inf"),
    "walltime 10**9": ({"walltime_s": 10**9}, "walltime_s"),
    "walltime 10**400": ({"walltime_s": 10**400}, "walltime_s"),
    "walltime as text": ({"walltime_s": "10m"}, "walltime_s"),
    "walltime True": ({"walltime_s": True}, "walltime_s"),
    "priority": ({"priority": 1001}, "priority"),
    "retries": ({"retries": -1}, "retries"),
    "name": ({"name": 5}, "name"),
    "name with NUL": ({"name": "\0"}, "NUL"),
    "a long name": ({"name": "ü" * 251}, "502 bytes"),
    "an empty key": ({"idempotency_key": ""}, "idempotency_key is empty"),
    "a flag": ({"follow": 1}, "follow"),
    "environment": ({"environment": ["A=1"]}, "mapping"),
    "environment name": ({"environment": {"A=B": "1"}}, "'='"),
    "environment value": ({"environment": {"A": 1}}, "must be text, not 1"),
    "environment size": ({"environment": {"A": "x" * 70000, "B": "x" * 70000}}, "at most"),
    "output_dir": ({"output_dir": 7}, "output_dir"),
    "inputs as text": ({"inputs": "sim.py"}, "list of files"),
    "input of three": ({"inputs": [("a", "b", "c")]}, "pair"),
    "input without a local path": ({"inputs": [("", "b")]}, "empty"),
}
NAMES = {
    "absolute": ("/etc/passwd", "must not be absolute"),
    "up": ("../x", r"'\.\.'"),
    "up inside": ("a/../../x", r"'\.\.'"),
    "empty": ("", "empty"),
    "the directory itself": (".", "names no file"),
    "a directory above": ("a/../../", r"'\.\.'"),
    "a pattern above": ("../*.csv", r"'\.\.'"),
    "an absolute pattern": ("/data/*.csv", "must not be absolute"),
    "NUL": ("a\0", "NUL"),
    "not UTF-8": ("\udc80", "UTF-8"),
    "4 KiB": ("x/" * 2048 + "y", "at most (4096|2000)"),
    "a long part": ("a/" + "x" * 256, "256 bytes, at most 255"),
    "no text": (5, "must be a path"),
    "bytes": (b"a", "must be a path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_never_be_right_is_refused(case: str) -> None:
    fields, message = WRONG[case]
    with pytest.raises(BadInput, match=message):
        JobSpec(**{"command": ["true"], **fields})


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_name_stays_inside_the_sandbox(kind: str, case: str) -> None:
    name, message = NAMES[case]
    given: dict[str, Any] = {kind: [name]}
    with pytest.raises(BadInput, match=message):
        JobSpec(["true"], **given)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "'a' is there twice"),
        (["a", "./a"], "'a' is there twice"),
        (["a/b", "a//b"], "'a/b' is there twice"),
        (["a", "a/b"], "'a' cannot be a file and hold 'a/b'"),
        (["a/b/c", "x", "a"], "'a' cannot be a file and hold 'a/b/c'"),
    ],
)
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_names_do_not_clash(kind: str, names: list[str], message: str) -> None:
    given: dict[str, Any] = {kind: names}
    with pytest.raises(BadInput, match=message):
        JobSpec(["true"], **given)
    JobSpec(["true"], inputs=["a", "ab/c", "b"], outputs=["a", "ab/c", "b"])


def test_inputs_are_names_pairs_or_a_mapping() -> None:
    expected = (Input("/data/in.csv", "in.csv"), Input("b/c", "b/c"))
    pairs = JobSpec(["true"], inputs=[("/data/in.csv", "in.csv"), "b/c"])
    assert pairs.input_files == expected
    assert JobSpec(["true"], inputs={"/data/in.csv": "in.csv", "b/c": "b/c"}) == pairs
    assert JobSpec(["true"], inputs=iter([(Path("/data/in.csv"), "in.csv")])).input_files == (
        Input("/data/in.csv", "in.csv"),
    )
    assert JobSpec(["true"], inputs=[Path("b/c")]).input_files == (Input("b/c", "b/c"),)
    assert JobSpec(["true"], inputs=[*expected]) == pairs


def test_outputs_are_names_pairs_or_a_mapping() -> None:
    spec = JobSpec(["true"], outputs=["a", ("b", "there/b"), Output("c", optional=True)])
    assert spec.output_files == (
        Output("a", "a"),
        Output("b", "there/b"),
        Output("c", "c", optional=True),
    )
    assert JobSpec(["true"], outputs={"b": "x"}).output_files == (Output("b", "x"),)
    with pytest.raises(BadInput, match="local path of an output 'x' is there twice"):
        JobSpec(["true"], outputs={"a": "x", "b": "x"})


def test_a_string_is_split_but_no_shell_sees_it() -> None:
    assert JobSpec("echo 'a b' $HOME | wc").words == ("echo", "a b", "$HOME", "|", "wc")
    shell = JobSpec("echo a | wc", shell=True)
    assert shell.words == ("/bin/sh", "-c", "echo a | wc")
    assert dataclasses.replace(shell, cores=2).words == shell.words
    assert JobSpec([Path("/bin/true"), ""]).words == ("/bin/true", "")


def test_index_is_filled_in_everywhere() -> None:
    spec = JobSpec(
        ["render", "{index}", "--to={index}.png"],
        name="tile-{index}",
        inputs=[("in/{index}.txt", "{index}.txt")],
        outputs=[("{index}.png", "png/{index}")],
        output_dir="results/{index}",
        environment={"KEEP": "{index}"},
        shell=False,
    )
    assert spec.templated
    filled = spec.filled(7)
    assert not filled.templated
    assert filled.words == ("render", "7", "--to=7.png")
    assert filled.name == "tile-7"
    assert filled.input_files == (Input("in/7.txt", "7.txt"),)
    assert filled.output_files == (Output("7.png", "png/7"),)
    assert filled.output_dir == "results/7"
    assert filled.environment == {"KEEP": "{index}"}
    assert spec.filled("x/y").output_files == (Output("x/y.png", "png/x/y"),)
    with pytest.raises(BadInput, match=r"'\.\.'"):
        spec.filled("../x")


def test_a_spec_is_a_value() -> None:
    spec = JobSpec(["a"], outputs=["b"], environment={"A": "1"}, walltime_s=1)
    assert spec == JobSpec(("a",), outputs=(Output("b"),), environment={"A": "1"}, walltime_s=1.0)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.cores = 2  # type: ignore[misc]


class Whole:
    """What numpy's integers look like."""

    def __index__(self) -> int:
        return 3


def test_whole_numbers_of_other_kinds_are_taken() -> None:
    cores: Any = Whole()
    assert JobSpec(["a"], cores=cores).cores == 3


@given(st.text(max_size=40))
def test_any_name_is_refused_or_stays_inside(name: str) -> None:
    try:
        [file] = JobSpec(["true"], outputs=[name]).output_files
    except BadInput:
        return
    parts = file.name.removesuffix("/").split("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert "\0" not in file.name
    file.name.encode()


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5))
def test_any_words_are_refused_or_kept(words: list[str]) -> None:
    try:
        spec = JobSpec(words)
    except BadInput:
        assert any("\0" in word or not _encodes(word) for word in words)
    else:
        assert list(spec.words) == words


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
