"""Names of inputs and outputs: patterns, directories, URLs, and where files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda import ANY_OUTPUT, BadInput, Input, JobSpec, Output
from remuda.spec_files import SCHEMES, destination, filler, inputs_of, output_row, outputs_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data/*.csv", Input("data/*.csv", "data/")),
        ("*.csv", Input("*.csv", "./")),
        ("data/", Input("data/", "data/")),
        ("./", Input("./", "./")),
        (("/abs/**/*.h", "include"), Input("/abs/**/*.h", "include/")),
        (("/abs/tree/", "."), Input("/abs/tree/", "./")),
        (("x.bin", "in/"), Input("x.bin", "in/")),
        ("https://h/a/x%20y.dat?sig=1", Input("https://h/a/x%20y.dat?sig=1", "x y.dat")),
        (("s3://b/k", "data/"), Input("s3://b/k", "data/k")),
        (("gs://b/k", "n"), Input("gs://b/k", "n")),
        (Input("sftp://me@h/x"), Input("sftp://me@h/x", "x")),
        ("file:///etc/a%20b", Input("/etc/a b", "a b")),
    ],
)
def test_inputs(given: Any, expected: Input) -> None:
    assert inputs_of([given]) == (expected,)
    assert inputs_of([expected]) == (expected,)  # checked again, they are the same


@pytest.mark.parametrize(
    ("given", "expected", "row"),
    [
        ("out/", Output("out/"), {}),
        ("out/*.csv", Output("out/*.csv"), {}),
        (ANY_OUTPUT, Output("**"), {}),
        ("./", Output("**"), {}),
        (("*.csv", "res"), Output("*.csv", "res/"), {"local": "res/"}),
        (("a/b", "res/"), Output("a/b", "res/b"), {"local": "res/b"}),
        (("a", "s3://b/k/"), Output("a", "s3://b/k/a"), {"url": "s3://b/k/a"}),
        (("d/", "gs://b/k"), Output("d/", "gs://b/k/"), {"url": "gs://b/k/"}),
        (("a", "file:///r/../x"), Output("a", "file:///r/../x"), {"local": "/x"}),
        (("*", "file:///r"), Output("*", "file:///r/"), {"local": "/r/"}),
        (Output("x?", optional=True), Output("x?", optional=True), {"optional": True}),
    ],
)
def test_outputs(given: Any, expected: Output, row: dict[str, Any]) -> None:
    assert outputs_of([given]) == (expected,)
    assert outputs_of([expected]) == (expected,)
    assert output_row(expected) == {"name": expected.name, "optional": False, **row}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h/x", "'ftp'"),
        ("://x", "''"),
        ("s3://key:very-secret@bucket/x", "credentials"),
        ("https://very-secret@host/x", "credentials"),
        ("sftp://me:very-secret@host/x", "credentials"),
        ("https://h/a b", "spaces or control"),
        ("https://h/a\nb", "spaces or control"),
        ("https:///x", "is no URL"),
        ("https://[::1/x", "is no URL"),
        ("file://other/x", "another host"),
        ("x::s3://b/k", "cannot be staged"),
        ("s3://b/" + "x" * 5000, "at most 4096"),
    ],
)
def test_wrong_urls_are_refused_and_secrets_not_shown(url: str, message: str) -> None:
    for field in ({"inputs": [(url, "x")]}, {"outputs": [("x", url)]}):
        wrong: dict[str, Any] = field
        with pytest.raises(BadInput, match=message) as caught:
            JobSpec(["true"], **wrong)
        assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/", "https://host", "s3://b/*.csv"])
def test_a_url_is_one_file(url: str) -> None:
    with pytest.raises(BadInput, match=r"names no file|is no URL"):
        inputs_of([url])


@pytest.mark.parametrize(
    "name", ["../*", "a/../*.x", "/x/*", "*/../..", "a\0*", "x" * 300 + "*", "\udc80*", "../"]
)
def test_patterns_stay_inside(name: str) -> None:
    for of in (inputs_of, outputs_of):
        with pytest.raises(BadInput):
            of([name])
    with pytest.raises(BadInput):
        inputs_of([("x/*", name)])
    with pytest.raises(BadInput):
        outputs_of([("x/*", name)])


def test_huge_names_are_refused_in_a_few_words() -> None:
    with pytest.raises(BadInput) as caught:
        outputs_of(["x/" * (5 << 20)])
    assert len(str(caught.value)) < 300


def test_where_files_go() -> None:
    outputs = [
        {"name": "out/*.csv", "local": "tables/"},
        {"name": "model.bin", "url": "s3://b/run7/model.bin"},
        {"name": "plots/", "url": "s3://b/plots/"},
        {"name": "**", "local": "./"},
    ]
    assert destination("out/a.csv", outputs) == "tables/a.csv"
    assert destination("model.bin", outputs) == "s3://b/run7/model.bin"
    assert destination("plots/d/x.png", outputs) == "s3://b/plots/d/x.png"
    assert destination("any/thing", outputs) == "any/thing"
    assert destination("out/x/a.csv", outputs[:3]) is None


@given(st.text(max_size=30))
def test_what_is_brought_back_stays_inside(name: str) -> None:
    try:
        [output] = outputs_of([(name, name)])
    except BadInput:
        return
    if "://" in output.local:
        return
    for path in (output.name, output.local):
        assert ".." not in path.split("/")
        assert not path.startswith("/")


def test_filling_is_one_pass() -> None:
    fill = filler(3, {"a": "{index}", "b": "x"})
    assert fill("{a}-{index}-{b}-{c}") == "{index}-3-x-{c}"
    assert filler(None, None)("{index}") == "{index}"


def test_the_limit_of_the_output() -> None:
    assert JobSpec(["true"], output_limit_bytes=1 << 20).output_limit_bytes == 1 << 20
    for wrong in (0, 10, -1, "1M"):
        with pytest.raises(BadInput, match="output_limit_bytes"):
            JobSpec(["true"], output_limit_bytes=wrong)  # type: ignore[arg-type]


def test_all_schemes_are_possible() -> None:
    for scheme in SCHEMES:
        url = f"{scheme}://{'' if scheme == 'file' else 'h'}/x"
        [file] = JobSpec(["true"], inputs=[(url, "y")]).input_files
        assert file == Input("/x" if scheme == "file" else url, "y")
    assert JobSpec(["true"], inputs=[Path("a*")]).input_files == (Input("a*", "./"),)


def test_any_output_needs_no_list() -> None:
    assert JobSpec(["true"], outputs=ANY_OUTPUT) == JobSpec(["true"], outputs=[ANY_OUTPUT])
    with pytest.raises(BadInput, match="list of files"):
        JobSpec(["true"], outputs="out.txt")
