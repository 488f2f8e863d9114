"""GC3Pie's LRMS interface over any backend, without a database: a `Resource` runs `Application`s."""

from __future__ import annotations

from remuda.workers.lrms.application import Application
from remuda.workers.lrms.resource import Resource, authenticated

__all__ = ["Application", "Resource", "authenticated"]
