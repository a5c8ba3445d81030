"""Handwritten digits: a complete small problem that needs no download (docs/handwriting.md).

A base network is trained on digits rendered from fonts and has never seen handwriting; ingredients
are fine-tuned from it on a few hundred handwritten digits; seven shifts say what that cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.tasks.handwriting.fonts import SEEN_FACES as SEEN_FACES
    from stockpot.tasks.handwriting.fonts import render as render
    from stockpot.tasks.handwriting.lab import FULL as FULL
    from stockpot.tasks.handwriting.lab import QUICK as QUICK
    from stockpot.tasks.handwriting.lab import WIDE as WIDE
    from stockpot.tasks.handwriting.lab import Lab as Lab
    from stockpot.tasks.handwriting.lab import make_base as make_base
    from stockpot.tasks.handwriting.network import initial_weights as initial_weights
    from stockpot.tasks.handwriting.network import make_network as make_network
    from stockpot.tasks.handwriting.task import SHIFTS as SHIFTS
    from stockpot.tasks.handwriting.task import base_task as base_task
    from stockpot.tasks.handwriting.task import handwriting as handwriting

__getattr__, __dir__ = lazy_exports(__name__, __file__)
