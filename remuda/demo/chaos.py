"""Pull a plug: make a local VM vanish, runner, jobs, disk and all, without telling anyone."""

from __future__ import annotations

from rich.console import Console

from remuda.client import Client, Pool
from remuda.config import load_settings
from remuda.workers.providers import get_provider


def pull_a_plug(client: Client, pool: Pool, console: Console) -> bool:
    """Take the machine of a busy VM of the pool away behind Remuda's back; False if none is busy."""
    busy = [vm for vm in client.vms(pool=pool, state="RUNNING") if vm.jobs and vm.provider_id]
    if not busy:
        return False
    victim = busy[0]
    get_provider(pool.provider, load_settings()).terminate(str(victim.provider_id))
    console.print(f"[yellow]pulled the plug of {victim.name}, {victim.jobs} job(s) on it")
    return True
