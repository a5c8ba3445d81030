"""What every recipe is, and what it works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.mixing import Coefficients, Mixture, SharedMask, shared_mask
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.tensors.spec import DType

if TYPE_CHECKING:
    from stockpot.evaluate.task import Score, Task
    from stockpot.recipes.soup import Soup


NOISE_LEVEL = 0.05
"""A gain whose p-value is above this is called within noise."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of a recipe.

    Attributes:
        candidate: path of the ingredient that was tried.
        accepted: whether it was kept (for pruned soups: removed).
        score: of the soup with it, on the split that decides; None when it was rejected before all
            examples were seen.
        score_at_most: what that score could still have been then (at least, where lower is better);
            None when `score` is known.
        examples: forward passes that the decision took.
        p_value: of no difference to the soup before it; None without a full score.
        reason: why it was not tried, or nothing.
    """

    candidate: str
    accepted: bool
    score: float | None = None
    score_at_most: float | None = None
    examples: int = 0
    p_value: float | None = None
    reason: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether p > 0.05; None without a p-value."""
        return None if self.p_value is None else self.p_value > NOISE_LEVEL

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on, and the reason."""
        return {
            "candidate": self.candidate,
            "score": self.score,
            "score_at_most": self.score_at_most,
            "accepted": self.accepted,
            "examples": self.examples,
            "p_value": self.p_value,
            "within_noise": self.within_noise,
            "reason": self.reason,
        }


@runtime_checkable
class Recipe(Protocol):
    """How coefficients are decided: a frozen dataclass whose fields are its options.

    A recipe passes the suite of `stockpot.testing.recipes`.
    """

    @property
    def name(self) -> str:
        """As commands and tables name it, such as `"greedy"`."""
        ...

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
        """Decide the coefficients.

        Args:
            ingredients: `Ingredients`, or what they are made of.
            task: what to choose and report on; not needed by recipes that do not choose.
            base: the common initialisation, for ingredients that are not `Ingredients` yet.
            evaluator: scores; by default one that forgets, made from the task.
            choose_on: the held-out split that decides, where there are several.
            on_mismatch: see `Ingredients`.
            dtype: of the output; candidates are scored in it.
            report: score the soup on all splits; False scores only what choosing needs.
        """
        ...


def recipe_to_json(recipe: Any) -> dict[str, JSON]:
    """Name and options of a recipe, as its record keeps them."""
    options = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {"name": recipe.name, **{name: _plain(value) for name, value in options.items()}}


def _plain(value: Any) -> Any:
    """An option as JSON: tuples as lists, records by what they hold."""
    if isinstance(value, tuple):
        return list(value)
    return value.as_dict() if hasattr(value, "as_dict") else value


@dataclass(frozen=True)
class Kitchen:
    """What a recipe works with: aligned ingredients and, when there is a task, an evaluator.

    `choose_on` is the split that decides; None without a task. `sparsity` says what averages are
    masked with; None where the ingredients are dense.
    """

    ingredients: Ingredients
    evaluator: Evaluator | None
    choose_on: str | None
    dtype: DType | str | None = None
    report: bool = True
    sparsity: SharedMask | None = None

    @property
    def paths(self) -> list[str]:
        """Of the ingredients, as given."""
        return [checkpoint.path for checkpoint in self.ingredients]

    def mixture(self, coefficients: Iterable[float]) -> Mixture:
        """A mixture of the ingredients with one coefficient for each of them."""
        return self.mixed(Coefficients.per_model(list(coefficients)))

    def mixed(self, coefficients: Coefficients) -> Mixture:
        """A mixture of the ingredients, as sparse as they are."""
        mixture = Mixture(self.ingredients, coefficients, dtype=self.dtype)
        mask = None if self.sparsity is None else self.sparsity.mask_of(mixture)
        return mixture if mask is None else mixture.with_mask(mask)

    def uniform(self, members: Iterable[int]) -> Mixture:
        """The plain mean of the ingredients at `members`; the others have coefficient 0."""
        chosen = set(members)
        share = 1.0 / len(chosen)
        return self.mixture(share if i in chosen else 0.0 for i in range(len(self.ingredients)))

    def scoring(self, recipe: str) -> tuple[Evaluator, str]:
        """The evaluator and the split that decides.

        Raises:
            RecipeError: there is no task.
        """
        if self.evaluator is None or self.choose_on is None:
            raise RecipeError(
                f"{recipe} chooses by score and needs a task: give task=… (--task), or use "
                "Uniform, which needs none"
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


def prepare(
    ingredients: Ingredients | Iterable[Source],
    task: Task | None,
    *,
    base: Source | None = None,
    evaluator: Evaluator | None = None,
    choose_on: str | None = None,
    on_mismatch: OnMismatch = "error",
    dtype: DType | str | None = None,
    report: bool = True,
    chooses: bool = True,
    decide_on: str | None = None,
) -> Kitchen:
    """Everything that `Recipe.cook` was given, checked; `chooses=False` needs no held-out split.

    `decide_on` is a second held-out split, for recipes that fit on one and decide on another.

    Raises:
        MismatchError: the ingredients cannot be averaged; a MaskMismatchError, if they are pruned
            with different masks.
        SplitRoleError: `choose_on` reports, or it is not clear which split decides.
    """
    aligned = (
        ingredients
        if isinstance(ingredients, Ingredients)
        else Ingredients(ingredients, base=base, on_mismatch=on_mismatch)
    )
    if evaluator is None and task is not None:
        evaluator = Evaluator(task)
    decides = None
    if evaluator is not None and (chooses or choose_on is not None):
        decides = split_to_choose_on(evaluator.task, choose_on, besides=decide_on)
    aligned, sparsity = shared_mask(aligned)
    return Kitchen(aligned, evaluator, decides, dtype, report, sparsity)
