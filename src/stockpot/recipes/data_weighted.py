"""Means whose weights come from data: by Fisher information, and by the inputs of linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import RecipeError
from stockpot.evaluate.runner import to_device
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task_evaluator import TaskEvaluator, require_outputs
from stockpot.formats.base import Checkpoint
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.fisher import diagonal_fisher, normalised
from stockpot.tensors.rounding import widen

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

_F64 = npt.NDArray[np.float64]


def fisher_mean(
    context: RecipeContext, *, n_examples: int, seed: int, floor: float = 1e-6
) -> dict[str, _F64]:
    """Σ Fᵢ⊙θᵢ / Σ Fᵢ of every parameter, Fᵢ the diagonal Fisher information of ingredient i.

    Fᵢ is divided by its norm over the model, and then at least `floor`. Models come one after the
    other, so that memory does not grow with their number. Equal Fᵢ give the mean.

    Raises:
        RecipeError: nothing scores by outputs, or no weight of a model matters.

    Reference: Matena and Raffel 2021, arXiv 2111.09832, eq. 3 and §3.
    """
    evaluator, dataset = _data(context, "the Fisher information")
    top: dict[str, _F64] = {}
    bottom: dict[str, _F64] = {}
    for model in context.ingredients:
        found = diagonal_fisher(evaluator, model, dataset, n_examples=n_examples, seed=seed)
        for name, weight in _mixed(context, normalised(found, floor=floor, by="norm")):
            top[name] = top.get(name, 0.0) + weight * _values(model, name)
            bottom[name] = bottom.get(name, 0.0) + weight
    return {name: total / bottom[name] for name, total in top.items()}


def regression_mean(
    context: RecipeContext, *, n_examples: int, seed: int, shrink: float = 0.9
) -> dict[str, _F64]:
    """(Σ Gᵢ)⁻¹ Σ Gᵢ·Wᵢ of the weight of every linear layer, Gᵢ = XᵢᵀXᵢ of its inputs in model i.

    It is the weight whose outputs are nearest to those of each model on its own inputs. W is
    [in, out] here; torch stores the transpose. Off-diagonals of G are multiplied by `shrink`.
    Equal Gᵢ give the mean, and equal Wᵢ that W; inputs that are always zero take the mean.

    Raises:
        RecipeError: nothing scores by outputs, or the model has no linear layer.

    Reference: Jin et al. 2023, arXiv 2212.09849, eq. 2 and §3.2.
    """
    evaluator, dataset = _data(context, "the inputs of layers")
    left: dict[str, _F64] = {}
    right: dict[str, _F64] = {}
    for model in context.ingredients:
        grams = _input_products(evaluator, model, dataset, n_examples=n_examples, seed=seed)
        for name, gram in _mixed(context, grams):
            inputs = shrink * gram + (1 - shrink) * np.diag(np.diag(gram))
            # As little as rounding, so that inputs that are always zero have a solution: the mean.
            inputs += np.eye(len(gram)) * (1e-12 * np.trace(gram) / len(gram) + 1e-300)
            left[name] = left.get(name, 0.0) + inputs
            right[name] = right.get(name, 0.0) + inputs @ _values(model, name).T
    if not left:
        raise RecipeError("the model has no linear layers to average by their inputs")
    return {
        name: np.array(np.linalg.solve(a, right[name]).T, np.float64) for name, a in left.items()
    }


def _data(context: RecipeContext, purpose: str) -> tuple[TaskEvaluator, Dataset[Any]]:
    """What runs models, and the task's calibration set: its training set, if none is given.

    Raises:
        RecipeError: there is no task.
    """
    evaluator = context.evaluator
    if evaluator is None or not evaluator.has_outputs:
        raise RecipeError(f"{purpose} comes from data: give a task (--task)")
    dataset = evaluator.task.calibration_set
    if dataset is None:
        split = split_to_choose_on(evaluator.task, context.choose_on)
        dataset = evaluator.task.splits[split].dataset
    return require_outputs(evaluator, purpose), dataset


def _mixed(context: RecipeContext, found: dict[str, _F64]) -> Iterator[tuple[str, _F64]]:
    """Those that are averaged, tied ones under the first of their names."""
    given = context.ingredients
    leaders = {name: group[0] for group in given.tied for name in group}
    for name, value in found.items():
        first = leaders.get(name, name)
        if first in given.averaged:
            yield first, value


def _values(model: Checkpoint, name: str) -> _F64:
    spec = model[name]
    return widen(model.raw(name).view(spec.dtype.storage), spec.dtype.value).reshape(spec.shape)


def _input_products(
    scorer: TaskEvaluator, model: Checkpoint, dataset: Dataset[Any], *, n_examples: int, seed: int
) -> dict[str, _F64]:
    """XᵀX of the inputs of every linear layer, by the name of its weight, float64."""
    import torch

    scorer.load(model)
    network = scorer.runner.model
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):

            def count(_: Any, inputs: Any, weight: str = f"{name}.weight".lstrip(".")) -> None:
                x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
                found[weight] = found.get(weight, 0) + x.T @ x

            handles.append(module.register_forward_pre_hook(count))
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:n_examples]  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            for batch in scorer.task.batches(dataset, sorted(chosen.tolist()), batch_size=64):
                scorer.task.predict(network, to_device(batch, scorer.runner.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gram.cpu().numpy() for name, gram in found.items()}
