"""VMs and attempts in the words of Celery's event protocol, for Flower and other Celery monitors.

ids       attempt id ⇄ task id
wording   rows → events (pure)
sampling  which attempts are shown, above the rate (pure)
wire      events → the broker
teller    the thread that puts these together
commands  what comes back: who listens, and which jobs to cancel
"""
