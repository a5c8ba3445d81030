"""The weights between a base and its fine-tuned children, and what they score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot._types import Progress, no_progress
from stockpot.analysis.calibration import negative_log_likelihood
from stockpot.analysis.geometry import Geometry, measure_geometry
from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import are_class_logits
from stockpot.evaluate.task_evaluator import require_outputs
from stockpot.formats.base import Checkpoint
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.ingredients import Ingredients

_DIGITS = 9  # of coefficients that geometry gives, far below what a float32 weight can tell apart


@dataclass(frozen=True)
class WeightPoint:
    """A point θ₀ + Σ cᵢ(θᵢ − θ₀) of weight space with a name: base, ingredient, soup, or between.

    `coefficients` are the cᵢ, one for each ingredient; 0 everywhere is the base.
    """

    name: str
    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LossAndScore:
    """On held-out data: mean cross-entropy in nats, and the task's metric."""

    loss: float
    score: float


class WeightSpace:
    """Base, ingredients, and everything on lines and planes through them, scored on one split.

    Whatever is scored is a `Mixture`, known to the journal by its content: the corner of a plane is
    the ingredient itself and the middle of a line the soup of two, and none is scored twice.

    It has state: the evaluator, and how many evaluations were asked for and made.

    Args:
        ingredients: with their base.
        evaluator: scores; its task must give logits over classes.
        split: held-out data on which points are compared.
        progress: called with evaluations, of `planned` in all.

    Attributes:
        requested: (content, split) of everything scored so far.
        evaluated: evaluations among them that the journal did not know.

    Raises:
        RecipeError: no base.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        evaluator: Evaluator,
        split: str,
        *,
        progress: Progress = no_progress,
    ) -> None:
        if ingredients.base is None:
            raise RecipeError("there is no base to measure moves from: give base=… (--base)")
        common = len(ingredients.averaged) < len(ingredients.specs)
        self.ingredients = ingredients
        self.base: Checkpoint = ingredients.base
        self.evaluator, self.split, self.progress = evaluator, split, progress
        self.requested: set[tuple[str, str]] = set()
        self.evaluated = 0
        self.planned: int | None = None
        self._all = Ingredients(
            [*ingredients, self.base],
            base=self.base,
            on_mismatch="common" if common else "error",
            reconcile=ingredients.reconcile,
        )
        self._geometry: Geometry | None = None

    @property
    def geometry(self) -> Geometry:
        """Inner products of the moves of the model's parameters; read once, on first use."""
        if self._geometry is None:
            model = require_outputs(self.evaluator, "geometry").runner.model
            names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            self._geometry = measure_geometry(
                list(self.ingredients), self.base, parameters=names, progress=self.progress
            )
        return self._geometry

    @property
    def origin(self) -> WeightPoint:
        """The base."""
        return WeightPoint(self.base.path, (0.0,) * len(self.ingredients))

    def ingredient(self, index: int) -> WeightPoint:
        """The ingredient at `index`."""
        return self.mean(self.ingredients[index].path, [index])

    def mean(self, name: str, members: Sequence[int]) -> WeightPoint:
        """The uniform soup of the ingredients at `members`."""
        share = 1.0 / len(members)
        inside = set(members)
        return WeightPoint(
            name, tuple(share if i in inside else 0.0 for i in range(len(self.ingredients)))
        )

    def between(self, a: WeightPoint, b: WeightPoint, alpha: float) -> WeightPoint:
        """(1−α)·a + α·b; the ends are a and b themselves."""
        if alpha in (0.0, 1.0):
            return b if alpha else a
        pairs = zip(a.coefficients, b.coefficients, strict=True)
        return WeightPoint(
            f"{a.name} – {b.name} at {alpha:g}",
            tuple(x if x == y else (1 - alpha) * x + alpha * y for x, y in pairs),
        )

    def at(self, name: str, coefficients: npt.ArrayLike) -> WeightPoint:
        """A point by its coefficients, rounded so that the corners of a plane are found again."""
        rounded = np.round(np.asarray(coefficients, np.float64), _DIGITS) + 0.0  # no −0.0
        return WeightPoint(name, tuple(rounded.tolist()))

    def mixture(self, point: WeightPoint) -> Mixture:
        """The weights of a point."""
        rest = 1.0 - sum(point.coefficients)
        # Equal shares need not sum to exactly 1; a base of 1e-17 would be one more file to read.
        base = 0.0 if abs(rest) < 1e-12 else rest
        return Mixture(self._all, Coefficients.per_model([*point.coefficients, base]))

    def predictions(self, point: WeightPoint, split: str | None = None) -> Predictions:
        """Outputs on `split`, the held-out one if None; from the journal where it knows them.

        Raises:
            EvaluationError: the task's outputs are no logits over classes.
        """
        where = self.split if split is None else split
        mixture = self.mixture(point)
        with self.counting(where):
            found = self.evaluator.predictions(mixture, where)
        self.record(mixture, where)
        if not are_class_logits(found.outputs, found.targets):
            raise EvaluationError(
                f"outputs on {where} have shape {found.outputs.shape}; expected logits (n, classes)"
                " and class indices (n,): what is diagnosed here are classifiers"
            )
        return found

    def measure(self, point: WeightPoint) -> LossAndScore:
        """Loss and score on the held-out split.

        Raises:
            EvaluationError: one of them is not a number; names the point.
        """
        found = self.predictions(point)
        return LossAndScore(self.loss(found, point.name), self.score(found, point.name))

    def loss(self, found: Predictions, name: str = "the model") -> float:
        """Mean cross-entropy of predictions on held-out data, in nats."""
        # A class may be ruled out with −∞, but nothing can be certain or unknown.
        bad = np.isnan(found.outputs) | np.isposinf(found.outputs)
        if bad.any():
            raise EvaluationError(
                f"{int(bad.any(-1).sum())} of {len(bad)} outputs of {name} on {self.split} are not "
                "finite; its weights are at fault: leave this model out"
            )
        return negative_log_likelihood(found.outputs, found.targets.numpy())

    def score(self, found: Predictions, name: str = "the model") -> float:
        """The task's metric of predictions on held-out data."""
        return self.evaluator.score_of(found, self.split, name=name, interval=False).value

    def record(self, mixture: Mixture, split: str) -> None:
        """Remember that `mixture` was scored, and say how far the study is."""
        self.requested.add((mixture.key, split))
        self.progress(len(self.requested), self.planned, "evaluations")

    @contextmanager
    def counting(self, split: str) -> Iterator[None]:
        """Count the evaluations that are made inside, all on `split`."""
        before = self.evaluator.counters.examples
        yield
        examples = self.evaluator.counters.examples - before
        self.evaluated += -(-examples // max(1, self.evaluator.n_examples(split)))
