"""Suites that every reader, task and recipe passes, for those who write another."""

from __future__ import annotations

from stockpot.testing.readers import READER_CHECKS, reader_conformance, sample_tensors
from stockpot.testing.tasks import TASK_CHECKS, task_conformance

__all__ = [
    "READER_CHECKS",
    "TASK_CHECKS",
    "reader_conformance",
    "sample_tensors",
    "task_conformance",
]
