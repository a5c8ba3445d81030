"""Identities between weight space, output space and averages along a run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from stockpot import ClassificationTask, Split, TaskEvaluator, WiseFT
from stockpot.train.ema import ExponentialMean


@pytest.mark.parametrize(("decay", "steps"), [(0.5, 3), (0.9, 20), (0.999, 50)])
def test_interpolating_the_debiased_average_is_the_average_that_started_at_the_base(decay, steps):
    """θ₀ + (1 − dᵀ)·(EMA − θ₀) is the EMA that began at θ₀ (METHODS §7), in float64 to 1e-12."""
    generator = torch.Generator().manual_seed(0)

    def weights():
        return {"w": torch.randn(40, 30, dtype=torch.float64, generator=generator)}

    base, run = weights(), [weights() for _ in range(steps)]
    debiased, from_base = ExponentialMean(decay), ExponentialMean(decay, start=base)
    for snapshot in run:
        debiased.update(snapshot)
        from_base.update(snapshot)
    alpha = 1 - decay**steps
    soup = WiseFT(alpha=alpha).cook([debiased.state_dict()], base=base)
    difference = soup.mixture.read("w") - from_base.state_dict()["w"]
    assert difference.abs().max() < 1e-12


class Frozen(torch.nn.Module):
    """A linear head over features that are not among the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(x))


def test_over_fixed_features_weight_space_and_output_space_are_one():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 12, generator=generator), torch.randint(0, 5, (500,))
    data = TensorDataset(x, y)
    splits = {"val": Split(data), "shift": Split(TensorDataset(x + 0.5, y), role="shift")}
    task = ClassificationTask(build=Frozen, splits=splits, metric="cross-entropy")
    torch.manual_seed(0)
    base, tuned = Frozen().state_dict(), Frozen().state_dict()
    told = WiseFT().cook([tuned], task, base=base, evaluator=TaskEvaluator(task)).details.to_json()
    for in_weights, in_outputs in zip(told["curve"], told["ensemble"], strict=True):
        assert in_weights["alpha"] == in_outputs["alpha"]
        for split, score in in_weights["scores"].items():
            assert in_outputs["scores"][split]["value"] == pytest.approx(score["value"], abs=1e-6)
