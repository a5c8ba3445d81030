"""Every two ingredients: angle, what averaging them gains, and what theory says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot._types import JSON
from stockpot.analysis.barrier import barrier
from stockpot.analysis.diversity import Diversity, diversity
from stockpot.analysis.geometry import angle
from stockpot.analysis.soup_vs_ensemble import SoupMinusEnsemble, soup_minus_ensemble
from stockpot.analysis.space import WeightSpace
from stockpot.evaluate.stats import Floats, quantiles

STEP = 0.25
ALPHAS = (0.25, 0.5, 0.75)
"""Where soup and ensemble are compared; with the ends they are also the points of the barrier, and
the central differences of width `STEP`: three evaluations a pair serve everything."""


@dataclass(frozen=True)
class PairStudy:
    """Two ingredients and the soup of the two, on held-out data.

    Attributes:
        a: path of the first.
        b: path of the second.
        i: position of the first.
        j: position of the second.
        degrees: angle between their moves from the base; None when one of them did not move.
        advantage: score of the midpoint less the mean of the two scores, positive when averaging
            helps, whichever direction of the metric is better.
        advantage_loss: mean of the two losses less the loss of the midpoint, in nats.
        barrier: in nats, over five points.
        diversity: how differently the two decide.
        gaps: soup minus ensemble at each of `ALPHAS`.
        differs: names of the hyper-parameters that differ; None when they are not known.
    """

    a: str
    b: str
    i: int
    j: int
    degrees: float | None
    advantage: float
    advantage_loss: float
    barrier: float
    diversity: Diversity
    gaps: tuple[SoupMinusEnsemble, ...]
    differs: tuple[str, ...] | None = None

    @property
    def where(self) -> dict[str, JSON]:
        """The two paths, as every table begins."""
        return {"a": self.a, "b": self.b}

    def gaps_json(self) -> list[JSON]:
        """One row for each α."""
        return [{**self.where, **asdict(gap)} for gap in self.gaps]


def sample_pairs(n: int, most: int, *, seed: int = 0) -> list[tuple[int, int]]:
    """All pairs of n ingredients, or `most` of them at random, in order.

    >>> sample_pairs(3, 10), len(sample_pairs(12, 30))
    ([(0, 1), (0, 2), (1, 2)], 30)
    """
    every = list(combinations(range(n), 2))
    if len(every) <= most:
        return every
    chosen = np.random.default_rng(seed).choice(len(every), most, replace=False)
    return [every[k] for k in sorted(chosen.tolist())]


def study_pair(
    space: WeightSpace,
    i: int,
    j: int,
    *,
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> PairStudy:
    """Score three points between two ingredients and measure everything about the pair."""
    a, b = space.ingredient(i), space.ingredient(j)
    grid = (0.0, *ALPHAS, 1.0)
    points = [space.between(a, b, alpha) for alpha in grid]
    found = [space.predictions(point) for point in points]
    losses = [space.loss(p, point.name) for p, point in zip(found, points, strict=True)]
    scores = [space.score(found[k], points[k].name) for k in (0, 2, 4)]
    targets = found[0].targets.numpy()
    outputs = [p.outputs for p in found]
    quality = space.evaluator.metric.quality
    by_alpha = dict(zip(grid, outputs, strict=True))
    gaps = tuple(
        soup_minus_ensemble(
            alpha,
            ends=(outputs[0], outputs[-1]),
            path=[by_alpha[alpha + d] for d in (-STEP, 0.0, STEP)],
            step=STEP,
            targets=targets,
        )
        for alpha in ALPHAS
    )
    return PairStudy(
        a=a.name,
        b=b.name,
        i=i,
        j=j,
        degrees=angle(space.geometry.gram, a.coefficients, b.coefficients),
        advantage=quality(scores[1] - (scores[0] + scores[2]) / 2),
        advantage_loss=(losses[0] + losses[-1]) / 2 - losses[2],
        barrier=barrier(grid, losses).height,
        diversity=diversity(outputs[0], outputs[-1], targets),
        gaps=gaps,
        differs=differences(hyperparameters, a.name, b.name),
    )


def differences(
    hyperparameters: Mapping[str, Mapping[str, Any]] | None, a: str, b: str
) -> tuple[str, ...] | None:
    """Names of the hyper-parameters in which two runs differ; None when one is not known.

    >>> differences({"a": {"lr": 1e-3, "seed": 0}, "b": {"lr": 1e-3, "seed": 1}}, "a", "b")
    ('seed',)
    """
    if hyperparameters is None or a not in hyperparameters or b not in hyperparameters:
        return None
    one, other = hyperparameters[a], hyperparameters[b]
    names = list(dict.fromkeys([*one, *other]))
    return tuple(name for name in names if one.get(name) != other.get(name))


@dataclass(frozen=True, slots=True)
class PairCorrelation:
    """Pearson's r over pairs of runs and its 95 % interval by a bootstrap over runs.

    `value` is None when one of the quantities does not vary; `low` and `high` are None then and
    with fewer than four runs, which say too little about their spread.
    """

    value: float | None
    low: float | None
    high: float | None
    n_pairs: int
    n_runs: int


def pair_correlation(
    pairs: Sequence[tuple[int, int]],
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairCorrelation:
    """Correlation of two quantities over pairs of runs, with an interval over *runs*.

    Pairs that share a run are not independent: resampling pairs would give an interval that is far
    too narrow. Runs are resampled instead; a pair counts as often as the product of the counts of
    its two runs, and pairs of a run with itself do not exist.

    >>> pairs = [(0, 1), (0, 2), (1, 2)]
    >>> pair_correlation(pairs, [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).value
    1.0

    Args:
        pairs: the two runs of each, as numbers; the same pair may occur several times.
        x: one quantity (p,).
        y: the other (p,).

    Raises:
        ValueError: unequal lengths.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not len(pairs) == len(a) == len(b):
        raise ValueError(f"{len(pairs)} pairs, {len(a)} x and {len(b)} y; expected equal numbers")
    runs = sorted({run for pair in pairs for run in pair})
    position = {run: i for i, run in enumerate(runs)}
    one = np.array([position[i] for i, _ in pairs], np.int64)
    other = np.array([position[j] for _, j in pairs], np.int64)
    value = _weighted(a, b, np.ones(len(a)))
    if value is None or len(runs) < 4:
        return PairCorrelation(value, None, None, len(pairs), len(runs))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_resamples):
        counts = np.bincount(rng.integers(0, len(runs), len(runs)), minlength=len(runs))
        r = _weighted(a, b, (counts[one] * counts[other]).astype(np.float64))
        if r is not None:
            found.append(r)
    low, high = quantiles(np.array(found), level)
    return PairCorrelation(value, low, high, len(pairs), len(runs))


def _weighted(x: Floats, y: Floats, w: Floats) -> float | None:
    """Pearson's r with weights; None where it is not defined."""
    if int((w > 0).sum()) < 3:
        return None
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    norm = float(np.sqrt((w * x * x).sum() * (w * y * y).sum()))
    if norm <= 1e-300:
        return None
    return float(np.clip((w * x * y).sum() / norm, -1.0, 1.0))


def advantage_correlation(
    pairs: Sequence[PairStudy], *, of_loss: bool = False, seed: int = 0
) -> PairCorrelation:
    """Angle against interpolation advantage, interval by a bootstrap over runs.

    The paper finds them positively correlated (Wortsman et al. 2022, arXiv 2203.05482, figure 3).
    """
    known = [pair for pair in pairs if pair.degrees is not None]
    return pair_correlation(
        [(pair.i, pair.j) for pair in known],
        [pair.degrees for pair in known],  # type: ignore[arg-type]  # None was left out
        [pair.advantage_loss if of_loss else pair.advantage for pair in known],
        seed=seed,
    )


def approximation_correlation(pairs: Sequence[PairStudy], *, seed: int = 0) -> PairCorrelation:
    """Soup minus ensemble against its approximation, over all pairs and α."""
    rows = [(pair, gap) for pair in pairs for gap in pair.gaps]
    return pair_correlation(
        [(pair.i, pair.j) for pair, _ in rows],
        [gap.approximation for _, gap in rows],
        [gap.measured for _, gap in rows],
        seed=seed,
    )
