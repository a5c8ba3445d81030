"""Learned soups: coefficients fitted by gradient descent, with one model in memory.

Wortsman et al. 2022 (arXiv 2203.05482, App. I) minimise over α ∈ R^k and β ∈ R

    Σ_j ℓ( β · f(x_j; Σ_i softmax(α)_i θ_i), y_j )

on held-out data with all ingredients in memory. The same optimum is reached here while they stay
on disk; see `stockpot.mixing.gradient`. Unlike the paper, the held-out split is divided: one part
fits, and the other decides whether the fitted soup is better than the uniform and greedy soups
that were chosen on the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stockpot._types import JSON, Progress, parse_bytes
from stockpot.errors import EvaluationError, RecipeError
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.groups import group_names
from stockpot.models.view import part_of, with_splits
from stockpot.recipes._learning import (
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
from stockpot.recipes.base import Kitchen, prepare
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.soup import Soup, serve

if TYPE_CHECKING:
    import torch

    from stockpot.checkpoint.ingredients import Ingredients, OnMismatch, Source
    from stockpot.checkpoint.spec import DType
    from stockpot.evaluation.scoring import Evaluator
    from stockpot.models.task import Task

__all__ = ["Learned"]

_Constraint = Literal["softmax", "free", "hyperplane"]

_SMOOTHING = 0.9
"""A softmax cannot hold an exact 0, so a greedy start keeps this much and spreads the rest."""


@dataclass(frozen=True)
class Learned:
    """Fit mixing coefficients, and an inverse temperature β, by gradient descent.

    The fitted soup is taken only where it is at least as good, on data that had no part in the
    fitting, as the uniform and the greedy soup; otherwise the better of those is returned, and
    `notes` says so. β is fitted along and recorded, and is not part of the weights.

    Attributes:
        by: one vector of coefficients for the `"model"`, each `"layer"`, or each `"tensor"`.
        groups: (shell pattern, group name) pairs that come before `by`.
        constraint: `"softmax"` (positive, summing to one; the paper's better choice), `"free"`, or
            `"hyperplane"` (summing to one, any sign, steps in units of distance; MEHL-Soup).
        optimiser: `"lbfgs"` (all of the fitting part at each evaluation) or `"adamw"`.
        n_epochs: most iterations of L-BFGS, or passes over the fitting part.
        batch_size: examples of one AdamW step; None takes all, which reads the ingredients least.
        lr: of AdamW; None means 0.05 for softmax and 0.01 for the other two.
        learn_beta: fit β; otherwise it stays 1.
        deciding: share of the held-out split that decides.
        starts: where to begin; each is run and the lowest loss on the fitting part is kept.
        patience: stop after this many epochs without a lower loss on the deciding part.
        max_memory: bytes, or a size such as `"4GB"`, for the model, its gradient, buffers, and as
            many ingredients as then fit; None holds no ingredient.
        seed: of the division and of mini-batches.
    """

    name = "learned"

    by: Literal["model", "layer", "tensor"] = "model"
    groups: tuple[tuple[str, str], ...] = ()
    constraint: _Constraint = "softmax"
    optimiser: Literal["lbfgs", "adamw"] = "lbfgs"
    n_epochs: int = 30
    batch_size: int | None = None
    lr: float | None = None
    learn_beta: bool = True
    deciding: float = 0.5
    starts: tuple[Literal["uniform", "greedy"], ...] = ("uniform", "greedy")
    patience: int = 5
    max_memory: int | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.constraint not in ("softmax", "free", "hyperplane"),
                 f"constraint is {self.constraint!r}, expected softmax, free or hyperplane"),
                (self.optimiser not in ("lbfgs", "adamw"),
                 f"optimiser is {self.optimiser!r}, expected lbfgs or adamw"),
                (self.optimiser == "lbfgs" and self.batch_size is not None,
                 "L-BFGS needs all data at every step: leave batch_size out, or use adamw"),
                (not 0 < self.deciding < 1,
                 f"deciding is {self.deciding}, expected a share between 0 and 1"),
                (len(self.starts) == 0 or not set(self.starts) <= {"uniform", "greedy"},
                 f"starts are {self.starts}, expected uniform, greedy, or both"),
                (self.n_epochs < 1, f"n_epochs is {self.n_epochs}, expected at least 1"),
                (self.patience < 1, f"patience is {self.patience}, expected at least 1"),
                (self.batch_size is not None and self.batch_size < 1,
                 f"batch_size is {self.batch_size}, expected at least 1"),
            )
            if wrong
        ]  # fmt: skip
        if problems:
            raise RecipeError("; ".join(problems))

    def cook(
        self,
        ingredients: Ingredients | Iterable[Source],
        task: Task | None = None,
        *,
        base: Source | None = None,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        on_mismatch: OnMismatch = "error",
        dtype: DType | str | None = None,
        report: bool = True,
    ) -> Soup:
        """Fit the coefficients; see `Recipe.cook`. An interrupted run continues when run again.

        Raises:
            RecipeError: no task, fewer than two ingredients, or too little `max_memory`.
        """
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        scoring, split = kitchen.scoring(self.name)
        if not scoring.has_outputs:
            raise RecipeError(
                "learned soups need gradients, which a program does not give: use --task in place "
                "of --eval, or greedy"
            )
        if len(kitchen.ingredients) < 2:
            raise RecipeError("one ingredient has nothing to be mixed with; give at least two")
        fitting, deciding = _divide(scoring.n_examples(split), self.deciding, seed=self.seed)
        greedy = _greedy_on(kitchen, scoring, split, fitting)
        uniform = kitchen.uniform(range(len(kitchen.ingredients)))
        run = _Run.begin(self, kitchen, scoring, split, fitting, deciding)
        fits = [
            run.fit(start, {"uniform": uniform, "greedy": greedy}[start]) for start in self.starts
        ]
        fit = min(fits, key=lambda fit: fit.loss)
        candidates = {
            "uniform": uniform,
            "greedy": greedy,
            "learned": Mixture(kitchen.ingredients, run.coefficients(fit.point), dtype=dtype),
        }
        del run.loss
        parts = {
            name: _part_scores(scoring, mixture, split, fitting, deciding)
            for name, mixture in candidates.items()
        }
        taken = _decide({name: part["deciding"] for name, part in parts.items()}, scoring)
        return self._serve(kitchen, run, fits, fit, candidates, parts, taken)

    def _serve(
        self,
        kitchen: Kitchen,
        run: _Run,
        fits: list[_Fit],
        fit: _Fit,
        candidates: Mapping[str, Mixture],
        parts: Mapping[str, Mapping[str, float]],
        taken: str,
    ) -> Soup:
        mixture = candidates[taken]
        members = _members(mixture)
        best = {name: part["deciding"] for name, part in parts.items()}
        notes = []
        if taken != "learned":
            notes.append(
                f"the learned soup scores {best['learned']:.4f} on the deciding part and the "
                f"{taken} soup {best[taken]:.4f}: the {taken} soup is taken"
            )
        extra: dict[str, JSON] = {
            "taken": taken,
            "start": fit.start,
            "beta": fit.point.beta,
            "losses": [epoch["loss"] for epoch in fit.epochs],
            "epochs": {f.start: list(f.epochs) for f in fits},
            "learned_coefficients": run.to_json(candidates["learned"]),
            "choices": {name: run.to_json(candidates[name]) for name in ("uniform", "greedy")},
            "parts": {name: dict(part) for name, part in parts.items()},
            "n_fitting": len(run.fitting),
            "n_deciding": len(run.deciding),
            "peak_bytes": run.peak_bytes,
            "n_held": run.n_held,
        }
        soup = serve(self, kitchen, mixture, selected=members, extra=extra, notes=notes)
        return replace(soup, coefficients=run.to_json(mixture), chosen_on=kitchen.choose_on)


@dataclass(frozen=True)
class _Fit:
    """One optimisation from one start, at its best epoch.

    `loss` is that of the fitting part; `epochs` has a record of each epoch.
    """

    start: str
    point: Point
    loss: float
    epochs: tuple[dict[str, JSON], ...]


@dataclass
class _Run:
    """What all starts share; it has state because the model inside `loss` has.

    Inside, ingredients stand in canonical order, so that neither the order of arguments nor where
    files lie changes a bit of the fit; what comes out is in the order given.
    """

    recipe: Learned
    kitchen: Kitchen
    loss: MixtureLoss
    parametrisation: Parametrisation
    group_of: dict[str, str]
    index: dict[str, int]
    dataset: Any
    fitting: list[int]
    deciding: list[int]
    log: EvaluationLog
    salt: str
    progress: Progress
    n_held: int = 0

    @classmethod
    def begin(
        cls,
        recipe: Learned,
        kitchen: Kitchen,
        evaluator: Evaluator,
        split: str,
        fitting: list[int],
        deciding: list[int],
    ) -> _Run:
        given = kitchen.ingredients
        task = evaluator.task
        names = _streamed_names(given, evaluator)
        group_of = group_names(names, recipe.by, tied=given.tied, patterns=dict(recipe.groups))
        index = {group: row for row, group in enumerate(dict.fromkeys(group_of.values()))}
        # Counters and the like are not mixed by coefficients, but the mixture wants some for them.
        rest = dict.fromkeys(given.averaged - set(group_of), next(iter(index)))
        wide = any(given.specs[name].dtype.value == "F64" for name in names)
        loss = MixtureLoss(
            task,
            [given[i] for i in given.canonical],
            start=kitchen.uniform(range(len(given))),
            names=names,
            group_index={name: index[group] for name, group in group_of.items()},
            device=str(evaluator.living.device),
            precision=evaluator.precision,
            max_memory=None if recipe.max_memory is None else parse_bytes(recipe.max_memory),
            dtype=_float64() if wide else None,
        )
        made: Parametrisation = {"softmax": Softmax, "free": Free}.get(recipe.constraint, Softmax)()
        if recipe.constraint == "hyperplane":
            made = Hyperplane(loss.spreads())
        salt = _salt(recipe, kitchen, evaluator, split, group_of, fitting)
        folder = evaluator.journal.path
        path = None if folder is None else Path(folder).parent / "learned" / f"{salt}.jsonl"
        return cls(
            recipe, kitchen, loss, made, group_of | rest, index, task.splits[split].dataset,
            fitting, deciding, EvaluationLog(path), salt, evaluator.progress, loss.blocks.n_held,
        )  # fmt: skip

    def fit(self, start: str, mixture: Mixture) -> _Fit:
        """Optimise from the coefficients of `mixture`; the epoch that decides best is returned."""
        recipe = self.recipe
        n = len(self.fitting)
        n_batches = 1 if recipe.batch_size is None else -(-n // recipe.batch_size)
        best: tuple[float, Point, float] | None = None
        epochs: list[dict[str, JSON]] = []
        n_worse = 0

        def visit(epoch: int, point: Point, loss: float) -> bool:
            nonlocal best, n_worse
            outside = self._deciding_loss(point)
            epochs.append(self._epoch(epoch, point, loss, outside))
            self.progress(epoch + 1, recipe.n_epochs, f"epochs from the {start} soup")
            if best is None or outside < best[0]:
                best, n_worse = (outside, point, loss), 0
            else:
                n_worse += 1
            return n_worse >= recipe.patience

        begin = Point(self.parametrisation.start(self._start(mixture)), 1.0)
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
        if best is None:  # L-BFGS found no lower point than its start
            return _Fit(start, end, evaluate(end, -1).loss, ())
        return _Fit(start, best[1], best[2], tuple(epochs))

    def coefficients(self, point: Point) -> Coefficients:
        """The coefficients of a point, for a mixture."""
        rows = self._in_order(point)
        free = self.recipe.constraint == "free"
        if not free:
            # Softmax rounds; the rest of the last bit would be the coefficients' error, not ours.
            rows = rows / rows.sum(dim=1, keepdim=True)
        values = {group: rows[row].tolist() for group, row in self.index.items()}
        if self.recipe.by == "model" and not self.recipe.groups:
            return Coefficients.per_model(values["model"], any_sum=free)
        return Coefficients.per_group(values, group_of=self.group_of, any_sum=free)

    def _in_order(self, point: Point) -> torch.Tensor:
        """The coefficients of a point (groups, k), in the order in which ingredients were given."""
        rows = self.parametrisation.coefficients(point.raw)
        canonical = self.kitchen.ingredients.canonical
        return rows[:, [canonical.index(i) for i in range(len(canonical))]]

    def to_json(self, mixture: Mixture) -> dict[str, JSON]:
        """`{path: c}`, or `{group: {path: c}}` where groups have coefficients of their own."""
        paths, vectors = self.kitchen.paths, mixture.coefficients.vectors
        named: dict[str, JSON] = {
            key: dict(zip(paths, vector, strict=True)) for key, vector in vectors.items()
        }
        only = named.get("")
        return only if isinstance(only, dict) else named

    def _evaluate(self, n_batches: int) -> Any:
        def evaluate(point: Point, batch: int) -> Value:
            chosen = batch_indices(len(self.fitting), n_batches, batch, seed=self.recipe.seed)
            indices = [self.fitting[i] for i in chosen]
            value = self.loss.value(point, self.parametrisation, self.dataset, indices)
            if not np.isfinite(value.loss):
                raise EvaluationError(
                    f"the loss is {value.loss} after {len(self.log)} evaluations; negative "
                    "coefficients can make variances negative, and large steps overflow: "
                    "use constraint='softmax', or a smaller lr with optimiser='adamw'"
                )
            self._remember_peak(self.loss.peak_bytes)
            return value

        return evaluate

    @property
    def peak_bytes(self) -> int:
        """Most anonymous memory that was seen after a backward pass, interrupted runs included."""
        known = self.log.get(f"{self.salt}/peak")
        return 0 if known is None else int(known.loss)

    def _remember_peak(self, n_bytes: int) -> None:
        if n_bytes > self.peak_bytes:
            self.log.put(f"{self.salt}/peak", _number(n_bytes))

    def _deciding_loss(self, point: Point) -> float:
        """Loss over the deciding part; logged, so that a resumed run does not repeat it."""
        key = point.key(f"{self.salt}/deciding")
        known = self.log.get(key)
        if known is not None:
            return known.loss
        loss = self.loss.loss(point, self.parametrisation, self.dataset, self.deciding)
        self.log.put(key, _number(loss))
        return loss

    def _epoch(self, epoch: int, point: Point, loss: float, outside: float) -> dict[str, JSON]:
        record: dict[str, JSON] = {
            "epoch": epoch, "loss": loss, "deciding_loss": outside, "beta": point.beta,
        }  # fmt: skip
        rows = self._in_order(point)
        if len(rows) == 1:
            record["coefficients"] = rows[0].tolist()
        return record

    def _start(self, mixture: Mixture) -> torch.Tensor:
        import torch

        given = mixture.coefficients.vectors[""]
        vector = torch.tensor(
            [given[i] for i in self.kitchen.ingredients.canonical], dtype=torch.float64
        )
        if self.recipe.constraint == "softmax" and bool((vector == 0).any()):
            vector = _SMOOTHING * vector + (1 - _SMOOTHING) / len(vector)
        return vector.repeat(len(self.index), 1)


def _number(value: float) -> Value:
    """A number without a gradient, for the log."""
    import torch

    return Value(float(value), torch.zeros(0, 0, dtype=torch.float64), 0.0)


def _float64() -> torch.dtype:
    import torch

    return torch.float64


def _divide(n: int, share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Positions that fit and positions that decide, both sorted; a seeded division."""
    n_deciding = round(n * share)
    if not 0 < n_deciding < n:
        raise RecipeError(
            f"{n} held-out examples cannot be divided into a fitting and a deciding part "
            f"({share:g} of them)"
        )
    order = np.random.default_rng(seed).permutation(n)
    return sorted(order[n_deciding:].tolist()), sorted(order[:n_deciding].tolist())


def _greedy_on(kitchen: Kitchen, evaluator: Evaluator, split: str, fitting: list[int]) -> Mixture:
    """The greedy soup, chosen on the fitting part."""
    part = part_of(evaluator.task.splits[split], fitting, fingerprint=evaluator.fingerprint(split))
    view = with_splits(evaluator.task, {"fitting": part})
    soup = Greedy().cook(
        kitchen.ingredients, evaluator=evaluator.over(view), dtype=kitchen.dtype, report=False
    )
    vector = [float(soup.coefficients.get(path, 0.0)) for path in kitchen.paths]  # type: ignore[arg-type]
    return kitchen.mixture(vector)


def _streamed_names(given: Ingredients, evaluator: Evaluator) -> list[str]:
    """Floating tensors that are averaged and that the model has; of tied ones the first."""
    repeated = {name for group in given.tied for name in group[1:]}
    known = set(evaluator.living.model.state_dict())
    return [
        name
        for name in given.specs
        if name in given.averaged
        and name in known
        and name not in repeated
        and given.specs[name].dtype.mixable
    ]


def _part_scores(
    evaluator: Evaluator, mixture: Mixture, split: str, fitting: list[int], deciding: list[int]
) -> dict[str, float]:
    """The metric of `mixture` on both parts, from one set of predictions."""
    import torch

    found = evaluator.predictions(mixture, split)
    outputs = torch.from_numpy(np.array(found.outputs))
    return {
        name: evaluator.metric.compute(outputs[part], found.targets[part])
        for name, part in (("fitting", fitting), ("deciding", deciding))
    }


def _decide(deciding: Mapping[str, float], evaluator: Evaluator) -> str:
    """`learned` unless another is better; among those, ties go to the simpler."""
    sign = 1 if evaluator.metric.higher_is_better else -1
    top = max(sign * score for score in deciding.values())
    return next(name for name in ("learned", "uniform", "greedy") if sign * deciding[name] == top)


def _members(mixture: Mixture) -> list[int]:
    vectors = mixture.coefficients.vectors.values()
    return [i for i in range(len(mixture.ingredients)) if any(v[i] != 0 for v in vectors)]


def _salt(
    recipe: Learned,
    kitchen: Kitchen,
    evaluator: Evaluator,
    split: str,
    group_of: Mapping[str, str],
    fitting: list[int],
) -> str:
    """Everything that a loss at given coefficients depends on."""
    fields = {
        "ingredients": [kitchen.ingredients[i].fingerprint for i in kitchen.ingredients.canonical],
        "groups": dict(group_of),
        "constraint": recipe.constraint,
        "split": evaluator.fingerprint(split),
        "fitting": hashlib.sha256(np.asarray(fitting).tobytes()).hexdigest(),
        "version": evaluator.task.version,
        "precision": evaluator.precision,
        "batches": [recipe.batch_size, recipe.seed],
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
