from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stockpot.errors import TrainingError
from stockpot.train.losses import distilled_loss, sigmoid_loss, smoothed_loss

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def test_smoothing_is_torchs() -> None:
    plain = functional.cross_entropy(logits(), TARGETS)
    expected = functional.cross_entropy(logits(), TARGETS, label_smoothing=0.2)
    assert torch.allclose(smoothed_loss(plain, logits(), 0.2), expected)


def test_the_sigmoid_loss_is_that_of_one_question_per_class() -> None:
    expected = sum(
        functional.binary_cross_entropy(logits()[:, c].sigmoid(), TARGETS.eq(c).float())
        for c in range(5)
    )
    assert torch.allclose(sigmoid_loss(logits(), TARGETS, 0.0), torch.as_tensor(expected))


def test_smoothed_sigmoid_targets_lie_between_those_of_the_label_and_of_no_label() -> None:
    """The loss is linear in its targets, whose ends are the one-hot and the uniform ones."""
    fifth = torch.full((6, 5), 0.2)
    uniform = functional.binary_cross_entropy_with_logits(logits(), fifth, reduction="sum") / 6
    expected = 0.7 * sigmoid_loss(logits(), TARGETS, 0.0) + 0.3 * uniform
    assert torch.allclose(sigmoid_loss(logits(), TARGETS, 0.3), expected)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_distillation_adds_the_divergence_from_the_teacher(share: float) -> None:
    loss = torch.tensor(3.0)
    ours, theirs = (torch.distributions.Categorical(logits=logits(seed)) for seed in (0, 1))
    divergence = torch.distributions.kl_divergence(theirs, ours).mean()
    expected = (1 - share) * loss + share * divergence
    assert torch.allclose(distilled_loss(loss, logits(0), logits(1), share), expected)


def test_a_model_that_says_what_its_teacher_says_is_pulled_nowhere() -> None:
    ours = logits().requires_grad_()
    loss = distilled_loss(torch.zeros(()), ours, logits(), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert ours.grad is not None
    assert ours.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: smoothed_loss(torch.zeros(()), torch.zeros(3), 0.1), "label_smoothing needs"),
        (lambda: sigmoid_loss(torch.zeros(3), TARGETS[:3], 0.0), "sigmoid loss needs logits"),
        (lambda: sigmoid_loss(torch.zeros(3, 1), TARGETS[:3], 0.0), "sigmoid loss needs logits"),
        (lambda: sigmoid_loss(logits(), logits(), 0.0), "needs class indices"),
        (lambda: sigmoid_loss(logits(), TARGETS.float(), 0.0), r"dtype torch.float32; keep loss="),
        (
            lambda: distilled_loss(torch.zeros(()), torch.zeros(6), torch.zeros(6), 0.5),
            "distill_from_start needs logits",
        ),
    ],
)
def test_outputs_that_are_no_logits_are_refused_with_the_remedy(call, what: str) -> None:
    with pytest.raises(TrainingError, match=what):
        call()
