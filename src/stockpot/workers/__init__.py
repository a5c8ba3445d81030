"""Jobs side by side: in this process, in local processes, or on a Ray cluster."""

from __future__ import annotations

from stockpot.workers.jobs import JobError, JobResult, raise_failures
from stockpot.workers.run import plan_workers, run_jobs

__all__ = ["JobError", "JobResult", "plan_workers", "raise_failures", "run_jobs"]
