"""Suites that every reader and every recipe passes, for those who write another."""

from __future__ import annotations

from stockpot.testing.readers import READER_CHECKS, reader_conformance, sample_tensors

__all__ = ["READER_CHECKS", "reader_conformance", "sample_tensors"]
