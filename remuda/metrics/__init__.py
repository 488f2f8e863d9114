"""Metrics for Prometheus: `remuda metrics` serves them.

families    rows of `remuda.models.measuring` → metric families (pure)
collector   what a scrape reads: the database, the broker, this machine's processes
"""
