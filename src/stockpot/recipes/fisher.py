"""The diagonal of the Fisher information of a classifier: how much each weight matters to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stockpot.errors import RecipeError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.runner import to_device
from stockpot.evaluate.task_evaluator import require_outputs

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from stockpot.formats.base import Checkpoint


_Floats = Mapping[str, npt.NDArray[np.float64]]


def diagonal_fisher(
    evaluator: Evaluator,
    source: Checkpoint,
    dataset: Dataset[Any],
    *,
    n_examples: int = 512,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """F_j = mean over examples x of (∂ log p(y|x) / ∂θ_j)², y drawn from the model's own p(·|x).

    The labels are not those of the data: with them it would be the *empirical* Fisher, which
    vanishes where the model fits. One backward pass for each example, in evaluation mode.

    Args:
        evaluator: its model is filled with `source`.
        source: the weights.
        dataset: where examples come from; their targets are not looked at.
        n_examples: at most so many, drawn without replacement.
        seed: of the examples and of the labels.

    Returns:
        parameter → float64 of its shape, at least 0; a tied parameter under its first name.

    Raises:
        RecipeError: outputs that are no logits (1, C), or no examples.

    Reference: Matena and Raffel 2021, arXiv 2111.09832, eq. 4.
    """
    import torch

    from stockpot.tensors._devices_torch import widest

    n = len(dataset)  # type: ignore[arg-type]
    if n == 0 or n_examples < 1:
        raise RecipeError("the Fisher information needs at least one example")
    scorer = require_outputs(evaluator, "the Fisher information")
    scorer.load(source)
    runner = scorer.runner
    wide = widest(runner.device)
    params = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=wide) for name, p in params.items()}
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(n)[:n_examples].tolist()
    for number, index in enumerate(chosen, 1):
        for batch in evaluator.task.batches(dataset, [index], batch_size=1):
            logits = evaluator.task.predict(runner.model, to_device(batch, runner.device))
            if logits.ndim != 2 or logits.shape[0] != 1:
                raise RecipeError(
                    f"outputs of one example have shape {tuple(logits.shape)}; the Fisher "
                    "information of a classifier needs logits (1, classes)"
                )
            log_p = logits.to(wide).log_softmax(-1)[0]
            label = int(
                np.searchsorted(
                    np.cumsum(log_p.detach().exp().cpu().double().numpy()), rng.random()
                )
            )
            chosen_log_p = log_p[min(label, len(log_p) - 1)]
            found = torch.autograd.grad(chosen_log_p, list(params.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient.to(wide).square()
        evaluator.progress(number, len(chosen), "examples of the Fisher information")
    return {name: (total / len(chosen)).cpu().double().numpy() for name, total in sums.items()}


def normalised(
    fisher: _Floats, *, floor: float, by: Literal["mean", "norm"] = "mean"
) -> dict[str, npt.NDArray[np.float64]]:
    """Divided by the mean, or by the norm, over all elements, and then at least `floor`.

    Models that are unsure have larger gradients everywhere; only what differs within a model says
    which of its weights matter. The floor keeps 0/0 out where neither model minds.

    >>> normalised({"w": np.array([0.0, 3.0]), "b": np.array([0.0])}, floor=0.5)
    {'w': array([0.5, 3. ]), 'b': array([0.5])}

    Raises:
        RecipeError: `floor` is not positive, or nothing matters to the model at all.
    """
    if not floor > 0:
        raise RecipeError(f"the floor of the Fisher information is {floor}; expected more than 0")
    total = sum(float(values.sum()) for values in fisher.values())
    n = sum(values.size for values in fisher.values())
    scale = math.sqrt(sum(float((values**2).sum()) for values in fisher.values()))
    if by == "mean":
        scale = total / n
    if not (np.isfinite(total) and total > 0):
        raise RecipeError(
            f"the Fisher information sums to {total:g}: no weight changes what this model predicts"
        )
    return {name: np.maximum(values / scale, floor) for name, values in fisher.items()}
