"""A finished soup: what was decided and why, and the weights that follow from it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import __version__
from stockpot._types import JSON, StrPath
from stockpot.evaluate.batchnorm import is_statistic
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.task import Score
from stockpot.mixing import Mixture
from stockpot.recipes.card import model_card
from stockpot.recipes.record import mask_to_json, read_record, rebuild, tensor_digest

if TYPE_CHECKING:
    from stockpot.mixing import Saved


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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        """The step that `to_json` was made from."""
        return cls(**{name: value for name, value in data.items() if name != "within_noise"})


@dataclass(frozen=True, kw_only=True)
class Details:
    """What only one recipe has to say of its soups; this one, the base of the others, nothing.

    A subclass is a frozen dataclass. Its `to_json` gives keys that stand at the top level of the
    soup's JSON, and `from_json` reads them there again.
    """

    def to_json(self) -> dict[str, JSON]:
        """The keys that are merged into the soup's JSON."""
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Details:
        """The details in the JSON of a soup; keys that are none of theirs are ignored."""
        return cls()


@dataclass(frozen=True, kw_only=True)
class RecordedDetails(Details):
    """The details of a soup whose recipe is not one of `RECIPES`, as they were recorded.

    Attributes:
        data: key → value.
    """

    data: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """The keys as they were recorded."""
        return dict(self.data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordedDetails:
        """All keys that are not those of every soup."""
        return cls(data={name: value for name, value in data.items() if name not in _COMMON})


@dataclass(frozen=True, kw_only=True)
class BatchNormEffect:
    """A soup's score with averaged BatchNorm statistics and with recalibrated ones.

    Attributes:
        split: where: the split that decides, else the task's first.
        before: with averaged statistics.
        after: with statistics recomputed from the calibration set, as the soup is saved.
        calibration_examples: of one calibration pass.
    """

    split: str
    before: Score
    after: Score
    calibration_examples: int

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "split": self.split,
            "before": scores_to_json({self.split: self.before})[self.split],
            "after": scores_to_json({self.split: self.after})[self.split],
            "calibration_examples": self.calibration_examples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, higher_is_better: bool) -> BatchNormEffect:
        """The value that `to_json` was made from."""
        split = data["split"]
        before, after = (
            Score(split=split, higher_is_better=higher_is_better, **data[when])
            for when in ("before", "after")
        )
        return cls(
            split=split,
            before=before,
            after=after,
            calibration_examples=data["calibration_examples"],
        )


@dataclass(frozen=True, kw_only=True)
class Soup:
    """Recipe, mixture, and everything that was measured on the way.

    Nothing is computed or written until `save`; the mixture can be scored or read as it is.

    Attributes:
        recipe: name of what decided, such as `"greedy"`.
        options: its options, as they are recorded.
        mixture: what it decided: coefficients over all ingredients, zeros included.
        selected: paths of the ingredients with a coefficient other than 0, in order of acceptance.
        coefficients: path → coefficient, or group → {path: coefficient}.
        steps: every decision, in order.
        scores: by split; empty without a task.
        chosen_on: the split that decided; None when nothing was chosen.
        examples_evaluated: forward passes that choosing among soups took (recalibration apart).
        examples_plain: those of a loop that scores every candidate in full.
        examples_calibration: those of recalibrating BatchNorm for each candidate, counted apart.
        details: what only this recipe has to say.
        batchnorm: what recalibration of BatchNorm did; None where nothing was recalibrated.
        roles: split → `"held-out"`, `"test"` or `"shift"`, in the order of the task.
        notes: what a person should know, one sentence each.
    """

    recipe: str
    options: Mapping[str, JSON] = field(default_factory=dict)
    mixture: Mixture
    selected: tuple[str, ...]
    coefficients: Mapping[str, JSON]
    steps: tuple[Step, ...] = ()
    scores: Mapping[str, Score | None] = field(default_factory=dict)
    chosen_on: str | None = None
    examples_evaluated: int = 0
    examples_plain: int = 0
    examples_calibration: int = 0
    details: Details = field(default_factory=Details)
    batchnorm: BatchNormEffect | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
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
        found: dict[str, JSON] = {
            "recipe": {"name": self.recipe, **self.options},
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
            **self.details.to_json(),
        }
        if self.batchnorm is not None:
            found["batchnorm"] = self.batchnorm.to_json()
        if self.roles:
            found["roles"] = dict(self.roles)
        return found

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
        return cls(mixture=rebuild(record, path, search=search), **recorded_fields(record["soup"]))


_COMMON = {
    "recipe", "selected", "coefficients", "steps", "scores", "direction", "chosen_on",
    "examples_evaluated", "examples_plain", "examples_calibration", "notes", "batchnorm", "roles",
}  # fmt: skip


def recorded_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Soup` but its mixture, from its JSON."""
    options = dict(data["recipe"])
    name = options.pop("name")
    higher = data["direction"] == "max"
    batchnorm = data.get("batchnorm")
    return {
        "recipe": name,
        "options": options,
        "selected": tuple(data["selected"]),
        "coefficients": data["coefficients"],
        "steps": tuple(Step.from_json(step) for step in data["steps"]),
        "scores": scores_from_json(data["scores"], higher_is_better=higher),
        "chosen_on": data["chosen_on"],
        "examples_evaluated": data["examples_evaluated"],
        "examples_plain": data["examples_plain"],
        "examples_calibration": data.get("examples_calibration", 0),
        "details": _details_type(name).from_json(data),
        "batchnorm": None
        if batchnorm is None
        else BatchNormEffect.from_json(batchnorm, higher_is_better=higher),
        "roles": data.get("roles", {}),
        "notes": tuple(data["notes"]),
    }


def scores_from_json(
    data: Mapping[str, Mapping[str, Any] | None], *, higher_is_better: bool
) -> dict[str, Score | None]:
    """Scores by split, as `scores_to_json` wrote them."""
    return {
        split: None
        if score is None
        else Score(split=split, higher_is_better=higher_is_better, **score)
        for split, score in data.items()
    }


def _details_type(recipe: str) -> type[Details]:
    """The class of the details of the recipe of this name.

    Looked up by name, because recipes return soups and so know this module.
    """
    table = importlib.import_module("stockpot.recipes").RECIPES
    return next((one.details_type for one in table if one.name == recipe), RecordedDetails)


def _absolute(path: str) -> str:
    return path if path.startswith("<") else str(Path(path).absolute())
