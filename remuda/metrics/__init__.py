"""Metrics for Prometheus: `remuda metrics` serves them.

families    rows of `remuda.models.measuring` → metric families (pure)
collector   what a scrape reads of the system: the database and the broker

`remuda.tasks.serving` has what workers serve too: the figures of a machine's processes.
"""
