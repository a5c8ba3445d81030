"""Running soups inside other people's training code.

`stockpot.integrations.transformers` and `stockpot.integrations.lightning` each have a
`SoupCallback`; `RunningSoup` is what both drive, for any other loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.integrations.running import RunningSoup as RunningSoup

__getattr__, __dir__ = lazy_exports(__name__, __file__)
