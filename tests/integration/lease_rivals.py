"""Processes that fight for leases: `python -m tests.integration.lease_rivals URL FOLDER COUNT CYCLES`.

Each takes leases, by the quick way or in turn, marks the VM in FOLDER while it holds one, and fails
when it finds more marks there than the VM has slots. Some go without releasing: their leases expire,
when the mark is gone. A lease so short that it expires by itself might do so before, where the holder
is kept waiting for a processor.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from remuda.models import lease_requests, leases
from remuda.models.database import make_engine, transact
from remuda.models.lease_requests import Wanted

WAIT_S = 0.3
OVER = "UPDATE leases SET expires_at = now() - interval '1 s' WHERE id = :id"


def main(url: str, folder: Path, count: int, cycles: int, pools: tuple[int, ...]) -> int:
    """Fork the rivals, wait for all; return how many failed."""
    children = []
    for number in range(count):
        if not (child := os.fork()):
            status = 1
            try:
                _rival(url, folder, number, cycles, pools)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _rival(url: str, folder: Path, number: int, cycles: int, pools: tuple[int, ...]) -> None:
    engine = make_engine(url, pool_size=1)
    dice = random.Random(number)
    for _ in range(cycles):
        wanted = Wanted(
            pool_ids=pools,
            owner=f"owner-{number % 4}",
            sandbox=f"box-{dice.randrange(2)}",
            slots=dice.choice([1, 1, 2, None]),
            ttl_s=600.0,
            priority=dice.randrange(2),
        )
        dies = dice.random() < 0.05
        lease = _acquired(engine, wanted)
        if lease is None:
            continue
        mark = folder / f"{lease['vm_id']}" / f"{lease['id']}-{lease['slots']}"
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        held = [int(name.rpartition("-")[2]) for name in os.listdir(mark.parent)]
        if sum(held) > 2:
            raise AssertionError(f"VM {lease['vm_id']} of 2 slots has leases of {held}")
        time.sleep(dice.random() * 0.005)  # it is used for a moment
        mark.unlink()
        if dies:
            transact(engine, lambda c, lease=lease: c.execute(text(OVER), {"id": lease["id"]}))  # type: ignore[misc]
            continue
        released = transact(engine, lambda c, lease=lease: leases.release(c, lease["id"], lease["token"]))  # type: ignore[misc]  # fmt: skip
        if released.waited:
            transact(engine, lease_requests.serve)
    engine.dispose()


def _acquired(engine: Engine, wanted: Wanted) -> Any:
    row = transact(
        engine,
        lambda c: leases.acquire(
            c,
            pool_ids=wanted.pool_ids,
            owner=wanted.owner,
            sandbox=wanted.sandbox,
            slots=wanted.slots,
            ttl_s=wanted.ttl_s,
        ),
    )
    if row is not None:
        return row
    answer = transact(engine, lambda c: lease_requests.request(c, wanted, wait_s=WAIT_S))
    deadline = time.monotonic() + WAIT_S
    while (request := answer.waits) is not None:
        stay = time.monotonic() < deadline
        time.sleep(0.02)  # between two looks with a deadline
        answer = transact(
            engine,
            lambda c, request=request, stay=stay: lease_requests.pick_up(c, request, stay=stay),  # type: ignore[misc]
        )
    return answer.lease


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = tuple(map(int, arguments[4].split(",")))
    raise SystemExit(
        main(arguments[0], Path(arguments[1]), int(arguments[2]), int(arguments[3]), chosen)
    )
