"""A finished soup: what was decided and why, and the weights that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import __version__
from stockpot._types import JSON, StrPath
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.sources import is_statistic
from stockpot.mixing import Mixture
from stockpot.recipes.base import Kitchen, Recipe, Step, recipe_to_json
from stockpot.recipes.card import model_card
from stockpot.recipes.record import (
    mask_to_json,
    read_record,
    rebuild,
    score_from_json,
    tensor_digest,
    verify,
)

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.task import Score
    from stockpot.mixing import Saved


@dataclass(frozen=True)
class RecordedRecipe:
    """The recipe of a soup that was loaded: its name and options as they were recorded."""

    name: str
    options: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Soup:
    """Recipe, mixture, and everything that was measured on the way.

    Nothing is computed or written until `save`; the mixture can be scored or read as it is.

    Attributes:
        recipe: what decided.
        mixture: what it decided: coefficients over all ingredients, zeros included.
        selected: paths of the ingredients with a coefficient other than 0, in order of acceptance.
        coefficients: path → coefficient, or group → {path: coefficient}.
        steps: every decision, in order.
        scores: by split; empty without a task.
        chosen_on: the split that decided; None when nothing was chosen.
        examples_evaluated: forward passes that choosing among soups took (recalibration apart).
        examples_plain: those of a loop that scores every candidate in full.
        examples_calibration: those of recalibrating BatchNorm for each candidate, counted apart.
        extra: what only some recipes have, such as WiSE-FT's `curve`.
        notes: what a person should know, one sentence each.
    """

    recipe: Recipe | RecordedRecipe
    mixture: Mixture
    selected: tuple[str, ...]
    coefficients: Mapping[str, JSON]
    steps: tuple[Step, ...] = ()
    scores: Mapping[str, Score | None] = field(default_factory=dict)
    chosen_on: str | None = None
    examples_evaluated: int = 0
    examples_plain: int = 0
    examples_calibration: int = 0
    extra: Mapping[str, JSON] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def higher_is_better(self) -> bool:
        """Whether larger scores are better; True without any."""
        return all(s.higher_is_better for s in self.scores.values() if s is not None)

    @property
    def scored_as(self) -> Mixture:
        """The mixture as it was scored: without the statistics that scoring made for it."""
        if self.mixture.overrides is None:
            return self.mixture
        given = self.mixture.overrides
        decided = {n: given.read(n) for n in given if not is_statistic(n)}
        return self.mixture.with_overrides(decided)

    def to_json(self) -> dict[str, JSON]:
        """Everything that was decided and measured, with the keys that scripts may rely on."""
        return {
            "recipe": _recipe_json(self.recipe),
            "selected": list(self.selected),
            "coefficients": dict(self.coefficients),
            "steps": [step.to_json() for step in self.steps],
            "scores": scores_to_json(self.scores),
            "direction": "max" if self.higher_is_better else "min",
            "chosen_on": self.chosen_on,
            "examples_evaluated": self.examples_evaluated,
            "examples_plain": self.examples_plain,
            "examples_calibration": self.examples_calibration,
            "notes": list(self.notes),
            **self.extra,
        }

    def record(self, saved: Saved | None = None) -> dict[str, JSON]:
        """What rebuilds and verifies the file: it is written beside it."""
        given = self.mixture.ingredients
        shares = self.mixture.coefficients
        by_model = shares.vectors.get("") if shares.by == "model" else None
        # Those that saving made on its way are not made again by reading everything once more.
        made = {} if saved is None else dict(zip(given, saved.fingerprints, strict=True))
        ingredients: list[JSON] = [
            {
                "path": _absolute(checkpoint.path),
                "fingerprint": made.get(checkpoint) or checkpoint.fingerprint,
                "coefficient": None if by_model is None else by_model[i],
            }
            for i, checkpoint in enumerate(given)
        ]
        base: JSON = None
        if given.base is not None:
            fingerprint = made.get(given.base) or given.base.fingerprint
            base = {"path": _absolute(given.base.path), "fingerprint": fingerprint}
        overrides = self.mixture.overrides
        return {
            "stockpot": __version__,
            "ingredients": ingredients,
            "base": base,
            "mixing": shares.to_json(),
            **({} if self.mixture.rule.is_linear else {"rule": self.mixture.rule.to_json()}),
            "common": len(given.averaged) < len(given.specs),
            "buffers": self.mixture.buffers.to_json(),
            "dtype": None if self.mixture.dtype is None else self.mixture.dtype.value,
            "mask": None if self.mixture.mask is None else mask_to_json(self.mixture.mask),
            "overrides": {}
            if overrides is None
            else {name: tensor_digest(overrides, name) for name in overrides},
            "output": None if saved is None else saved.fingerprint,
            "soup": self.to_json(),
        }

    def save(self, path: StrPath, **options: Any) -> Saved:
        """Write the checkpoint and its record beside it; a kill leaves the old pair or the new.

        A folder also gets a model card, `README.md`.

        Args:
            path: `.safetensors`, `.pt`, or a folder.
            options: those of `Mixture.save` (`force`, `threads`, `max_memory`, `progress`, …).

        Raises:
            OutputExistsError: `path` exists and `force` is not given.
        """
        card = partial(model_card, name=Path(path).absolute().name)
        return self.mixture.save(path, record=self.record, card=card, **options)

    @classmethod
    def load(cls, path: StrPath, *, search: Iterable[StrPath] = ()) -> Soup:
        """The soup whose checkpoint is at `path`, from the record beside it.

        Ingredients that moved are found by fingerprint among `search`: files, or folders that are
        walked. BatchNorm statistics that were made from data come from the checkpoint itself.

        Raises:
            VerificationError: there is no record, or ingredients are not found; all are listed.
        """
        record = read_record(path)
        mixture = rebuild(record, path, search=search)
        told = record["soup"]
        options = dict(told["recipe"])
        return cls(
            recipe=RecordedRecipe(options.pop("name"), options),
            mixture=mixture,
            selected=tuple(told["selected"]),
            coefficients=told["coefficients"],
            steps=tuple(_step(step) for step in told["steps"]),
            scores={
                split: score_from_json(split, value, higher_is_better=told["direction"] == "max")
                for split, value in told["scores"].items()
            },
            chosen_on=told["chosen_on"],
            examples_evaluated=told["examples_evaluated"],
            examples_plain=told["examples_plain"],
            examples_calibration=told.get("examples_calibration", 0),
            extra={k: v for k, v in told.items() if k not in _TOLD},
            notes=tuple(told["notes"]),
        )

    @staticmethod
    def verify(path: StrPath, *, search: Iterable[StrPath] = ()) -> list[str]:
        """Differences between the checkpoint at `path` and what its record says; none is good.

        The linear part is computed again and compared bit for bit, its zeros among them; masks and
        overrides by their hash.

        Raises:
            VerificationError: there is no record, or ingredients are not found.
        """
        return verify(path, search=search)


_TOLD = {
    "recipe", "selected", "coefficients", "steps", "scores", "direction", "chosen_on",
    "examples_evaluated", "examples_plain", "examples_calibration", "notes",
}  # fmt: skip


def serve(
    recipe: Recipe,
    kitchen: Kitchen,
    mixture: Mixture,
    *,
    selected: Iterable[int],
    tried: Sequence[tuple[Step, Mixture]] = (),
    start: tuple[Step, Mixture] | None = None,
    examples: int | None = None,
    examples_plain: int = 0,
    extra: Mapping[str, JSON] | None = None,
    notes: Iterable[str] = (),
    scores: Mapping[str, Score | None] | None = None,
) -> Soup:
    """The soup of a decided mixture: scored, with BatchNorm statistics of its own.

    `tried` are the decisions with what each of them scored; `start` is what was scored before them.
    `examples` is for recipes whose forward passes are not those of their steps.
    """
    found = kitchen.scores(mixture) if scores is None else dict(scores)
    final, batchnorm = mixture, dict[str, JSON]()
    if kitchen.evaluator is not None and kitchen.evaluator.recalibrates(mixture):
        decided = mixture.overrides
        own = {} if decided is None else {n: decided.read(n) for n in decided}
        final = mixture.with_overrides({**own, **batchnorm_overrides(kitchen, mixture)})
        batchnorm = {"batchnorm": _before_and_after(kitchen, mixture)}
    scored = [*([] if start is None else [start]), *tried]
    told = [] if kitchen.evaluator is None else kitchen.evaluator.notes
    return Soup(
        recipe=recipe,
        mixture=final,
        selected=tuple(kitchen.paths[i] for i in selected),
        coefficients=_by_path(kitchen.paths, mixture),
        steps=tuple(step for step, _ in tried),
        scores=found,
        chosen_on=kitchen.choose_on if tried or examples_plain else None,
        examples_evaluated=(
            sum(step.examples for step, _ in scored) if examples is None else examples
        ),
        examples_plain=examples_plain,
        examples_calibration=_calibration(kitchen, scored),
        extra={**(extra or {}), **batchnorm, **_roles(kitchen)},
        notes=(*kitchen.ingredients.notes, *_sparse_notes(kitchen), *told, *notes),
    )


def _calibration(kitchen: Kitchen, scored: Sequence[tuple[Step, Mixture]]) -> int:
    evaluator = kitchen.evaluator
    if evaluator is None:
        return 0
    passes = sum(step.examples > 0 and evaluator.recalibrates(m) for step, m in scored)
    return passes * evaluator.calibration_size() if passes else 0


def batchnorm_overrides(kitchen: Kitchen, mixture: Mixture) -> dict[str, torch.Tensor]:
    """The recalibrated statistics with which `mixture` was scored, by tensor name."""
    evaluator = kitchen.evaluator
    if evaluator is None:
        return {}
    return {n: v for n, v in evaluator.statistics(mixture).items() if n in mixture}


def _roles(kitchen: Kitchen) -> dict[str, JSON]:
    """What each split is for, in the order of the task: pages tell shifts from tests by it."""
    if kitchen.evaluator is None:
        return {}
    splits = kitchen.evaluator.task.splits
    return {"roles": {name: str(split.role) for name, split in splits.items()}}


def _sparse_notes(kitchen: Kitchen) -> list[str]:
    return [] if kitchen.sparsity is None else [kitchen.sparsity.note]


def _by_path(paths: list[str], mixture: Mixture) -> dict[str, JSON]:
    """`{path: c}`, or `{group: {path: c}}` where groups have coefficients of their own."""
    found: dict[str, JSON] = {
        group: {path: c for path, c in zip(paths, vector, strict=True) if c != 0}
        for group, vector in mixture.coefficients.vectors.items()
    }
    whole = found.get("")
    return whole if isinstance(whole, dict) else found


def _before_and_after(kitchen: Kitchen, mixture: Mixture) -> JSON:
    """Scores with averaged and with recalibrated statistics, on the split that decides.

    Where nothing was chosen it is the task's first split.
    """
    evaluator = kitchen.evaluator
    if evaluator is None:
        return None
    split = next(iter(evaluator.task.splits)) if kitchen.choose_on is None else kitchen.choose_on
    before = evaluator.averaging().score(mixture, split)
    after = evaluator.score(mixture, split)
    return {
        "split": split,
        "before": scores_to_json({split: before})[split],
        "after": scores_to_json({split: after})[split],
        "calibration_examples": evaluator.calibration_size(),
    }


def _recipe_json(recipe: Recipe | RecordedRecipe) -> dict[str, JSON]:
    if isinstance(recipe, RecordedRecipe):
        return {"name": recipe.name, **recipe.options}
    return recipe_to_json(recipe)


def _absolute(path: str) -> str:
    return path if path.startswith("<") else str(Path(path).absolute())


def _step(told: Mapping[str, Any]) -> Step:
    return Step(**{k: v for k, v in told.items() if k != "within_noise"})
