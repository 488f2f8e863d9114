"""What jobs wait for: how it is written, and how the jobs of one call name each other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda import After, BadInput, JobSpec
from remuda.client import parameters
from remuda.client.template import Template
from remuda.dependencies import ArrayRef, Edge, Plan, parse_after
from remuda.models.submit import NewSpec


def _plan(*specs: JobSpec) -> Plan:
    plan = Plan()
    for spec in specs:
        plan.note(spec)
        plan.add(spec)
    return plan


def _spec(name: str = "", after: Any = ()) -> JobSpec:
    return JobSpec(["true"], name=name, after=after)


def test_every_way_to_say_what_is_waited_for() -> None:
    prep = _spec("prep")
    last = _spec(
        after=[
            "prep", prep, 12, SimpleNamespace(id=13), After("prep", "end"),
            SimpleNamespace(id=3, is_array=True), After(ArrayRef(4), "failure", "any"),
            {"target": 14, "condition": "end"}, {"array": 5, "quantifier": "any"},
        ]
    )  # fmt: skip
    assert _plan(prep, last).edges() == [
        Edge(1, "success", place=0),
        Edge(1, "success", place=0),
        Edge(1, "success", parent_id=12),
        Edge(1, "success", parent_id=13),
        Edge(1, "end", place=0),
        Edge(1, "success", array_id=3),
        Edge(1, "failure", "any", array_id=4),
        Edge(1, "end", parent_id=14),
        Edge(1, "success", "any", array_id=5),
    ]
    assert _spec(after=7).afters[0].target == 7
    assert _spec(after="prep").afters[0].target == "prep"


@pytest.mark.parametrize(
    "wrong",
    [
        0, True, None, 1.5, b"x", "", [[]], {}, {"target": 1, "when": 2}, [None],
        {"target": 1, "condition": "maybe"}, {"target": 1, "quantifier": "any"},
        {"target": 1, "each": True}, {"array": 1, "each": True, "quantifier": "any"},
        {"array": 0}, SimpleNamespace(id="7"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput):
        _spec(after=wrong)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([("a", "a")], "'a' waits for itself"),
        ([("a", "c"), ("b", "a"), ("c", "b")], r"circle: ('\w' → ){3}'\w'$"),
        ([("a", "b")], "'b' is waited for, but not submitted in the same call"),
        ([("a", ()), ("a", ()), ("b", "a")], "'a' is waited for, and there is more than one"),
    ],
)  # fmt: skip
def test_names_that_lead_nowhere(specs: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        _plan(*(_spec(name, after) for name, after in specs)).edges()


def test_a_long_circle_is_told_shortly() -> None:
    specs = [_spec(f"j{i}", f"j{(i + 1) % 5000}") for i in range(5000)]
    with pytest.raises(BadInput, match=r"circle: .* 4995 more .* → 'j\d+'$"):
        _plan(*specs).edges()


def test_specs_are_known_by_identity() -> None:
    twin = _spec("prep"), _spec("prep")
    child = _spec(after=[twin[1]])
    assert _plan(*twin, child).edges() == [Edge(2, "success", place=1)]
    with pytest.raises(BadInput, match="more than one"):
        _plan(twin[1], twin[1], child).edges()
    with pytest.raises(BadInput, match="not submitted in the same call"):
        _plan(twin[0], child).edges()


def test_specs_of_a_generator_may_go_and_their_ids_come_again() -> None:
    plan = Plan()
    for number in range(2000):
        spec = _spec(str(number))
        plan.note(spec)
        plan.add(spec)
    child = _spec("child", after=[spec])
    plan.note(child)
    plan.add(child)
    assert plan.edges() == [Edge(2000, "success", place=1999)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_circles_are_found_exactly_when_there_are_some(parents: list[int]) -> None:
    specs = [_spec(f"j{i}", f"j{p}" if p < len(parents) else ()) for i, p in enumerate(parents)]

    def closes(start: int) -> bool:
        at, seen = start, set()
        while at < len(parents) and at not in seen:
            seen.add(at)
            at = parents[at]
        return at < len(parents)

    if any(closes(i) for i in range(len(parents))):
        with pytest.raises(BadInput, match=r"circle|itself"):
            _plan(*specs).edges()
    else:
        assert len(_plan(*specs).edges()) == sum(p < len(parents) for p in parents)


def test_the_command_lines_words() -> None:
    def said(text: str) -> tuple[Any, ...]:
        after = parse_after(text)
        return after.target, after.condition, after.quantifier, after.each

    assert said("12") == (12, "success", "all", False)
    assert said("12:failure") == (12, "failure", "all", False)
    assert said("prep:end") == ("prep", "end", "all", False)
    assert said("array:3:any:end") == (ArrayRef(3), "end", "any", False)
    assert said("array:3:each") == (ArrayRef(3), "success", "all", True)
    for wrong in ("", "array", "array:x", "12:maybe", "12:any", "12:end:end", "array:3:each:any"):
        with pytest.raises(BadInput):
            parse_after(wrong)


def test_rows_from_everywhere(tmp_path: Path) -> None:
    table = tmp_path / "rows.CSV"
    table.write_text('\ufeffseed, rate\n1,0.1\n\n2,"a,b"\n', encoding="utf-8")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"seed": 1, "rate": 0.1}\n\n{"rate": "a,b", "seed": true}\n')
    assert list(parameters.read(table)) == [
        {"seed": "1", "rate": "0.1"},
        {"seed": "2", "rate": "a,b"},
    ]
    assert list(parameters.read(lines)) == [
        {"seed": "1", "rate": "0.1"},
        {"seed": "true", "rate": "a,b"},
    ]
    assert [tuple(row.values()) for row in parameters.product({"a": range(2), "b": ["x", 0.5]})] == [
        ("0", "x"), ("0", "0.5"), ("1", "x"), ("1", "0.5"),
    ]  # fmt: skip


def test_too_many_combinations_are_refused_before_any_is_made() -> None:
    for values in ({"a": range(10_000), "b": range(10_000)},):
        with pytest.raises(BadInput, match="at most 10000000 jobs"):
            parameters.product(values)


@pytest.mark.parametrize(
    "text",
    ["a,a\n1,2\n", "a,b\n1\n", "index\n1\n", "a b\n1\n", 'a\n"x\n', "", "a\n\udcff\n"],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str) -> None:
    table = tmp_path / "rows.csv"
    table.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput):
        list(parameters.read(table))


@pytest.mark.parametrize(
    "rows", [[{"a": 1}, {"b": 1}], [{"a": 1}, {"a": 1, "b": 2}], [{"a": None}], [{"a": [1]}],
             [{}], [7], {"a": 1}, "rows", [{"a": float("nan")}], [{"a": "\0"}]],
)  # fmt: skip
def test_wrong_rows_are_refused(rows: Any) -> None:
    with pytest.raises(BadInput):
        list(parameters.rows_of(rows))


def _template(spec: JobSpec, *names: str) -> Template:
    return Template(spec, lambda spec: NewSpec(command=list(spec.words)), names=names)


def test_rows_share_a_spec_and_keep_their_values() -> None:
    template = _template(JobSpec(["run", "{seed}", "{other}"], outputs=["{seed}.txt"]), "seed")
    first, second = (template.row(i, {"seed": str(i)}) for i in range(2))
    assert first.row is second.row
    assert (second.index, second.params) == (1, {"seed": "1"})
    with pytest.raises(BadInput, match="no parameter"):
        _template(JobSpec(["run", "{sed}"]), "seed")


@pytest.mark.parametrize(
    "value", ["../x", "/x", "", "a\0b", "x" * 300, "..", "n" * 255 + "/" + "y"]
)
def test_values_cannot_lead_out_of_the_sandbox(value: str) -> None:
    template = _template(JobSpec(["run"], outputs=["{name}"]), "name")
    template.row(0, {"name": "good"})
    if value.startswith("n"):  # longer than a part may be, in two good parts
        template.row(1, {"name": value})
        return
    with pytest.raises(BadInput, match="row 1"):
        template.row(1, {"name": value})


def test_rows_whose_files_would_be_one() -> None:
    template = _template(JobSpec(["run"], outputs=["{a}", "{b}"]), "a", "b")
    template.row(0, {"a": "x", "b": "y"})
    with pytest.raises(BadInput, match="twice"):
        template.row(1, {"a": "x", "b": "x"})
    both = _template(JobSpec(["run"], name="{a}{b}"), "a", "b")
    both.row(0, {"a": "x" * 400, "b": "y"})
    both.row(1, {"a": "x", "b": "y" * 400})
    with pytest.raises(BadInput, match="row 2: name"):
        both.row(2, {"a": "x" * 400, "b": "y" * 400})
