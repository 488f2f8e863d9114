"""The names of the Celery tasks and their queues; producers need no more than these."""

from __future__ import annotations

CONTROL, JOBS, VMS = QUEUES = "control", "jobs", "vms"

DISPATCH = "remuda.dispatch"
ENQUEUE = "remuda.enqueue"
SUBMIT_JOB = "remuda.submit_job"
UPDATE_JOB_STATE = "remuda.update_job_state"
GET_RESULTS = "remuda.get_results"
CANCEL_JOB = "remuda.cancel_job"
FREE_JOB = "remuda.free_job"
SPAWN_VM = "remuda.spawn_vm"
TERMINATE_VM = "remuda.terminate_vm"
CHECK_VMS = "remuda.check_vms"
DECLARE_STALLED = "remuda.declare_stalled"
RELEASE_VM = "remuda.release_vm"
SERVE_LEASES = "remuda.serve_leases"
CHECK_HEALTH = "remuda.check_health"
RETIRE_VMS = "remuda.retire_vms"
RESIZE_POOLS = "remuda.resize_pools"
RECONCILE_VMS = "remuda.reconcile_vms"
RECONCILE_JOBS = "remuda.reconcile_jobs"
EXPIRE = "remuda.expire"
WATCH_BUDGETS = "remuda.watch_budgets"
SYNCHRONIZE = "remuda.synchronize"
SYNCHRONIZE_ALL = "remuda.synchronize_all"
PURGE_POOLS = "remuda.purge_pools"

QUEUE_OF = {
    DISPATCH: CONTROL,
    ENQUEUE: CONTROL,
    DECLARE_STALLED: CONTROL,
    RESIZE_POOLS: CONTROL,
    RECONCILE_VMS: VMS,
    CHECK_HEALTH: VMS,
    RETIRE_VMS: CONTROL,
    RECONCILE_JOBS: CONTROL,
    EXPIRE: CONTROL,
    WATCH_BUDGETS: CONTROL,
    SYNCHRONIZE: VMS,
    SYNCHRONIZE_ALL: CONTROL,
    PURGE_POOLS: JOBS,
    SERVE_LEASES: CONTROL,
    SUBMIT_JOB: JOBS,
    UPDATE_JOB_STATE: JOBS,
    GET_RESULTS: JOBS,
    CANCEL_JOB: JOBS,
    FREE_JOB: JOBS,
    SPAWN_VM: VMS,
    TERMINATE_VM: VMS,
    RELEASE_VM: VMS,
    CHECK_VMS: VMS,
}

# How often beat sends each sweep, in seconds. A sweep only finds what no wake-up brought.
PERIODS = {
    RESIZE_POOLS: 2.0,
    DECLARE_STALLED: 3.0,
    SERVE_LEASES: 3.0,
    CHECK_VMS: 3.0,
    RECONCILE_JOBS: 5.0,
    DISPATCH: 10.0,
    RECONCILE_VMS: 10.0,
    CHECK_HEALTH: 5.0,
    RETIRE_VMS: 3.0,
    EXPIRE: 30.0,
    WATCH_BUDGETS: 10.0,
    SYNCHRONIZE_ALL: 5.0,
    PURGE_POOLS: 15.0,
}
