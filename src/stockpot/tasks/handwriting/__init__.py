"""Handwritten digits: a complete small problem that needs no download (docs/handwriting.md).

A base network is trained on digits rendered from fonts and has never seen handwriting; ingredients
are fine-tuned from it on a few hundred handwritten digits; seven shifts say what that cost.
"""

from __future__ import annotations

from stockpot.tasks.handwriting.network import initial_weights, make_network
from stockpot.tasks.handwriting.task import SHIFTS, base_task, handwriting

__all__ = ["SHIFTS", "base_task", "handwriting", "initial_weights", "make_network"]
