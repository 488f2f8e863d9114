"""What a VM of a pool can have at most, of what its pool says and what was measured."""

from __future__ import annotations

from remuda.client.fitting import gpus_of, never_fits
from remuda.constraints import Hardware


def test_gpus_that_were_measured() -> None:
    """This machine has what it has; hosts of other pools may differ from those seen so far."""
    pool = {"provider": "local", "gpus_per_vm": 2}
    bare = Hardware(cores=4, gpus=0)
    assert gpus_of(pool, []) == 2
    assert gpus_of(pool, [bare]) == 0
    assert gpus_of({**pool, "provider": "static"}, [bare]) == 2
    assert gpus_of({**pool, "provider": "static"}, [Hardware(cores=4, gpus=3)]) == 3


def test_it_is_told_why() -> None:
    """A job that asks for a GPU is told that there is none, before it waits for ever."""
    job = {"cores": 1, "memory_bytes": None, "gpus": 1}
    pool = {
        "name": "lab",
        "provider": "local",
        "slots_per_vm": 1,
        "memory_bytes_per_vm": None,
        "gpus_per_vm": 1,
        "is_elastic": False,
        "instance_count": 1,
    }
    assert never_fits(job, pool, memory_bytes=None) is None
    told = never_fits(job, pool, memory_bytes=None, kinds=[Hardware(cores=1, gpus=0)])
    assert told == "it asks for 1 GPU, a VM of pool lab has no GPU (gpus_per_vm)"


def test_memory_that_was_measured_counts_where_the_pool_says_nothing() -> None:
    """Hosts tell their memory only once they run: who asks for more would wait for ever."""
    job = {"cores": 1, "memory_bytes": 900 << 30}
    pool = {
        "name": "lab",
        "provider": "static",
        "slots_per_vm": 1,
        "memory_bytes_per_vm": None,
        "gpus_per_vm": 0,
        "is_elastic": False,
        "instance_count": 2,
    }
    kinds = [Hardware(memory_bytes=8 << 30), Hardware(memory_bytes=16 << 30)]
    assert never_fits(job, pool, memory_bytes=None) is None
    assert never_fits(job, pool, memory_bytes=None, kinds=[*kinds, Hardware()]) is None
    told = never_fits(job, pool, memory_bytes=None, kinds=kinds)
    assert told is not None
    assert "a VM of pool lab has 17179869184 (as measured)" in told
    enough = never_fits({**job, "memory_bytes": 16 << 30}, pool, memory_bytes=None, kinds=kinds)
    assert enough is None
