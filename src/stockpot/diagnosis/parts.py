"""The parts of a diagnosis: models and their scores, calibration, contributions, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from stockpot._figures import Role
from stockpot._types import JSON
from stockpot.analysis.calibration import Calibration, calibration, fit_beta
from stockpot.analysis.geometry import angle
from stockpot.analysis.space import WeightSpace
from stockpot.evaluate.compare import Predictions, difference, scores_to_json
from stockpot.evaluate.task import Score
from stockpot.io.paths import natural_key


@dataclass(frozen=True)
class ModelRow:
    """One model and its scores on every split; `kind` is base, run, soup or ensemble."""

    name: str
    kind: Role
    scores: Mapping[str, Score]
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Kind, members and scores."""
        return {
            "kind": self.kind,
            "members": list(self.members),
            "scores": scores_to_json(self.scores),
        }


@dataclass(frozen=True)
class LayerMap:
    """One layer: relative distances from the base by path, and the angles of all pairs.

    Quantiles of the angles are over pairs, in degrees; None where fewer than two models moved it.
    """

    layer: str
    distances: Mapping[str, float | None]
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True)
class Spending:
    """Evaluations (one set of weights on one split): the limit, the plan, and what was done.

    `made` leaves out what the journal knew.
    """

    budget: int | None
    parts: Mapping[str, int]
    made: int

    @property
    def planned(self) -> int:
        """Most that the plan could have taken."""
        return sum(self.parts.values())


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


def leave_one_out(space: WeightSpace, name: str, members: Sequence[int]) -> list[Contribution]:
    """What each of the `members` contributes to the uniform soup of them all; at least two."""
    whole = space.predictions(space.mean(name, members))
    score = space.score(whole, name)
    found = []
    for i in members:
        rest = space.mean(
            f"{name} without {space.ingredients[i].path}", [j for j in members if j != i]
        )
        without = space.predictions(rest)
        gap = difference(whole, without, space.split, seed=space.evaluator.seed)
        found.append(
            Contribution(
                space.ingredients[i].path,
                name,
                score - space.score(without, rest.name),
                None if gap is None else gap.low,
                None if gap is None else gap.high,
            )
        )
    return found


def layer_maps(space: WeightSpace) -> tuple[LayerMap, ...]:
    """One row for each layer: how far every ingredient moved it, and the angles of all pairs."""
    geometry = space.geometry
    distances = {move.path: move.layers for move in geometry.moves().ingredients}
    units = np.eye(len(geometry.paths))
    maps = []
    for layer in sorted(geometry.layers, key=natural_key):
        gram = geometry.layers[layer]
        found = [angle(gram, a, b) for a, b in combinations(units, 2)]
        known = [value for value in found if value is not None]
        low, median, high = np.quantile(known, [0, 0.5, 1]).tolist() if known else (None,) * 3
        by_path = {path: distances[path][layer] for path in geometry.paths}
        maps.append(LayerMap(layer, by_path, low, median, high))
    return tuple(maps)


def _calibration_json(found: Calibration) -> dict[str, JSON]:
    return {**asdict(found), "bins": [asdict(part) for part in found.bins]}
