"""What a run minimises over the logits of a batch: losses, label smoothing, the start's word."""

from __future__ import annotations

import torch
from torch.nn import functional

from stockpot.errors import TrainingError


def smoothed_loss(loss: torch.Tensor, outputs: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(1 − s)·loss + s·(cross-entropy to the uniform distribution), for logits (N, C).

    With cross-entropy as the loss this is torch's `label_smoothing`; as a term of its own it goes
    with any loss over logits, mixed ones included.
    """
    if smoothing == 0:
        return loss
    _require_logits(outputs, "label_smoothing needs", "set it to 0")
    return (1 - smoothing) * loss - smoothing * outputs.log_softmax(1).mean()


def sigmoid_loss(outputs: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Binary cross-entropy of each class against the others, for logits (N, C) and classes (N).

    The sum over classes, and the mean over examples. With smoothing s the target of a class is
    (1 − s)·(0 or 1) + s/C.

    Reference: Beyer et al. 2020, arXiv 2006.07159, section 5.

    >>> float(sigmoid_loss(torch.zeros(1, 4), torch.tensor([2]), 0.0))  # 4 · ln 2
    2.7725887298583984
    """
    remedy = 'keep loss="task"'
    _require_logits(outputs, "the sigmoid loss needs", remedy)
    if targets.ndim != 1 or targets.is_floating_point():
        raise TrainingError(
            f"the sigmoid loss needs class indices (N), and the targets have shape "
            f"{tuple(targets.shape)} and dtype {targets.dtype}; {remedy}"
        )
    n_classes = outputs.shape[1]
    wanted = functional.one_hot(targets.long(), n_classes).to(outputs.dtype)
    wanted = (1 - smoothing) * wanted + smoothing / n_classes
    each = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return each.sum(1).mean()


def distilled_loss(
    loss: torch.Tensor, outputs: torch.Tensor, taught: torch.Tensor, share: float
) -> torch.Tensor:
    """(1 − d)·loss + d·KL(taught ‖ outputs), for logits (N, C) of a teacher and of the model.

    Reference: Hinton et al. 2015, arXiv 1503.02531, at temperature 1.
    """
    _require_logits(outputs, "distill_from_start needs", "set it to 0")
    divergence = functional.kl_div(
        outputs.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True
    )
    return (1 - share) * loss + share * divergence


def _require_logits(outputs: torch.Tensor, who: str, remedy: str) -> None:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise TrainingError(
            f"{who} logits (N, C), and the outputs have shape {tuple(outputs.shape)}; {remedy}"
        )
