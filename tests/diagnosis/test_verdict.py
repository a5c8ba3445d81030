"""What a diagnosis concludes, of numbers that are put into a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stockpot.diagnosis.verdict import conclude
from stockpot.evaluate.compare import Difference

BETTER = Difference(value=0.02, low=0.01, high=0.03)
NOISE = Difference(value=0.02, low=-0.01, high=0.03)


@pytest.mark.parametrize(("gain", "answer"), [(BETTER, "yes"), (NOISE, "within noise")])
def test_a_mean_that_the_choosing_data_would_not_take_is_said_to_be_so(found, gain, answer) -> None:
    diagnosis = found.diagnosis
    alone = replace(diagnosis, kept=(diagnosis.best,), gains={"uniform": {"test": gain}}, pairs=())
    verdict = conclude(alone)
    assert verdict.answer == answer
    text = " ".join(verdict.sentences)
    assert "The greedy soup kept" in text
    assert ("by the val split nothing else is chosen" in text) == (answer == "yes")
