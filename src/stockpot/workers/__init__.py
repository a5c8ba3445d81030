"""Jobs side by side: in this process, in local processes, or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.workers.jobs import ONE_WORKER as ONE_WORKER
    from stockpot.workers.jobs import JobResult as JobResult
    from stockpot.workers.jobs import WorkerOptions as WorkerOptions
    from stockpot.workers.jobs import raise_failures as raise_failures
    from stockpot.workers.run import run_jobs as run_jobs

__getattr__, __dir__ = lazy_exports(__name__, __file__)
