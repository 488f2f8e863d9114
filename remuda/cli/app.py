"""The root of the `remuda` command: which commands there are, loaded on demand."""

from __future__ import annotations

import click

from remuda.cli.base import App, Entry, LazyGroup, debug_option

SECTIONS: dict[str, dict[str, Entry]] = {
    "Work": {
        "run": Entry("run", "Run one command and wait for it."),
        "acquire": Entry("acquire", "Lease a machine, for a command here or until it is released."),
        "job": Entry("app:job", "Submit jobs, look at them, wait for them."),
        "array": Entry("app:array", "Look at arrays of jobs as wholes, limit or resubmit them."),
        "pool": Entry("app:pool", "Create, change and close pools of VMs."),
        "vm": Entry("app:vm", "Look at VMs, drain or terminate them."),
        "history": Entry("history", "Plot VMs and jobs over time."),
        "cost": Entry("cost", "Show what pools, owners, VMs and jobs cost."),
        "carbon": Entry("carbon", "Estimate energy and CO2 of a pool or a job."),
        "budget": Entry("app:budget", "Limit what pools and owners spend."),
        "image": Entry("app:image", "Look at images; trust or distrust them."),
        "lease": Entry("app:lease", "Look at leases, release, renew or revoke them."),
        "profile": Entry("app:profile", "Keep templates that pools are made from."),
        "secret": Entry("app:secret", "Store secrets for jobs; rotate their keys."),
        "owner": Entry("app:owner", "Look at owners and their limits."),
        "demo": Entry("demo", "Render a picture on an elastic pool, with live progress."),
    },
    "System": {
        "up": Entry("lifecycle:up", "Start what is needed here; harmless when it runs."),
        "down": Entry("lifecycle:down", "Stop what `up` started."),
        "status": Entry("status", "Show processes, services and counts."),
        "top": Entry("top", "Watch pools, VMs and jobs live."),
        "doctor": Entry("doctor", "Check everything one by one and say what to do."),
        "db": Entry("app:db", "Migrate, check, back up or restore the database."),
    },
    "Processes": {
        "worker": Entry("processes:worker", "Be a Celery worker of Remuda."),
        "beat": Entry("processes:beat", "Be the Celery beat of Remuda."),
        "flower": Entry("flower:flower", "Be Flower, the web view of VMs, jobs and Celery."),
        "metrics": Entry("metrics", "Serve metrics to Prometheus."),
    },
    "Shell": {
        "completion": Entry("completion", "Print the shell's completion script."),
    },
}

JOB = {
    "submit": Entry("job_submit:submit", "Submit a job, or an array of jobs."),
    "submit-dag": Entry("job_dag:submit_dag", "Submit jobs that wait for each other, from a file."),
    "list": Entry("job_view:list_jobs", "List jobs, oldest first."),
    "show": Entry("job_view:show", "Show all about one job."),
    "logs": Entry("job_output:logs", "Print a job's stdout or stderr, live with -f."),
    "peek": Entry("job_live:peek", "Print a file of a job's sandbox, live with -f."),
    "files": Entry("job_live:files", "List the files in a job's sandbox."),
    "results": Entry("job_output:results", "Copy jobs' results into a folder."),
    "explain": Entry("job_view:explain", "Say why a job is where it is."),
    "wait": Entry("job_wait:wait", "Wait until jobs have ended."),
    "signal": Entry("job_live:signal", "Send a signal to a running job."),
    "suspend": Entry("job_live:suspend", "Suspend jobs; `resume` lets them go on."),
    "resume": Entry("job_live:resume", "Let suspended jobs go on."),
    "extend": Entry("job_live:extend", "Give a job a longer walltime."),
    "shell": Entry("job_live:shell", "Open a shell in a job's sandbox, on its VM."),
    "cancel": Entry("job_act:cancel", "Cancel jobs."),
    "retry": Entry("job_act:retry", "Run ended jobs again."),
}

ARRAY = {
    "list": Entry("array:list_arrays", "List arrays, oldest first."),
    "show": Entry("array:show", "Show how far an array is."),
    "wait": Entry("array:wait", "Wait until all jobs of an array have ended."),
    "cancel": Entry("array:cancel", "Cancel an array, or some of its indices."),
    "resubmit": Entry("array:resubmit", "Submit an array's failed jobs again, as a new array."),
    "limit": Entry("array:limit", "Let at most so many jobs of an array run at once."),
}

POOL = {
    "create": Entry("pool:create", "Create a pool and open it for jobs."),
    "list": Entry("pool:list_pools", "List pools."),
    "show": Entry("pool:show", "Show all about one pool."),
    "set": Entry("pool:set_", "Change settings of a pool."),
    "close": Entry("pool:close", "Close a pool: its VMs end after their jobs."),
    "resume": Entry("pool:resume", "Let a pool ask for VMs again at once."),
    "update": Entry("pool_change:update", "Have a pool's VMs made of another image."),
    "confirm-loss": Entry(
        "pool_change:confirm_loss", "Believe that most of a frozen pool's VMs are gone."
    ),
    "delete": Entry("pool_change:delete", "Delete a closed pool."),
    "explain": Entry("pool:explain", "Say why a pool has its size, and what comes next."),
    "policies": Entry("pool_sizing:policies", "Show or set the policies of a pool's size."),
    "decisions": Entry("pool_sizing:decisions", "List a pool's sizing decisions."),
    "simulate": Entry("pool_simulate:simulate", "Try settings on a trace of jobs."),
    "resources": Entry("pool_resources:resources", "List a pool's resources, or add to them."),
    "logs": Entry("pool_logs:logs", "Print what a pool's VMs say, live with -f."),
    "info": Entry("pool_info:info", "Keep keys and values of your own with a pool."),
}

IMAGE = {
    "list": Entry("image:list_images", "List images."),
    "show": Entry("image:show", "Show all about one image."),
    "reset": Entry("image:reset", "Let VMs be launched from an image again."),
    "mark-error": Entry("image:mark_error", "Have no VM launched from an image."),
}

VM = {
    "list": Entry("vm:list_vms", "List VMs."),
    "show": Entry("vm:show", "Show all about one VM."),
    "count": Entry("vm:count_vms", "Count VMs by any of their fields."),
    "history": Entry("vm:vm_history", "Show what became of one VM."),
    "ssh": Entry("vm_ssh:ssh", "Open a shell on a VM."),
    "drain": Entry("vm:drain", "Give VMs no new jobs; they end after their present ones."),
    "terminate": Entry("vm:terminate", "Terminate VMs."),
    "reboot": Entry("vm_act:reboot", "Restart the machines of VMs."),
    "interrupt": Entry("vm_act:interrupt", "Tell that VMs will be taken away."),
    "leaks": Entry("vm_act:leaks", "List machines that no VM owns."),
}

LEASE = {
    "list": Entry("lease:list_leases", "List leases."),
    "waiting": Entry("lease:waiting", "List who waits for a lease, and why."),
    "release": Entry("lease:release", "Give a lease back."),
    "renew": Entry("lease:renew", "Extend a lease."),
    "revoke": Entry("lease:revoke", "End leases, whoever holds them."),
}

OWNER = {
    "list": Entry("owner:list_owners", "List owners."),
    "set": Entry("owner:set_", "Set an owner's weight, group and limits."),
}

BUDGET = {
    "list": Entry("cost:list_budgets", "List budgets."),
    "set": Entry("cost:set_", "Set a budget, with levels to warn and to stop."),
    "remove": Entry("cost:remove", "Remove a budget."),
}

PROFILE = {
    "create": Entry("profile:create", "Store a template of pools."),
    "list": Entry("profile:list_profiles", "List profiles."),
    "show": Entry("profile:show", "Show all of one profile."),
    "delete": Entry("profile:delete", "Remove a profile."),
}

SECRET = {
    "put": Entry("secret:put", "Store a secret."),
    "list": Entry("secret:list_secrets", "List secrets, without their values."),
    "delete": Entry("secret:delete", "Remove secrets."),
    "init": Entry("secret:init", "Make a key ring, unless there is one."),
    "rotate": Entry("secret:rotate", "Encrypt all secrets with a new key."),
}

DB = {
    "upgrade": Entry("db:upgrade", "Bring the schema to this release's revision."),
    "check": Entry("db:check", "Fail unless the schema is this release's."),
    "backup": Entry("db:backup", "Write a backup into a folder."),
    "restore": Entry("db:restore", "Bring a backup back."),
    "fence": Entry("db:fence", "Make a database safe that was set back in time."),
}


job = LazyGroup("job", {"Commands": JOB}, help="Submit jobs, look at them, wait for them.")
array = LazyGroup(
    "array", {"Commands": ARRAY}, help="Look at arrays of jobs as wholes, limit or resubmit them."
)
pool = LazyGroup("pool", {"Commands": POOL}, help="Create, change and close pools of VMs.")
vm = LazyGroup("vm", {"Commands": VM}, help="Look at VMs, drain or terminate them.")
image = LazyGroup("image", {"Commands": IMAGE}, help="Look at images; trust or distrust them.")
lease = LazyGroup(
    "lease", {"Commands": LEASE}, help="Look at leases, release, renew or revoke them."
)
owner = LazyGroup("owner", {"Commands": OWNER}, help="Look at owners and their limits.")
budget = LazyGroup("budget", {"Commands": BUDGET}, help="Limit what pools and owners spend.")
profile = LazyGroup(
    "profile", {"Commands": PROFILE}, help="Keep templates that pools are made from."
)
secret = LazyGroup(
    "secret", {"Commands": SECRET}, help="Store secrets for jobs; rotate their keys."
)
db = LazyGroup("db", {"Commands": DB}, help="Migrate, check, back up or restore the database.")


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("remuda")
    except PackageNotFoundError:
        found = "(not installed)"
    click.echo(f"remuda {found}")
    ctx.exit()


root = App(
    "remuda",
    SECTIONS,
    help="""Batch jobs on a herd of machines: pools of VMs that grow and shrink by demand.

    With nothing configured everything runs on this machine, started when it is first needed:

    \b
        remuda run -- echo hello

    REMUDA_DATABASE_URL and REMUDA_BROKER_URL (or the settings file) name a shared system.
    """,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version.",
        ),
        debug_option(hidden=False),
    ],
)


def main() -> None:
    """Run the `remuda` command with the arguments of this process, and exit."""
    root.main(prog_name="remuda")
