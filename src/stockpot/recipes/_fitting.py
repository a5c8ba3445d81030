"""Learned soups of models that give gradients: descent of the loss on the fitting part."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot._types import JSON, parse_bytes
from stockpot.errors import EvaluationError
from stockpot.recipes._layout import Layout, streamed_names
from stockpot.recipes._learning import (
    Evaluate,
    EvaluationLog,
    Free,
    Hyperplane,
    Parametrisation,
    Point,
    Softmax,
    Value,
    adamw,
    lbfgs,
)
from stockpot.recipes._objective import MixtureLoss, batch_indices

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.task_evaluator import TaskEvaluator
    from stockpot.mixing import Mixture
    from stockpot.recipes.base import RecipeContext
    from stockpot.recipes.learned import Learned


_SMOOTHING = 0.9
"""A softmax cannot hold an exact 0, so a greedy start keeps this much and spreads the rest."""


@dataclass(frozen=True)
class Part:
    """The examples of a held-out split that fit, or that decide."""

    split: str
    indices: Sequence[int]


@dataclass(frozen=True)
class Fitted:
    """The outcome of fitting from every start: the best one.

    `epochs` has the record of each start; `extra` is what only this way of fitting can tell, and
    `notes` what a person should know.
    """

    mixture: Mixture
    start: str
    beta: float | None
    losses: JSON
    epochs: dict[str, JSON]
    extra: dict[str, JSON] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Path:
    """One descent from one start, at its best epoch.

    `loss` is that of the fitting part; `epochs` has a record of each epoch; `is_cut` says that it
    ended where the loss was no number.
    """

    start: str
    point: Point
    loss: float
    epochs: tuple[dict[str, JSON], ...]
    is_cut: bool = False


def parametrisation(constraint: str, spreads: torch.Tensor | None = None) -> Parametrisation:
    """How free numbers become coefficients; `spreads` are those of `IngredientBlocks`."""
    if constraint == "hyperplane" and spreads is not None:
        return Hyperplane(spreads)
    return Free() if constraint == "free" else Softmax()


def start_of(mixture: Mixture, layout: Layout, made: Parametrisation) -> torch.Tensor:
    """The free numbers that give `mixture`, or nearly, where a softmax cannot hold its zeros."""
    rows = layout.rows_of(mixture)
    if isinstance(made, Softmax) and bool((rows == 0).any()):
        rows = _SMOOTHING * rows + (1 - _SMOOTHING) / rows.shape[1]
    return made.start(rows)


@dataclass
class Descent:
    """What all starts share; it has state because the model inside `loss` has."""

    recipe: Learned
    layout: Layout
    loss: MixtureLoss
    made: Parametrisation
    fitting: Part
    deciding: Part
    evaluator: TaskEvaluator
    log: EvaluationLog
    salt: str

    @classmethod
    def begin(
        cls,
        recipe: Learned,
        context: RecipeContext,
        evaluator: TaskEvaluator,
        fitting: Part,
        deciding: Part,
    ) -> Descent:
        """Everything made ready; the model is the uniform soup.

        Raises:
            RecipeError: too little `max_memory`, or patterns without tensors.
        """
        import torch

        given = context.ingredients
        names = streamed_names(given, evaluator.runner.model.state_dict())
        layout = Layout.of(
            context,
            names,
            by=recipe.by,
            groups=recipe.groups,
            any_sum=recipe.constraint == "free",
        )
        wide = any(given.specs[name].dtype.value == "F64" for name in names)
        loss = MixtureLoss(
            evaluator.task,
            [given[i] for i in given.canonical],
            start=context.uniform(range(len(given))),
            names=names,
            group_index=layout.row_of,
            device=str(evaluator.runner.device),
            precision=evaluator.precision,
            max_memory=None if recipe.max_memory is None else parse_bytes(recipe.max_memory),
            dtype=torch.float64 if wide else None,
        )
        spreads = loss.spreads() if recipe.constraint == "hyperplane" else None
        salt = _salt(recipe, layout, evaluator, fitting, deciding)
        folder = evaluator.journal.path
        path = None if folder is None else Path(folder).parent / "learned" / f"{salt}.jsonl"
        made = parametrisation(recipe.constraint, spreads)
        log = EvaluationLog(path)
        return cls(recipe, layout, loss, made, fitting, deciding, evaluator, log, salt)

    def best(self, starts: Mapping[str, Mixture]) -> Fitted:
        """Descend from every start; the one with the lowest loss on the fitting part is kept."""
        paths = [self.fit(name, mixture) for name, mixture in starts.items()]
        path = min(paths, key=lambda path: path.loss)
        known = self.log.get(f"{self.salt}/peak")
        return Fitted(
            self.layout.mixture(self.made.coefficients(path.point.raw)),
            path.start,
            path.point.beta,
            [epoch["loss"] for epoch in path.epochs],
            {p.start: list(p.epochs) for p in paths},
            {
                "peak_bytes": 0 if known is None else int(known.loss),
                "n_held": self.loss.blocks.n_held,
            },
            tuple(
                f"from the {p.start} soup the loss was no number after {len(p.epochs)} epochs, and "
                "the best of them was kept: use constraint='softmax' (--constraint softmax), or a "
                "smaller lr (--lr)"
                for p in paths
                if p.is_cut
            ),
        )

    def fit(self, start: str, mixture: Mixture) -> _Path:
        """Descend from the coefficients of `mixture`; the epoch that decides best is returned."""
        recipe = self.recipe
        n = len(self.fitting.indices)
        n_batches = 1 if recipe.batch_size is None else -(-n // recipe.batch_size)
        best: tuple[float, Point, float] | None = None
        epochs: list[dict[str, JSON]] = []
        n_worse = 0

        def visit(epoch: int, point: Point, loss: float) -> bool:
            nonlocal best, n_worse
            outside = self._deciding_loss(point)
            epochs.append(self._epoch(epoch, point, loss, outside))
            self.evaluator.progress(epoch + 1, recipe.n_epochs, f"epochs from the {start} soup")
            if math.isfinite(outside) and (best is None or outside < best[0]):
                best, n_worse = (outside, point, loss), 0
            else:
                n_worse += 1
            return n_worse >= recipe.patience

        begin = Point(start_of(mixture, self.layout, self.made), 1.0)
        evaluate = self.log.recorded(self._evaluate(n_batches), self.salt)
        if recipe.optimiser == "lbfgs":
            end = lbfgs(
                begin, evaluate, visit, n_epochs=recipe.n_epochs, learn_beta=recipe.learn_beta
            )
        else:
            plane = recipe.constraint == "hyperplane"
            default = 0.05 if recipe.constraint == "softmax" else 0.01
            end = adamw(
                begin, evaluate, visit, n_epochs=recipe.n_epochs, n_batches=n_batches,
                lr=default if recipe.lr is None else recipe.lr,
                warmup=0.2 if plane else 0.0, cosine=plane, learn_beta=recipe.learn_beta,
            )  # fmt: skip
        if best is None:  # L-BFGS found no lower point than its start, or there was no number
            loss = evaluate(end, -1).loss
            if not math.isfinite(loss):
                raise EvaluationError(
                    f"the loss is {loss} at the first steps from the {start} soup; negative "
                    "coefficients can make variances negative, and large steps overflow: use "
                    "constraint='softmax' (--constraint softmax), or a smaller lr (--lr)"
                )
            return _Path(start, end, loss, ())
        is_cut = recipe.optimiser == "adamw" and n_worse < recipe.patience
        is_cut = is_cut and len(epochs) < recipe.n_epochs
        return _Path(start, best[1], best[2], tuple(epochs), is_cut)

    def _evaluate(self, n_batches: int) -> Evaluate:
        dataset = self._dataset(self.fitting)

        def evaluate(point: Point, batch: int) -> Value:
            n = len(self.fitting.indices)
            chosen = batch_indices(n, n_batches, batch, seed=self.recipe.seed)
            indices = [self.fitting.indices[i] for i in chosen]
            value = self.loss.value(point, self.made, dataset, indices)
            self._remember_peak(self.loss.peak_bytes)
            return value

        return evaluate

    def _remember_peak(self, n_bytes: int) -> None:
        """Log the most anonymous memory after a backward pass, interrupted runs included."""
        key = f"{self.salt}/peak"
        known = self.log.get(key)
        if known is None or n_bytes > known.loss:
            self.log.put(key, _number(n_bytes))

    def _deciding_loss(self, point: Point) -> float:
        """Loss over the deciding part; logged, so that a resumed run does not repeat it."""
        key = point.key(f"{self.salt}/deciding")
        known = self.log.get(key)
        if known is not None:
            return known.loss
        part = self.deciding
        loss = self.loss.loss(point, self.made, self._dataset(part), part.indices)
        self.log.put(key, _number(loss))
        return loss

    def _dataset(self, part: Part) -> Any:
        return self.evaluator.task.splits[part.split].dataset

    def _epoch(self, epoch: int, point: Point, loss: float, outside: float) -> dict[str, JSON]:
        return {
            "epoch": epoch, "loss": loss, "deciding_loss": outside, "beta": point.beta,
            "coefficients": self.layout.lists(self.made.coefficients(point.raw)),
        }  # fmt: skip


def _number(value: float) -> Value:
    """A number without a gradient, for the log."""
    import torch

    return Value(float(value), torch.zeros(0, 0, dtype=torch.float64), 0.0)


def _salt(
    recipe: Learned, layout: Layout, evaluator: TaskEvaluator, fitting: Part, deciding: Part
) -> str:
    """Everything that a loss at given coefficients depends on."""
    given = layout.context.ingredients
    fields = {
        "ingredients": [given[i].fingerprint for i in given.canonical],
        "groups": dict(layout.group_of),
        "constraint": recipe.constraint,
        "parts": [
            [evaluator.fingerprint(part.split),
             hashlib.sha256(np.asarray(part.indices).tobytes()).hexdigest()]
            for part in (fitting, deciding)
        ],
        "version": evaluator.task.version,
        "precision": evaluator.precision,
        "batches": [recipe.batch_size, recipe.seed],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
