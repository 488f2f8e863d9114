"""Everything at once: the models' functions in any order, with repeats and late answers.

After every transaction the whole database must be sound: chains unbroken, one live attempt per job
on a machine, nothing oversubscribed, no lease without its holder (see `builders.assert_sound`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, text

from remuda.errors import IllegalTransition
from remuda.models import cancel, exits, leases, starting
from remuda.models.database import make_engine, rows
from remuda.models.states import VmState
from remuda.models.vm_life import close_idle, lock_vms, move_vm
from remuda.tasks import recording
from tests.database import _fresh
from tests.integration.builders import (
    assert_sound,
    dispatch,
    ended,
    finish,
    lost,
    make_jobs,
    make_pool,
    make_vms,
    record,
)

_TABLES = "jobs, attempts, vms, leases, pools, images, owners, events, sweeps, job_specs, arrays"
_PICK = st.integers(0, 10_000)


@pytest.fixture
def shared(server_url: str, template: str) -> Iterator[Engine]:
    with contextmanager(_fresh)(server_url, template) as url:
        made = make_engine(url)
        yield made
        made.dispose()


class Models(RuleBasedStateMachine):
    """One transaction a rule; `pick` chooses among whatever rows there are, ended ones too."""

    engine: Engine

    @initialize()
    def begin(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {_TABLES} RESTART IDENTITY CASCADE"))
            self.pool = make_pool(connection, slots_per_vm=2)
            make_vms(connection, self.pool)
            make_jobs(connection, self.pool, 2)

    def _pick(self, connection: Connection, table: str, pick: int) -> dict[str, Any]:
        found = rows(connection, f"SELECT * FROM {table} ORDER BY id")
        return dict(found[pick % len(found)]) if found else {}

    @rule(count=st.integers(1, 3), cores=st.integers(1, 3), owner=st.sampled_from(["a", "b"]))
    def submit(self, count: int, cores: int, owner: str) -> None:
        with self.engine.begin() as connection:
            make_jobs(connection, self.pool, count, cores=cores, owner=owner)

    @rule()
    def grow(self) -> None:
        with self.engine.begin() as connection:
            make_vms(connection, self.pool)

    @rule(max_ahead=st.integers(0, 2))
    def place(self, max_ahead: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET not_before = NULL"))
            dispatch(connection, max_ahead=max_ahead)

    @rule(pick=_PICK)
    def start(self, pick: int) -> None:
        """A runner starts the oldest of its queue once it fits, and reports that late at times."""
        with self.engine.begin() as connection:
            attempt = self._pick(connection, "attempts", pick)
            if attempt and (attempt["state"] != "PLACED" or self._fits(connection, attempt)):
                exits.lock_journal(connection, attempt["vm_id"])
                exits.record_starts(connection, attempt["vm_id"], {attempt["id"]: 1.0})

    def _fits(self, connection: Connection, attempt: dict[str, Any]) -> bool:
        [room] = rows(
            connection,
            """SELECT v.slots - (SELECT coalesce(sum(cores), 0) FROM attempts
                                 WHERE vm_id = v.id AND state = 'STARTED')
                 - (SELECT coalesce(sum(slots), 0) FROM leases
                    WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL) AS free
               FROM vms v WHERE v.id = :vm""",
            vm=attempt["vm_id"],
        )
        return bool(room["free"] >= attempt["cores"])

    @rule(
        pick=_PICK,
        again=st.booleans(),
        outputs=st.booleans(),
        how=st.sampled_from(["OK", "NONZERO", "SIGNALLED", "STAGING", "CANCELLED", "LOST"]),
    )
    def end(self, pick: int, again: bool, outputs: bool, how: str) -> None:
        with self.engine.begin() as connection:
            attempt = self._pick(connection, "attempts", pick)
            if not attempt:
                return
            job_state = "NEW" if again and how != "OK" else "TERMINATED"
            if how in ("STAGING", "CANCELLED", "LOST"):
                outcome = lost(
                    attempt["id"],
                    state="FAILED" if how == "STAGING" else how,
                    reason=how,
                    job_state=job_state,
                )
            else:
                outcome = ended(
                    attempt["id"],
                    state="EXITED" if outputs else "COLLECTED",
                    job_state="TERMINATING" if outputs else job_state,
                    reason=how,
                    exit_code=None if how == "SIGNALLED" else int(how != "OK"),
                    signal=9 if how == "SIGNALLED" else None,
                    started_age_s=None if pick % 5 == 0 else 1.0,
                )
            record(connection, attempt["vm_id"], outcome)

    @rule(pick=_PICK, again=st.booleans(), well=st.booleans())
    def collect(self, pick: int, again: bool, well: bool) -> None:
        with self.engine.begin() as connection:
            attempt = self._pick(connection, "attempts", pick)
            if attempt:
                outcome = ended(
                    attempt["id"],
                    state="COLLECTED" if well else "FAILED",
                    reason="OK" if well else "STAGING",
                    job_state="NEW" if again else "TERMINATED",
                )
                finish(connection, attempt["vm_id"], outcome)

    @rule(pick=_PICK)
    def recall(self, pick: int) -> None:
        with self.engine.begin() as connection:
            attempt = self._pick(connection, "attempts", pick)
            if attempt:
                exits.lock_journal(connection, attempt["vm_id"])
                starting.take_back(connection, attempt["vm_id"], [attempt["id"]])

    @rule(pick=_PICK)
    def cancel_job(self, pick: int) -> None:
        with self.engine.begin() as connection:
            job = self._pick(connection, "jobs", pick)
            if job:
                cancel.request_cancel(connection, [job["id"]])
            cancel.cancel_requeued(connection)

    @rule(pick=_PICK, to=st.sampled_from([VmState.STALLED, VmState.ERROR, VmState.STOPPING]))
    def lose(self, pick: int, to: VmState) -> None:
        """As `declare_stalled`, `vanish` and `terminate_vm` do: the state and its work together."""
        with self.engine.begin() as connection:
            vm = self._pick(connection, "vms", pick)
            lock_vms(connection, [vm["id"]])
            try:
                move_vm(connection, vm["id"], to)
            except IllegalTransition:
                return
            recording.lose_attempts(connection, vm["id"], "lost")

    @rule(pick=_PICK, to=st.sampled_from([VmState.RUNNING, VmState.STOPPING, VmState.HALTED]))
    def settle(self, pick: int, to: VmState) -> None:
        with self.engine.begin() as connection:
            vm = self._pick(connection, "vms", pick)
            lock_vms(connection, [vm["id"]])
            allowed = [VmState.STOPPING if to is VmState.HALTED else VmState.STALLED]
            try:
                move_vm(connection, vm["id"], to, allowed=allowed)
            except IllegalTransition:
                return

    @rule()
    def shrink(self) -> None:
        with self.engine.begin() as connection:
            close_idle(connection, [r["id"] for r in rows(connection, "SELECT id FROM vms")])

    @rule(slots=st.integers(1, 3))
    def acquire(self, slots: int) -> None:
        with self.engine.begin() as connection:
            leases.acquire(
                connection,
                pool_ids=[self.pool],
                owner="c",
                sandbox="",
                slots=slots,
                ttl_s=60,
            )

    @rule(pick=_PICK)
    def release(self, pick: int) -> None:
        with self.engine.begin() as connection:
            lease = self._pick(connection, "leases", pick)
            if lease and not lease["for_jobs"]:
                leases.release(connection, lease["id"], lease["token"])

    @invariant()
    def everything_is_sound(self) -> None:
        with self.engine.begin() as connection:
            assert_sound(connection)


def test_the_models_in_any_order(shared: Engine) -> None:
    Models.engine = shared
    run_state_machine_as_test(
        Models,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
