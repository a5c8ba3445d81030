"""What is inside checkpoints, whether they will soup, and why (not).

`stockpot.diagnose` is the whole study; it is not brought up here, so that inspecting files does not
wait for what scores models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.analysis.barrier import barrier_between as barrier_between
    from stockpot.analysis.calibration import (
        expected_calibration_error as expected_calibration_error,
    )
    from stockpot.analysis.calibration import fit_beta as fit_beta
    from stockpot.analysis.calibration import negative_log_likelihood as negative_log_likelihood
    from stockpot.analysis.explanations import explain as explain
    from stockpot.analysis.initialisation import same_initialisation as same_initialisation
    from stockpot.analysis.inspection import Inspection as Inspection
    from stockpot.analysis.pairs import pair_correlation as pair_correlation
    from stockpot.analysis.robustness import fit_baseline as fit_baseline
    from stockpot.analysis.soup_vs_ensemble import soup_minus_ensemble as soup_minus_ensemble

__getattr__, __dir__ = lazy_exports(__name__, __file__)
