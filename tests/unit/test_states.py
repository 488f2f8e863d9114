"""The tables of edges: against the design, against their documentation, and walked at random."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from remuda.models import states
from remuda.models.states import (
    LIVE_ATTEMPT,
    LIVE_VM,
    ON_MACHINE,
    OPEN_POOL,
    AttemptState,
    ImageState,
    JobState,
    PoolState,
    VmState,
    edges,
)
from tests.examples import examples

ROOT = Path(__file__).parents[2]
TABLES: dict[str, Mapping[Any, tuple[Any, ...]]] = {
    "job": states.JOB_EDGES,
    "attempt": states.ATTEMPT_EDGES,
    "vm": states.VM_EDGES,
    "image": states.IMAGE_EDGES,
    "pool": states.POOL_EDGES,
}
ENUMS: dict[str, type[StrEnum]] = {
    "job": JobState,
    "attempt": AttemptState,
    "vm": VmState,
    "image": ImageState,
    "pool": PoolState,
}
FIRST = {"job": "NEW", "attempt": "PLACED", "vm": "NEW", "image": "NEW", "pool": "UNSUBMITTED"}
FINAL = {
    "job": {"TERMINATED"},
    "attempt": {"COLLECTED", "LOST", "CANCELLED", "FAILED"},
    "vm": {"HALTED"},
    "image": set(),
    "pool": {"PENDING_DELETE"},
}
# What the design draws: "A|B > C|D" stands for every edge from the left to the right.
DESIGN = {
    "job": """
        NEW > SUBMITTED; SUBMITTED > RUNNING; RUNNING > TERMINATING; TERMINATING > TERMINATED
        SUBMITTED|RUNNING > STOPPED|UNKNOWN
        NEW|SUBMITTED|RUNNING|STOPPED|UNKNOWN|TERMINATING > TERMINATED
        SUBMITTED|RUNNING|STOPPED|UNKNOWN|TERMINATING > NEW""",
    "attempt": """
        PLACED > STARTED; STARTED > EXITED; EXITED > COLLECTED
        PLACED|STARTED > LOST|CANCELLED|FAILED""",
    "vm": """
        NEW > SUBMITTED; SUBMITTED > WAIT_SSH_CONTEXT|RUNNING; WAIT_SSH_CONTEXT > CONTEXTUALIZING
        CONTEXTUALIZING > RUNNING; RUNNING > STOPPING; STOPPING > HALTED
        RUNNING|SUBMITTED|CONTEXTUALIZING|WAIT_SSH_CONTEXT|STOPPING > STALLED
        STALLED > RUNNING|STOPPING
        NEW|SUBMITTED|WAIT_SSH_CONTEXT|CONTEXTUALIZING|RUNNING|STALLED|STOPPING > ERROR
        ERROR > STOPPING""",
    "image": "NEW > VALIDATED|ERROR; VALIDATED > ERROR; ERROR > NEW",
    "pool": """
        UNSUBMITTED > SUBMITTED; SUBMITTED > PARTIALLY_DISPATCHED
        PARTIALLY_DISPATCHED > FULLY_DISPATCHED; FULLY_DISPATCHED > PARTIALLY_EXECUTING
        PARTIALLY_EXECUTING > FULLY_EXECUTING; FULLY_EXECUTING > CLOSING; CLOSING > CLOSED""",
}
# What follows from the design without being drawn there.
BEYOND = {
    # Short jobs, the side states' ways back, and the ends of what they hold.
    "job": "SUBMITTED|STOPPED|UNKNOWN > TERMINATING; STOPPED > RUNNING|UNKNOWN"
    "; UNKNOWN > SUBMITTED|RUNNING|STOPPED",
    # Outputs lost with the VM, or not to be had.
    "attempt": "EXITED > LOST|FAILED",
    # Given up before it ran.
    # And rebooted: met anew, like one just made.
    "vm": "NEW|SUBMITTED|WAIT_SSH_CONTEXT|CONTEXTUALIZING > STOPPING"
    "; RUNNING|STALLED > WAIT_SSH_CONTEXT",
    "image": "",
    # The stored states follow the VMs in any order; failure, closing and deletion at any time.
    "pool": "|".join(OPEN_POOL) + " > " + "|".join(OPEN_POOL) + "|CLOSING|FAILURE"
    "; FAILURE > SUBMITTED|CLOSING; UNSUBMITTED > CLOSED|PENDING_DELETE; CLOSED > PENDING_DELETE",
}


def _parse(drawn: str) -> set[tuple[str, str]]:
    found = set()
    for line in re.split(r"[;\n]", drawn):
        if line.strip():
            left, right = line.split(">")
            found |= {
                (old.strip(), new.strip())
                for old in left.split("|")
                for new in right.split("|")
                if old.strip() != new.strip()
            }
    return found


def _edges(kind: str) -> set[tuple[str, str]]:
    return {(old, new) for k, old, new in edges() if k == kind}


@pytest.mark.parametrize("kind", TABLES)
def test_the_edges_are_the_designs(kind: str) -> None:
    assert _parse(DESIGN[kind]) <= _edges(kind)
    assert _edges(kind) == _parse(DESIGN[kind]) | _parse(BEYOND[kind])


@pytest.mark.parametrize("kind", TABLES)
def test_the_documentation_draws_just_the_edges(kind: str) -> None:
    text = (ROOT / "docs" / "states.md").read_text("utf-8")
    title = kind.upper() if kind == "vm" else kind.capitalize()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    drawing = section.split("```mermaid\n")[1].split("```")[0]
    arrows = re.findall(r"^ +(\S+) --> (\S+)$", drawing, re.MULTILINE)
    assert len(arrows) == len(set(arrows))
    assert {(a, b) for a, b in arrows if "[*]" not in (a, b)} == _edges(kind)
    assert [b for a, b in arrows if a == "[*]"] == [FIRST[kind]]
    assert {a for a, b in arrows if b == "[*]"} == FINAL[kind]
    described = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
    assert sorted(described) == sorted(ENUMS[kind])


@pytest.mark.parametrize("kind", TABLES)
def test_every_member_tells_its_edges(kind: str) -> None:
    """The comment of each member names its targets, or says like what or that it is final."""
    source = (ROOT / "remuda" / "models" / "states.py").read_text("utf-8")
    body = source.split(f"class {ENUMS[kind].__name__}(StrEnum)")[1].split("\n\n\n")[0]
    comments = dict(re.findall(r'^    (\w+) = "\w+"  # (.*)$', body, re.MULTILINE))
    assert sorted(comments) == sorted(ENUMS[kind])
    for state, comment in comments.items():
        targets = {new for old, new in _edges(kind) if old == state}
        if not targets:
            assert comment.startswith("final"), state
        elif not re.search("like SUBMITTED|the four below", comment):
            named = set(re.findall(r"[A-Z_]{3,}", comment.split("→", 1)[1]))
            assert named - {"SSH"} == targets, state


@pytest.mark.parametrize("kind", TABLES)
def test_the_tables_are_whole(kind: str) -> None:
    table, enum = TABLES[kind], ENUMS[kind]
    assert set(table) == set(enum)
    for old, targets in table.items():
        assert len(targets) == len(set(targets)), old
        assert old not in targets
        assert set(targets) <= set(enum)
    assert {str(old) for old, targets in table.items() if not targets} == FINAL[kind]


@pytest.mark.parametrize("kind", TABLES)
def test_everything_is_reached_and_nothing_is_a_dead_end(kind: str) -> None:
    def reach(start: str) -> set[str]:
        found, todo = {start}, [start]
        while todo:
            here = todo.pop()
            new = {b for a, b in _edges(kind) if a == here} - found
            found |= new
            todo += new
        return found

    assert reach(FIRST[kind]) == {str(s) for s in ENUMS[kind]}
    for state in ENUMS[kind]:
        assert not FINAL[kind] or reach(state) & FINAL[kind], state


def test_the_groups() -> None:
    assert {str(s) for s in AttemptState} - {str(s) for s in LIVE_ATTEMPT} == FINAL["attempt"]
    assert {str(s) for s in VmState} - {str(s) for s in LIVE_VM} == {"HALTED"}
    for job in ON_MACHINE:
        assert JobState.NEW in states.JOB_EDGES[job]
        assert JobState.TERMINATED in states.JOB_EDGES[job]
    for pool in OPEN_POOL:
        assert PoolState.CLOSING in states.POOL_EDGES[pool]


class JobAndItsAttempts(RuleBasedStateMachine):
    """A job and its attempts, moved by guarded steps in any order, as tasks repeat and race.

    Each rule is one of the models' statements, reduced to its guards: what it finds in no allowed
    state it leaves alone. Whatever the order, every step is an edge, the chain is whole, at most
    one attempt is live, and a job on a machine has exactly that one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.job: list[JobState] = []
        self.attempts: list[list[AttemptState]] = []
        self.cancelled = False

    @initialize()
    def submit(self) -> None:
        self.job = [JobState.NEW]

    def _to(self, target: JobState, *allowed: JobState) -> None:
        if self.job[-1] in allowed:
            assert target in states.JOB_EDGES[self.job[-1]]
            self.job.append(target)

    def _attempt(self, epoch: int, target: AttemptState, *allowed: AttemptState) -> bool:
        """Move an attempt; whether its job may follow: it did, and it is the latest."""
        if self.attempts[epoch][-1] not in allowed:
            return False
        assert target in states.ATTEMPT_EDGES[self.attempts[epoch][-1]]
        self.attempts[epoch].append(target)
        return epoch == len(self.attempts) - 1

    @rule()
    def place(self) -> None:
        if self.job[-1] is JobState.NEW:
            self._to(JobState.SUBMITTED, JobState.NEW)
            self.attempts.append([AttemptState.PLACED])

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(0, len(self.attempts) - 1))
        if self._attempt(epoch, AttemptState.STARTED, AttemptState.PLACED):
            self._to(JobState.RUNNING, JobState.SUBMITTED, JobState.UNKNOWN)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), again=st.booleans(), outputs=st.booleans())
    def end(self, data: st.DataObject, again: bool, outputs: bool) -> None:
        epoch = data.draw(st.integers(0, len(self.attempts) - 1))
        self.start_of(epoch)
        if not self._attempt(epoch, AttemptState.EXITED, AttemptState.STARTED):
            return
        self._to(JobState.TERMINATING, *ON_MACHINE)
        if not outputs:
            self.finish_of(epoch, again=again)

    def start_of(self, epoch: int) -> None:
        if self._attempt(epoch, AttemptState.STARTED, AttemptState.PLACED):
            self._to(JobState.RUNNING, JobState.SUBMITTED, JobState.UNKNOWN)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), again=st.booleans())
    def finish(self, data: st.DataObject, again: bool) -> None:
        self.finish_of(data.draw(st.integers(0, len(self.attempts) - 1)), again=again)

    def finish_of(self, epoch: int, *, again: bool) -> None:
        if self._attempt(epoch, AttemptState.COLLECTED, AttemptState.EXITED):
            self._to(JobState.NEW if again else JobState.TERMINATED, JobState.TERMINATING)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), again=st.booleans())
    def lose(self, data: st.DataObject, again: bool) -> None:
        epoch = data.draw(st.integers(0, len(self.attempts) - 1))
        if self._attempt(epoch, AttemptState.LOST, *LIVE_ATTEMPT):
            target = JobState.NEW if again and not self.cancelled else JobState.TERMINATED
            self._to(target, *ON_MACHINE, JobState.TERMINATING)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(0, len(self.attempts) - 1))
        if self._attempt(epoch, AttemptState.CANCELLED, AttemptState.PLACED):
            self._to(JobState.NEW, JobState.SUBMITTED)

    @rule()
    def cancel(self) -> None:
        self.cancelled = self.cancelled or self.job[-1] is not JobState.TERMINATED
        self._to(JobState.TERMINATED, JobState.NEW)

    @invariant()
    def one_live_attempt_while_on_a_machine(self) -> None:
        if self.job:
            live = [n for n, a in enumerate(self.attempts) if a[-1] in LIVE_ATTEMPT]
            on_machine = self.job[-1] not in (JobState.NEW, JobState.TERMINATED)
            assert live == ([len(self.attempts) - 1] if on_machine else [])

    @invariant()
    def what_ended_stays_ended(self) -> None:
        assert JobState.TERMINATED not in self.job[:-1]


TestJobAndItsAttempts = JobAndItsAttempts.TestCase
TestJobAndItsAttempts.settings = settings(max_examples=examples(60), stateful_step_count=30)
