"""Patterns of names, and walks through directories with all that can be in them."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import DataStagingError
from remuda.finding import found_inputs
from remuda.patterns import ANY_OUTPUT, Pattern, TooMany, fixed_part, is_pattern, walk
from remuda.spec_files import Input

MATCHES = [
    ("*.csv", ["a.csv", "*.csv"], ["d/a.csv", ".a.csv", "a.csvx"]),
    ("data/*.csv", ["data/a.csv"], ["data/d/a.csv", "a.csv", "data"]),
    ("**/*.csv", ["a.csv", "d/e/a.csv"], [".d/a.csv", "d/.a.csv"]),
    ("**/.*", [".a", "d/.b"], ["d/a", ".d/.a"]),
    ("d/**", ["d/a", "d/b/c"], ["d", "d/.h", "d/.g/x", "e/d"]),
    ("d/", ["d/a", "d/.h/.x", "d/b/c"], ["d", "dd/a", "e/d/a"]),
    (ANY_OUTPUT, ["a", ".h/b", "a/.b"], []),
    ("**/x/", ["x/a", "b/x/.c/d"], ["x", ".b/x/a"]),
    ("[ab]?[!c]", ["ax1", "bb]"], ["axc", "cx1", "a/1"]),
    ("[a-c][]x]", ["b]", "cx"], ["d]", "ba"]),
    ("[z-a]", [], ["z", "a", "[z-a]"]),
    ("a[", ["a["], ["a"]),
    ("out-?/*", ["out-1/x"], ["out-1/x/y", "out-1", "out-/x"]),
    ("**/**/**/a", ["a", "b/c/a"], ["b/c/d"]),
    ("a**b", ["ab", "axxb"], ["a/b"]),
]


@pytest.mark.parametrize(("text", "good", "bad"), MATCHES)
def test_what_a_pattern_means(text: str, good: list[str], bad: list[str]) -> None:
    pattern = Pattern(text)
    assert is_pattern(text)
    assert [name for name in good if not pattern.matches(name)] == []
    assert [name for name in bad if pattern.matches(name)] == []
    for name in good:
        folder = name.rpartition("/")[0]
        assert pattern.within(folder), (text, folder)
        assert name.startswith(fixed_part(text))


@pytest.mark.parametrize(
    ("text", "fixed"),
    [("data/*.csv", "data/"), ("out/", "out/"), ("**", ""), ("a/b*/c", "a/"), ("x/d*/", "x/")],
)
def test_the_part_before_the_first_wildcard(text: str, fixed: str) -> None:
    assert fixed_part(text) == fixed


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_stars_are_what_they_are_in_the_shell(text: str, name: str) -> None:
    expected = re.fullmatch(text.replace("*", "[ab]*").replace("?", "[ab]"), name)
    pattern = Pattern(f"x{text}")
    assert pattern.matches(f"x{name}") == (expected is not None)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_pattern(text: str, name: str) -> None:
    Pattern(text).matches(name)
    Pattern(text).within(name)


def test_no_pattern_is_slow() -> None:
    began = time.process_time()
    assert not Pattern("*a" * 100 + "b").matches("a" * 255)
    assert not Pattern("/".join(["**/*a"] * 100) + "/b").matches("/".join(["aaa"] * 100))
    assert time.process_time() - began < 1


def _names(root: Path, text: str = ANY_OUTPUT) -> dict[str, str]:
    pattern = Pattern(text)
    found = walk(str(root), pattern.within, most=100)
    meant = [file for file in found if file.folder or pattern.matches(file.name)]
    return {file.name: file.problem for file in meant}


def test_a_walk_finds_files_in_order_and_tells_what_is_none(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    for name in ("b", "a", "d/e/f", ".hidden"):
        (root / name).write_text("x")
    (tmp_path / "outside").write_text("x")
    os.mkfifo(root / "fifo")
    for name, to in [("in", "d/e/f"), ("up", "../outside"), ("gone", "nothing"), ("me", "me")]:
        (root / name).symlink_to(to)
    (root / "tmp").symlink_to("/tmp")
    assert _names(root) == {
        ".hidden": "",
        "a": "",
        "b": "",
        "d/e/f": "",
        "fifo": "no regular file",
        "gone": "No such file or directory",
        "in": "",
        "me": "Too many levels of symbolic links",
        "tmp": "a link that leads out",
        "up": "a link that leads out",
    }
    assert list(_names(root, "d/")) == ["d/e/f"]


def test_links_to_directories_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "again").symlink_to("a")
    (tmp_path / "a" / "b" / "round").symlink_to("..")
    (tmp_path / "a" / "top").symlink_to("..")
    assert list(_names(tmp_path)) == ["a/x", "again/x"]


def test_a_walk_ends_however_many_files_there_are(tmp_path: Path) -> None:
    for i in range(101):
        (tmp_path / str(i)).touch()
    with pytest.raises(TooMany):
        _names(tmp_path)
    web = tmp_path / "web"
    web.mkdir()
    for i in range(8):  # directories that all lead to each other
        (web / str(i)).mkdir()
        for j in range(8):
            (web / str(i) / f"to{j}").symlink_to(f"../{j}")
    with pytest.raises(TooMany):
        _names(web)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_searched_is_told(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    assert _names(tmp_path) == {"shut": "Permission denied"}


def test_what_is_no_file_is_called_by_the_path_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    for local, told in ((str(folder), f"{folder}/fifo"), ("in", "in/fifo"), ("in/f*", "in/fifo")):
        with pytest.raises(DataStagingError, match=f"input '{re.escape(told)}': no regular file"):
            found_inputs([Input(local, "in/")], str(tmp_path))
