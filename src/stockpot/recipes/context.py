"""What a recipe works with while it decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stockpot.errors import EvaluationError, RecipeError, SplitRoleError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Score
from stockpot.mixing import Coefficients, Mixture, Rule, SharedMask, shared_mask
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes.result import Step
from stockpot.tensors.spec import DType


@dataclass(eq=False, kw_only=True)
class RecipeContext:
    """What a recipe works with: aligned ingredients and, when there is a task, an evaluator.

    It has state: `chosen_on`, the split that has decided something so far. What a recipe learns
    from the split that decides, it learns through `choosing`, `singles` or `ranking`, which record
    it.

    Attributes:
        ingredients: aligned.
        evaluator: scores; None without a task.
        choose_on: the split that decides where one does; None without a task.
        dtype: of the output; candidates are scored in it.
        report: whether the soup is to be scored on all splits.
        sparsity: what averages are masked with; None where the ingredients are dense.
        is_part: whether the soup is one of those that another recipe chooses among.
        chosen_on: `choose_on` as soon as it has decided something.
    """

    ingredients: Ingredients
    evaluator: Evaluator | None = None
    choose_on: str | None = None
    dtype: DType | str | None = None
    report: bool = True
    sparsity: SharedMask | None = None
    is_part: bool = False
    chosen_on: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.ingredients, self.sparsity = shared_mask(self.ingredients)

    @property
    def paths(self) -> list[str]:
        """Paths of the ingredients, in the order given."""
        return [checkpoint.path for checkpoint in self.ingredients]

    def mixture(self, coefficients: Iterable[float]) -> Mixture:
        """A mixture of the ingredients with one coefficient for each of them."""
        return self.mixed(Coefficients.per_model(list(coefficients)))

    def mixed(self, coefficients: Coefficients, rule: Rule | None = None) -> Mixture:
        """A mixture of the ingredients, by default a linear one, as sparse as they are."""
        mixture = Mixture(self.ingredients, coefficients, rule=rule, dtype=self.dtype)
        mask = None if self.sparsity is None else self.sparsity.mask_of(mixture)
        return mixture if mask is None else mixture.with_mask(mask)

    def like(self, ingredients: Ingredients, coefficients: Iterable[float]) -> Mixture:
        """A mixture of other ingredients, such as these and their base, in the same dtype."""
        shares = Coefficients.per_model(list(coefficients))
        return Mixture(ingredients, shares, dtype=self.dtype)

    def uniform(self, members: Iterable[int]) -> Mixture:
        """The plain mean of the ingredients at `members`; the others have coefficient 0."""
        chosen = set(members)
        share = 1.0 / len(chosen)
        return self.mixture(share if i in chosen else 0.0 for i in range(len(self.ingredients)))

    def choosing(self, purpose: str) -> tuple[Evaluator, str]:
        """The evaluator and the split that decides, which has now chosen.

        Args:
            purpose: what needs them, for the message.

        Raises:
            RecipeError: there is no task.
        """
        evaluator, split = self.scoring(purpose)
        self.chosen_on = split
        return evaluator, split

    def scoring(self, purpose: str) -> tuple[Evaluator, str]:
        """The evaluator and the split that decides, to report on it and to decide nothing.

        Raises:
            RecipeError: there is no task.
        """
        if self.evaluator is None or self.choose_on is None:
            raise RecipeError(
                f"{purpose} chooses by score and needs a task: give task=… or evaluate=… (--task, "
                "--eval), or use Uniform, which needs none"
            )
        return self.evaluator, self.choose_on

    def scores(self, mixture: Mixture) -> dict[str, Score | None]:
        """Scores of `mixture` on what is to be reported; empty without a task."""
        if self.evaluator is None:
            return {}
        splits = None if self.report or self.choose_on is None else [self.choose_on]
        return dict(self.evaluator.scores(mixture, splits))

    def duplicates(self) -> Mapping[int, int]:
        """Positions of ingredients whose content an earlier one has, with that one's position."""
        first: dict[str, int] = {}
        return {
            i: first[checkpoint.fingerprint]
            for i, checkpoint in enumerate(self.ingredients)
            if first.setdefault(checkpoint.fingerprint, i) != i
        }

    def duplicate_notes(self) -> list[str]:
        """A sentence for every ingredient that is left out because another is the same."""
        return [
            f"{self.paths[i]} holds the same weights as {self.paths[j]} and was left out"
            for i, j in self.duplicates().items()
        ]

    def singles(self, purpose: str) -> dict[int, Predictions]:
        """Predictions of every ingredient, duplicates left out, on the split that decides.

        Raises:
            EvaluationError: scores that are not numbers; every ingredient at fault is named.
        """
        evaluator, split = self.choosing(purpose)
        return self._singles(evaluator, split)

    def _singles(self, evaluator: Evaluator, split: str) -> dict[int, Predictions]:
        duplicates = self.duplicates()
        models = {i: self.uniform([i]) for i in range(len(self.ingredients)) if i not in duplicates}
        evaluator.score_ahead(list(models.values()) if evaluator.n_ahead else [], split)
        found = dict[int, Predictions]()
        problems: list[str] = []
        for i, mixture in models.items():
            try:
                found[i] = evaluator.predictions(mixture, split)
                evaluator.score_of(found[i], split, name=self.paths[i], interval=False)
            except EvaluationError as error:
                # Where nothing was scored yet, what scores is at fault rather than a checkpoint.
                if not found:
                    raise
                problems.append(str(error))
        if problems:
            raise EvaluationError("\n".join(problems))
        return found

    def ranking(
        self, purpose: str, predictions: Mapping[int, Predictions] | None = None
    ) -> list[tuple[int, float]]:
        """Positions and values of the ingredients, best first; ties in the order of arguments."""
        evaluator, split = self.choosing(purpose)
        singles = self.singles(purpose) if predictions is None else predictions
        return self._ranked(evaluator, split, singles)

    def _ranked(
        self, evaluator: Evaluator, split: str, singles: Mapping[int, Predictions]
    ) -> list[tuple[int, float]]:
        standings = {
            i: evaluator.standing(found, split, name=self.paths[i]) for i, found in singles.items()
        }
        # The sort is stable, in reverse as well.
        order = sorted(sorted(standings), key=standings.__getitem__, reverse=True)
        quality = evaluator.metric.quality  # is its own inverse
        return [(i, quality(standings[i][0])) for i in order]

    def best_single(self) -> int | None:
        """Position of the ingredient that is best on held-out data, to compare with.

        It decides nothing. None where there is no held-out split, or where several could decide;
        and where every score takes a run of a program that nothing else asked for.
        """
        evaluator = self.evaluator
        if evaluator is None:
            return None
        if len(self.ingredients) == 1:
            return 0
        if self.chosen_on is None and not evaluator.has_outputs:
            return None
        try:
            split = self.choose_on or split_to_choose_on(evaluator.task)
        except SplitRoleError:
            return None
        return self._ranked(evaluator, split, self._singles(evaluator, split))[0][0]

    def calibration_examples(self, tried: Sequence[tuple[Step, Mixture]]) -> int:
        """Examples of recalibrating BatchNorm for each mixture that was scored."""
        evaluator = self.evaluator
        if evaluator is None:
            return 0
        passes = sum(step.examples > 0 and evaluator.recalibrates(m) for step, m in tried)
        return passes * evaluator.calibration_size() if passes else 0
