"""What is inside checkpoints, whether they will soup, and why (not).

`stockpot.diagnose` is the whole study; it is not brought up here, so that inspecting files does not
wait for what scores models.
"""

from __future__ import annotations

from stockpot.diagnostics.inspection import (
    CheckpointSummary,
    Inspection,
    Start,
    inspect_checkpoints,
)
from stockpot.diagnostics.moves import Angle, Move, Moves, SameInitialisation, same_initialisation

__all__ = [
    "Angle",
    "CheckpointSummary",
    "Inspection",
    "Move",
    "Moves",
    "SameInitialisation",
    "Start",
    "inspect_checkpoints",
    "same_initialisation",
]
