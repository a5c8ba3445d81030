"""Summaries of soups from their JSON: typed, bounded, and naming what does not fit."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from stockpot._records import parse
from stockpot._types import JSON
from stockpot.errors import StockpotError
from stockpot.evaluate.batchnorm import policy_named
from stockpot.evaluate.compare import SHIFT_AVERAGE, Difference
from stockpot.evaluate.task import Score
from stockpot.recipes.gain import Gain
from stockpot.recipes.result import (
    BatchNormEffect,
    Details,
    RecordedDetails,
    ScoredModel,
    SoupSummary,
    Step,
)

_ORDER = ("held-out", "test", "shift")


@dataclass(frozen=True, slots=True)
class _ScoreJSON:
    """One score as `scores_to_json` writes it."""

    value: float
    n: int
    metric: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class _BatchNormJSON:
    """`BatchNormEffect` as it is written."""

    split: str
    before: _ScoreJSON
    after: _ScoreJSON
    calibration_examples: int
    # Records of 0.1 name none: what they call recalibrated had no augmentation.
    policy: str = "clean"


@dataclass(frozen=True, slots=True)
class _DifferenceJSON:
    """`Difference` as it is written."""

    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class _GainJSON:
    """What of `Gain` is not derived, as it is written."""

    model: str | None
    splits: Mapping[str, _DifferenceJSON]
    is_same: bool = False
    reason: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class _BaselineJSON:
    """A baseline as it is written."""

    scores: Mapping[str, _ScoreJSON | None]
    path: str = ""


@dataclass(frozen=True, slots=True)
class _SoupJSON:
    """The keys of every soup's JSON, with their types."""

    recipe: Mapping[str, Any]
    selected: tuple[str, ...]
    coefficients: Mapping[str, float | Mapping[str, float]]
    steps: tuple[Step, ...]
    scores: Mapping[str, _ScoreJSON | None]
    direction: Literal["max", "min"]
    notes: tuple[str, ...]
    chosen_on: str | None = None
    examples_evaluated: int = 0
    examples_plain: int = 0
    examples_calibration: int = 0
    batchnorm: _BatchNormJSON | None = None
    gain: _GainJSON | None = None
    baselines: Mapping[str, _BaselineJSON] = field(default_factory=dict)
    roles: Mapping[str, Literal["held-out", "test", "shift"]] = field(default_factory=dict)
    not_averaged: tuple[str, ...] = ()
    decided_by: tuple[str, ...] = ()


def read_summary(data: object) -> SoupSummary:
    """The summary whose `to_json` gave `data`.

    Raises:
        StockpotError: something is missing or of another kind; the message names the place.
    """
    found = parse(_SoupJSON, data)
    options = dict(found.recipe)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise StockpotError("recipe.name: expected text")
    # Records are written with sorted keys: the order of the task is lost, that of roles is not.
    roles = dict(sorted(found.roles.items(), key=lambda item: _ORDER.index(item[1])))
    order = {split: place for place, split in enumerate(roles)}
    splits = sorted(found.scores, key=lambda split: order.get(split, len(order)))
    higher = found.direction == "max"
    scores = {split: _score(found.scores[split], split, higher) for split in splits}
    return SoupSummary(
        recipe=name,
        options=options,
        selected=found.selected,
        coefficients=cast("Mapping[str, JSON]", found.coefficients),
        steps=found.steps,
        scores=scores,
        chosen_on=found.chosen_on,
        examples_evaluated=found.examples_evaluated,
        examples_plain=found.examples_plain,
        examples_calibration=found.examples_calibration,
        details=_details_from_json(name, data),
        gain=_gain(found, roles, scores),
        baselines=() if found.gain is None else _baselines(found.baselines, higher),
        batchnorm=None if found.batchnorm is None else _effect(found.batchnorm, higher),
        roles=roles,
        not_averaged=tuple(split for split in found.not_averaged if roles.get(split) == "shift"),
        decided_by=found.decided_by,
        notes=found.notes,
    )


def _gain(
    found: _SoupJSON, roles: Mapping[str, str], scores: Mapping[str, Score | None]
) -> Gain | None:
    if found.gain is None:
        return None
    metric = next((score.metric for score in scores.values() if score is not None), "score")
    against = found.gain.model or ""
    differences = {
        split: Difference(
            value=one.difference,
            low=one.low,
            high=one.high,
            p_value=one.p_value,
            split=split,
            against=against,
        )
        for split, one in found.gain.splits.items()
    }
    order = [split for split in (*roles, SHIFT_AVERAGE) if split in differences]
    shifts = [split for split in order if roles.get(split) == "shift"]
    return Gain(
        model=found.gain.model,
        splits={split: differences[split] for split in order if split not in shifts},
        shifts={split: differences[split] for split in shifts},
        metric=metric,
        higher_is_better=found.direction == "max",
        is_same=found.gain.is_same,
        reason=found.gain.reason,
        advice=found.gain.advice,
    )


def _baselines(
    found: Mapping[str, _BaselineJSON], higher_is_better: bool
) -> tuple[ScoredModel, ...]:
    return tuple(
        ScoredModel(
            name=name,
            path=row.path,
            scores={s: _score(score, s, higher_is_better) for s, score in row.scores.items()},
            role="base" if name == "base" else "run",
        )
        for name, row in found.items()
    )


def _score(found: _ScoreJSON | None, split: str, higher_is_better: bool) -> Score | None:
    if found is None:
        return None
    return Score(
        value=found.value,
        n=found.n,
        low=found.low,
        high=found.high,
        metric=found.metric,
        split=split,
        higher_is_better=higher_is_better,
    )


def _effect(found: _BatchNormJSON, higher_is_better: bool) -> BatchNormEffect:
    before, after = (
        _score(one, found.split, higher_is_better) for one in (found.before, found.after)
    )
    assert before is not None
    assert after is not None
    try:
        policy = policy_named(found.policy)
    except (StockpotError, ValueError) as error:
        raise StockpotError(f"batchnorm.policy: {error}") from error
    return BatchNormEffect(
        policy=policy,
        split=found.split,
        before=before,
        after=after,
        calibration_examples=found.calibration_examples,
    )


def _details_from_json(recipe: str, data: Any) -> Details:
    """The details of a recipe's soup; what their class makes of it is checked field by field."""
    try:
        found = _details_type(recipe).from_json(data)
        return parse(type(found), found)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise StockpotError(f"what {recipe} recorded is damaged: {error!r}") from error


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
