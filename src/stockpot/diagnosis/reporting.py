"""Scores, differences and calibration of the models of a study, and what each contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stockpot._types import JSON
from stockpot.analysis.calibration import Calibration, calibration, fit_beta
from stockpot.analysis.diversity import Override, override
from stockpot.analysis.space import Place, Space
from stockpot.evaluate.compare import Predictions, difference
from stockpot.evaluate.task import Role
from stockpot.recipes.ensembles import mean_logits


@dataclass(frozen=True)
class CalibrationRow:
    """One model before and after temperature scaling, β fitted on held-out data."""

    name: str
    kind: str
    before: Calibration
    after: Calibration

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "name": self.name,
            "kind": self.kind,
            "before": _calibration_json(self.before),
            "after": _calibration_json(self.after),
        }


def reporting_splits(space: Space) -> tuple[list[str], list[str]]:
    """Names of the test splits and of the shift splits of the task."""
    splits = space.evaluator.task.splits
    return (
        [name for name, split in splits.items() if split.role is Role.TEST],
        [name for name, split in splits.items() if split.role is Role.SHIFT],
    )


def ensemble_predictions(space: Space, members: Sequence[Place], split: str) -> Predictions:
    """The mean of the logits of `members` on `split`."""
    return mean_logits(
        space.evaluator, [space.predictions(place, split) for place in members], split
    )


def calibrate(name: str, kind: str, held_out: Predictions, reported: Predictions) -> CalibrationRow:
    """Fit β on held-out data; measure before and after on data that report."""
    beta = fit_beta(held_out.outputs, held_out.targets.numpy())
    outputs, targets = reported.outputs, reported.targets.numpy()
    return CalibrationRow(
        name, kind, calibration(outputs, targets), calibration(outputs, targets, beta=beta)
    )


@dataclass(frozen=True, slots=True)
class Contribution:
    """Held-out score of a soup less its score without one ingredient.

    Positive where a higher score is better means that the ingredient helps. The 95 % interval is
    None for metrics that are no means.
    """

    path: str
    soup: str
    difference: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {**asdict(self)}


def leave_one_out(space: Space, name: str, members: Sequence[int]) -> list[Contribution]:
    """What each of the `members` contributes to the uniform soup of them all; at least two."""
    whole = space.predictions(space.mean(name, members))
    score = space.score(whole, name)
    found = []
    for i in members:
        rest = space.mean(f"{name} without {space.given[i].path}", [j for j in members if j != i])
        without = space.predictions(rest)
        gap = difference(whole, without, space.split, seed=space.evaluator.seed)
        found.append(
            Contribution(
                space.given[i].path,
                name,
                score - space.score(without, rest.name),
                None if gap is None else gap.low,
                None if gap is None else gap.high,
            )
        )
    return found


def overrides(base: Predictions, tuned: Predictions, middle: Predictions) -> Override:
    """Whom the model halfway between base and tuned follows where the two disagree."""
    labels = [found.outputs.argmax(1) for found in (base, tuned, middle)]
    return override(*labels)


def _calibration_json(found: Calibration) -> dict[str, JSON]:
    told: dict[str, JSON] = {**asdict(found), "bins": [asdict(part) for part in found.bins]}
    return told
