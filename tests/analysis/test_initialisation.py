"""One test of shared initialisation: its value, its thresholds, its words."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.analysis.explanations import explain
from stockpot.analysis.initialisation import (
    assess,
    check_initialisation,
    quick_evidence,
    same_initialisation,
    tensor_correlations,
    warn_of_exchanged_base,
    warn_of_other_starts,
)
from stockpot.analysis.inspection import inspect_checkpoints
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import WiseFT


def pair_with_correlation(r: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two models whose every matrix correlates by exactly `r`."""
    rng = np.random.default_rng(0)
    one, other = {}, {}
    for name in ("a.weight", "b.weight", "c.weight"):
        x = rng.normal(size=(40, 60))
        x = (x - x.mean()) / x.std()
        y = rng.normal(size=(40, 60))
        y -= y.mean()
        y -= x * (x * y).mean()
        y /= y.std()
        one[name], other[name] = x, r * x + np.sqrt(1 - r * r) * y
        bias = name.replace("weight", "bias")
        one[bias] = other[bias] = np.ones(40)
    return one, other


def test_fine_tunes_of_one_start_correlate(lab) -> None:
    one, other = (open_checkpoint(path) for path in lab.paths[:2])
    found = tensor_correlations(one, other)
    assert set(found) == {"0.weight", "3.weight"}
    assert min(found.values()) > 0.5


def test_values_that_grew_from_almost_nothing_are_no_evidence() -> None:
    rng = np.random.default_rng(0)
    start, move = (rng.normal(size=(8, 64)) for _ in range(2))
    ends = {"tiny": 1e-6 * start, "plain": start}
    tuned = {"tiny": ends["tiny"] + 1e-3 * move, "plain": start + 0.1 * move}
    assert set(tensor_correlations(from_state_dict(ends), from_state_dict(tuned))) == {"plain"}
    assert set(tensor_correlations(from_state_dict(tuned), from_state_dict(ends))) == {"plain"}
    found = check_initialisation(from_state_dict(tuned), from_state_dict(ends))
    assert (found.evidence.verdict, found.unrelated) == ("shared", ())


@pytest.mark.parametrize(
    ("r", "verdict"), [(0.95, "shared"), (0.2, "unclear"), (0.05, "different")]
)
def test_everyone_who_asks_gets_the_same_answer(r: float, verdict: str) -> None:
    """inspect with and without a base, greedy's explanation and interpolate, on one pair."""
    one, other = pair_with_correlation(r)
    base, tuned = from_state_dict(one), from_state_dict(other)
    assert same_initialisation(base, tuned).correlation == pytest.approx(r, abs=1e-9)
    moves = inspect_checkpoints([tuned], base=base).moves
    assert moves is not None
    answers = {
        "whole": same_initialisation(base, tuned).verdict,
        "quick": quick_evidence(base, tuned).verdict,
        "checked": check_initialisation(tuned, base).evidence.verdict,
        "inspect --base": moves.ingredients[0].same_initialisation.verdict,
        "inspect": inspect_checkpoints([base, tuned]).starts[0].same_initialisation.verdict,
    }
    assert set(answers.values()) == {verdict}, answers
    is_different = verdict == "different"
    reasons = {finding.kind for finding in explain(Ingredients([base, tuned]), [0, 1])}
    assert ("no-shared-initialisation" in reasons) is is_different
    assert bool(warn_of_other_starts(Ingredients([base, tuned]))) is is_different
    assert bool(warn_of_other_starts(Ingredients([tuned], base=base))) is is_different
    notes = WiseFT(alpha=0.5).cook([tuned], base=base).notes
    assert any("does not seem to share the initialisation" in n for n in notes) is is_different


def test_an_adapter_starts_from_its_base_however_far_it_moves() -> None:
    rng = np.random.default_rng(0)
    base = from_state_dict({"q.weight": rng.normal(size=(40, 60)).astype(np.float32)})
    adapters = [
        Adapter(
            base,
            from_state_dict(
                {
                    "q.lora_down.weight": rng.normal(size=(30, 60)).astype(np.float32),
                    "q.lora_up.weight": 3 * rng.normal(size=(40, 30)).astype(np.float32),
                }
            ),
        )
        for _ in range(3)
    ]
    assert quick_evidence(base, adapters[0]).verdict == "different"
    assert warn_of_other_starts(Ingredients(adapters, base=base)) == []
    assert warn_of_exchanged_base(adapters, base) == []


def test_a_head_of_its_own_is_found_among_tensors_of_one_start() -> None:
    one, other = pair_with_correlation(0.95)
    other["b.weight"] = np.random.default_rng(3).normal(size=(40, 60))
    found = check_initialisation(from_state_dict(other), from_state_dict(one))
    assert not found.is_different
    assert found.unrelated == ("b.weight",)
    assert found.lowest == pytest.approx(0, abs=3 / np.sqrt(2400))


def test_small_tensors_must_correlate_beyond_chance() -> None:
    """Of 240 elements, 0.13 is chance; of 240,000 it is not."""
    assert assess([0.13]).verdict == "unclear"
    rng = np.random.default_rng(1)
    for n, is_unrelated in ((24, True), (24000, False)):
        x, y = rng.normal(size=(2, 10, n))
        y -= x * (x * y).sum() / (x * x).sum()
        y = 0.13 * x + y * np.sqrt(1 - 0.13**2)
        big = rng.normal(size=(50, 50))
        one, other = {"big": big, "w": x}, {"big": big, "w": y}
        found = check_initialisation(from_state_dict(other), from_state_dict(one))
        assert ("w" in found.unrelated) is is_unrelated
