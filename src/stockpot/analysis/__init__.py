"""What is inside checkpoints, whether they will soup, and why (not).

`stockpot.diagnose` is the whole study; it is not brought up here, so that inspecting files does not
wait for what scores models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.analysis.explanations import Finding as Finding
    from stockpot.analysis.explanations import explain as explain
    from stockpot.analysis.geometry import Angle as Angle
    from stockpot.analysis.geometry import Move as Move
    from stockpot.analysis.geometry import Moves as Moves
    from stockpot.analysis.initialisation import SameInitialisation as SameInitialisation
    from stockpot.analysis.initialisation import same_initialisation as same_initialisation
    from stockpot.analysis.inspection import CheckpointSummary as CheckpointSummary
    from stockpot.analysis.inspection import Inspection as Inspection
    from stockpot.analysis.inspection import Start as Start
    from stockpot.analysis.inspection import inspect_checkpoints as inspect_checkpoints

__getattr__, __dir__ = lazy_exports(__name__, __file__)
