"""Why a job waits, the strongest reason first, and when it may start: on a real database."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from remuda import JobSpec
from remuda.client.explaining import Explanation
from remuda.models.submit import owner_id
from tests.integration import deciding
from tests.integration.builders import make_vms
from tests.integration.workbench import Workbench


def kinds(why: Explanation) -> list[str]:
    return [reason.kind for reason in why.reasons]


def place(bench: Workbench) -> None:
    with bench.engine.begin() as connection:
        deciding.place(connection)


def learned(bench: Workbench, wall_s: float) -> None:
    """Let the mean time of every owner's jobs be known."""
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE owners SET mean_wall_s = :s"), {"s": wall_s})
        connection.execute(text("UPDATE arrays SET mean_wall_s = :s"), {"s": wall_s})
        connection.execute(text("UPDATE attempts SET expected_wall_s = :s"), {"s": wall_s})


def test_a_quota_is_named_with_what_is_left_of_it(bench: Workbench) -> None:
    bench.pool(vms=3)
    with bench.client() as client:
        client.set_owner("alice", group="team")
        client.set_owner("team", max_slots=3)
        client.submit_many([JobSpec("true", cores=2)] * 2, pool="herd")
        place(bench)
        [waits] = client.jobs(state="NEW")
        why = client.why(waits)
        assert why.reasons[0].kind == "quota"
        assert why.reasons[0].text == (
            "Owner team, its owner's group, may have 3 slots (max_slots) and has all but 1 of them; "
            "the job needs 2."
        )
        assert why.start_s is None
        assert why.basis.startswith("Owner team")
        client.set_owner("team", max_slots=None)
        client.set_owner("alice", pool="herd", max_slots=2)
        assert "in pool herd (max_slots) and has all but 0" in client.why(waits).reasons[0].text
        client.set_owner("alice", pool="herd", max_slots=None)
        assert "quota" not in kinds(client.why(waits))


def test_fair_share_names_who_comes_first(bench: Workbench) -> None:
    bench.pool(vms=1)
    with bench.client() as client:
        third = client.submit_many([JobSpec("true")] * 3, pool="herd")[2]
        place(bench)
        learned(bench, 30.0)
        with bench.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO usages VALUES (:alice, 7200, now())"),
                {"alice": owner_id(connection, "alice")},
            )
        assert third.refresh().state == "NEW"
        assert "fair_share" not in kinds(client.why(third))
        with bench.client() as bob:
            bob._context.owner = "bob"
            bob.submit_many([JobSpec("true")] * 4, pool="herd")
        learned(bench, 30.0)
        why = client.why(third)
        [share] = [reason.text for reason in why.reasons if reason.kind == "fair_share"]
        assert share.startswith("By fair share bob comes first in pool herd: less was used")
        assert "2.02 slot-hours" in share
        assert why.start_s == pytest.approx((2 * 30 + 4 * 30) / 2, rel=0.02)
        assert "2 slots of pool herd" in why.basis
        assert client.explain(third)[-1].startswith("It may start in about 90 s: ")


def test_the_estimate_is_what_stands_before_it_over_the_slots(bench: Workbench) -> None:
    bench.pool(vms=2)
    with bench.client() as client:
        jobs = client.submit_many([JobSpec("true")] * 10, pool="herd")
        place(bench)
        assert client.why(jobs[9]).start_s is None
        assert "none of theirs has ended" in client.explain(jobs[9])[-1]
        learned(bench, 40.0)
        assert client.why(jobs[9]).start_s == pytest.approx((4 * 40 + 5 * 40) / 4, rel=0.02)
        assert client.why(jobs[4]).start_s == pytest.approx(40, rel=0.02)
        assert client.why(jobs[0]).start_s is None  # it is on a VM
        assert client.why(jobs[0]).basis == ""


def test_what_has_room_starts_at_once_and_what_waits_for_others_when_nobody_knows(
    bench: Workbench,
) -> None:
    bench.pool(vms=1)
    with bench.client() as client:
        job = client.submit(JobSpec("true"), pool="herd")
        after = client.submit(JobSpec("true", after=[job]), pool="herd")
        assert client.why(job).start_s == 0
        assert "in less than a second" in client.explain(job)[-1]
        why = client.why(after)
        assert (why.reasons[0].kind, why.start_s) == ("dependency", None)
        assert f"It waits for job {job.id}" in why.basis


def test_a_wide_job_is_told_by_how_much_no_vm_fits(bench: Workbench) -> None:
    bench.pool(vms=1)
    with bench.client() as client:
        client.submit(JobSpec("true"), pool="herd")
        bench.place()
        wide = client.submit(JobSpec("true", cores=2), pool="herd")
        said = " ".join(client.explain(wide))
        assert "the freest has 1, 1 too few" in said


def test_a_pool_that_boots_or_is_frozen(bench: Workbench) -> None:
    pool = bench.pool(vms=0)
    with bench.client() as client:
        job = client.submit(JobSpec("true"), pool="herd")
        assert "has no VM that takes jobs, and none is booting" in client.explain(job)[-1]
        with bench.engine.begin() as connection:
            make_vms(connection, pool, 1)
            connection.execute(
                text(
                    """UPDATE vms SET created_at = now() - interval '90 s',
                         running_at = now() - interval '30 s', draining = true"""
                )
            )
            connection.execute(
                text(
                    """INSERT INTO vms (pool_id, image_id, name, token, slots, created_at)
                       SELECT pool_id, image_id, name || 'x', gen_random_uuid(), slots,
                              now() - interval '20 s' FROM vms"""
                )
            )
        why = client.why(job)
        assert why.start_s == pytest.approx(40, rel=0.05)
        [booting] = [reason.text for reason in why.reasons if reason.kind == "booting"]
        assert booting == (
            "1 VM of pool herd is booting, the first since 20 s; they took 60 s lately."
        )
        with bench.engine.begin() as connection:
            connection.execute(
                text("UPDATE pools SET frozen_at = now(), frozen_reason = 'most of it is gone'")
            )
            connection.execute(
                text(
                    """UPDATE pools SET launch_failures = 2, message = 'no such image',
                         paused_at = '2026-03-01 10:00Z', paused_until = now() + interval '1 min'"""
                )
            )
        paused, frozen = [r.text for r in client.why(job).reasons if r.kind == "paused"]
        assert paused.startswith(
            "Pool herd asks for no VM since 2026-03-01 10:00:00 UTC, after 2 failed launches:"
            " no such image; it tries again in "
        )
        said = " ".join(client.pool("herd").explain())
        assert "2 launches failed in a row, since 2026-03-01 10:00:00Z: no such image" in said
        assert frozen.startswith("Pool herd is frozen since ")
        assert frozen.endswith("most of it is gone.")
