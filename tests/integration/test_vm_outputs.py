"""What VMs said: recorded once however often it is told, bounded, and read fresh exactly once."""

from __future__ import annotations

import random

import pytest

from remuda import InstanceNotFound
from remuda.models import upkeep, vm_outputs
from remuda.models.database import rows
from remuda.models.vm_outputs import KEPT_BYTES, Said
from tests.integration.builders import age, together
from tests.integration.workbench import Workbench


def _vms(bench: Workbench, count: int = 1) -> list[int]:
    pool = bench.pool(vms=count)
    with bench.engine.begin() as connection:
        found = rows(connection, "SELECT id FROM vms WHERE pool_id = :p ORDER BY id", p=pool)
    return [row["id"] for row in found]


def _say(bench: Workbench, *said: Said) -> None:
    with bench.engine.begin() as connection:
        vm_outputs.record(connection, said)


def test_each_stream_of_each_vm_is_read_by_itself_or_together(bench: Workbench) -> None:
    one, two = _vms(bench, 2)
    _say(bench, Said(two, "stdout", 0, b"of two\n"), Said(one, "stdout", 0, b"of one\n"),
         Said(one, "stderr", 0, b"no\n"))  # fmt: skip
    with bench.client() as client:
        pool = client.pool("herd")
        assert pool.stdout() == b"of one\nof two\n"
        assert (pool.stdout(one), pool.stdout("herd-2")) == (b"of one\n", b"of two\n")
        assert (pool.stderr(), pool.stderr(two)) == (b"no\n", b"")
        assert pool.fresh_stdout(one) == b"of one\n"
        assert pool.fresh_stdout() == b"of two\n"
        assert pool.fresh_stdout() == b""
        _say(bench, Said(one, "stdout", 7, b"more\n"))
        assert client.pool("herd").fresh_stdout() == b"more\n"
        assert pool.stdout(one) == b"of one\nmore\n"
        other = client.create_pool("other")
        for wrong in (999, -1, 2**80, "herd-9", "herd-1\0", ""):
            with pytest.raises(InstanceNotFound):
                pool.stdout(wrong)
        with pytest.raises(InstanceNotFound):
            other.fresh_stderr(one)


def test_what_is_told_again_and_out_of_order_is_recorded_once(bench: Workbench) -> None:
    [vm] = _vms(bench)
    whole = random.Random(1).randbytes(5000)
    dice = random.Random(2)
    with bench.client() as client:
        pool = client.pool("herd")
        told = fresh = b""
        while len(told) < len(whole):
            begin = dice.randint(max(0, len(told) - 300), len(told))
            piece = whole[begin : begin + dice.randint(1, 600)]
            _say(bench, Said(vm, "stdout", begin, piece))
            told = whole[: max(len(told), begin + len(piece))]
            if dice.random() < 0.5:
                fresh += pool.fresh_stdout()
                assert fresh == told
        assert pool.stdout() == whole
        assert fresh + pool.fresh_stdout() == whole


def test_the_last_is_kept_and_what_is_missing_is_told(bench: Workbench) -> None:
    [vm] = _vms(bench)
    block = bytes(range(256)) * 128  # 32 KiB
    with bench.client() as client:
        pool = client.pool("herd")
        for i in range(3):
            _say(bench, Said(vm, "stdout", i * len(block), block))
        assert pool.fresh_stdout() == block * 3
        for i in range(3, 9):
            _say(bench, Said(vm, "stdout", i * len(block), block))
        kept = KEPT_BYTES // len(block)
        gone = (6 - kept) * len(block)
        assert pool.fresh_stdout() == (
            b"\n[remuda: %d bytes were cut out here]\n" % gone + block * kept
        )
        assert pool.stdout().endswith(block * kept)
        assert pool.stdout().startswith(b"\n[remuda: %d bytes" % (5 * len(block)))
        _say(bench, Said(vm, "stdout", 20 * len(block), b"after a gap"))
        assert pool.fresh_stdout() == (
            b"\n[remuda: %d bytes were cut out here]\nafter a gap" % (11 * len(block))
        )


def test_one_large_piece_is_bounded_too(bench: Workbench) -> None:
    [vm] = _vms(bench)
    _say(bench, Said(vm, "stderr", 0, b"x" * KEPT_BYTES + b"end"))
    with bench.client() as client:
        assert client.pool("herd").stderr().endswith(b"cut out here]\n" + b"x" * 131069 + b"end")


def test_of_two_readers_each_byte_goes_to_one(bench: Workbench) -> None:
    [vm] = _vms(bench)
    _say(bench, Said(vm, "stdout", 0, b"abc"))

    def read() -> bytes:
        with bench.client() as client:
            return client.pool("herd").fresh_stdout()

    assert sorted(together(read, read, read)) == [b"", b"", b"abc"]


def test_what_vms_said_goes_with_their_history(bench: Workbench) -> None:
    [vm] = _vms(bench)
    _say(bench, Said(vm, "stdout", 0, b"abc"))
    with bench.engine.begin() as connection:
        for state in ("STOPPING", "HALTED"):
            connection.exec_driver_sql(
                f"UPDATE vms SET state = '{state}', halted_at = now() WHERE id = {vm}"
                if state == "HALTED"
                else f"UPDATE vms SET state = '{state}' WHERE id = {vm}"
            )
        upkeep.expire(connection, heartbeat_retention_s=60, event_retention_s=60)
        assert len(rows(connection, "SELECT FROM vm_outputs")) == 1
        age(connection, "vms", [vm], "halted_at", 61)
        upkeep.expire(connection, heartbeat_retention_s=60, event_retention_s=60)
        assert rows(connection, "SELECT FROM vm_outputs") == []
