"""Running soups inside other people's training code.

`stockpot.integrations.transformers` and `stockpot.integrations.lightning` each have a
`SoupCallback`; `RunningSoup` is what both drive, for any other loop.
"""

from __future__ import annotations

from stockpot.integrations.running import RunningSoup, SoupFiles

__all__ = ["RunningSoup", "SoupFiles"]
