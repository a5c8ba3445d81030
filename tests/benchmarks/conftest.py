"""Coverage is that of the other tests."""

from __future__ import annotations

from tests.unmeasured import unmeasured

__all__ = ["unmeasured"]
