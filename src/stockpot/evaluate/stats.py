"""Statistics of scores: 95 % intervals, paired tests, and the optimism of a choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a proportion.

    [B(α/2; s, n−s+1), B(1−α/2; s+1, n−s)], B the quantile of the beta distribution. It covers at
    least `level` for every true proportion, so it is somewhat wide.

    >>> low, high = clopper_pearson(90, 100)
    >>> round(low, 4), round(high, 4)
    (0.8238, 0.951)

    Raises:
        ValueError: `n` is not positive or `successes` is not in 0..n.

    Reference: Clopper and Pearson, Biometrika 26 (1934).
    """
    # The closed form: scipy's binomtest(...).proportion_ci finds the same roots only to 4e-13.
    from scipy.stats import beta

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n and n ≥ 1")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def bootstrap_mean(
    values: npt.ArrayLike, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (n,).

    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> 0.38 < low < 0.42 and 0.58 < high < 0.62
    True
    """
    means = resampled_means(np.asarray(values, np.float64)[None], n_resamples, seed)[0]
    return quantiles(means, level)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    n: int,
    *,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap of any statistic of `n` examples; it is given resampled indices."""
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(n_resamples)])
    return quantiles(values[np.isfinite(values)], level)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean over repetitions, such as sweeps with other seeds.

    >>> low, high = t_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)

    Raises:
        ValueError: fewer than two repetitions, which say nothing about their spread.
    """
    from scipy.stats import t

    k = len(values)
    if k < 2:
        raise ValueError(f"an interval over repetitions needs at least 2, found {k}")
    array = np.asarray(values, np.float64)
    half = float(t.ppf((1 + level) / 2, k - 1) * array.std(ddof=1) / math.sqrt(k))
    return float(array.mean()) - half, float(array.mean()) + half


def shift_average(
    values: Mapping[str, npt.ArrayLike],
    *,
    images: Mapping[str, str] | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Plain mean over shift sets of their mean score, with a bootstrap interval over examples.

    Sets that show the same originals are not independent: those with equal `images[name]` are
    resampled with the same indices, so that an image that is hard everywhere counts as one image.

    Args:
        values: per-example scores (n_s,) of each set.
        images: name of the originals of a set; sets that are absent stand alone.
        n_resamples: bootstrap resamples.
        level: coverage.
        seed: of the resampling.

    Returns:
        value, low, high.

    Raises:
        ValueError: no sets, or sets of the same images with unequal numbers of examples.

    >>> value, low, high = shift_average({"blur": [1.0, 0.0], "noise": [1.0, 1.0]})
    >>> value
    0.75
    """
    if len(values) == 0:
        raise ValueError("an average over shifts needs at least one shift set")
    arrays = {name: np.asarray(v, np.float64) for name, v in values.items()}
    groups: dict[str, list[str]] = {}
    for name in arrays:
        shared = None if images is None else images.get(name)
        groups.setdefault(f"alone {name}" if shared is None else f"images {shared}", []).append(
            name
        )
    total = np.zeros(n_resamples)
    for position, (label, names) in enumerate(groups.items()):
        if len({arrays[name].size for name in names}) > 1:
            sizes = ", ".join(f"{name} {arrays[name].size}" for name in names)
            raise ValueError(f"{label} are shared by sets of unequal size: {sizes}")
        stacked = np.stack([arrays[name] for name in names])
        total += resampled_means(stacked, n_resamples, seed + position).sum(0)
    low, high = quantiles(total / len(arrays), level)
    value = math.fsum(float(a.mean()) for a in arrays.values()) / len(arrays)
    return value, low, high


def resampled_average(
    statistics: Mapping[str, Callable[[npt.NDArray[np.int64]], float]],
    sizes: Mapping[str, int],
    *,
    images: Mapping[str, str] | None = None,
    n_resamples: int = 500,
    seed: int = 0,
) -> Floats:
    """Bootstrap of the mean over sets of any statistic of each: `(n_resamples,)`.

    `shift_average` is that of means, and fast. Sets with equal `images[name]` are resampled with
    the same indices.

    Args:
        statistics: of each set, given indices of its examples.
        sizes: examples of each set.
        images: name of the originals of a set; sets that are absent stand alone.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: sets of the same images have unequal numbers of examples.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros(n_resamples)
    for i in range(n_resamples):
        drawn: dict[str, npt.NDArray[np.int64]] = {}
        for name, statistic in statistics.items():
            originals = f"alone {name}" if images is None else images.get(name, f"alone {name}")
            index = drawn.setdefault(originals, rng.integers(0, sizes[name], sizes[name]))
            if len(index) != sizes[name]:
                raise ValueError(f"{originals} are shared by sets of unequal size")
            found[i] += statistic(index) / len(statistics)
    return found


def resampled_means(rows: Floats, n_resamples: int, seed: int) -> Floats:
    """Means (r, n_resamples) of `rows` (r, n), whose columns are resampled jointly."""
    n = rows.shape[1]
    if n == 0:
        raise ValueError("no examples to resample")
    rng = np.random.default_rng(seed)
    means = np.empty((rows.shape[0], n_resamples))
    # Indices of a few resamples at a time: all of them at once would be n × n_resamples integers.
    step = max(1, (1 << 20) // n)
    for start in range(0, n_resamples, step):
        index = rng.integers(0, n, (min(step, n_resamples - start), n))
        means[:, start : start + step] = rows[:, index].mean(-1)
    return means


def quantiles(values: Floats, level: float) -> tuple[float, float]:
    """The two quantiles that enclose `level` of `values`."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Exact two-sided McNemar p-value of two models that are right (1) or wrong (0), each `(n,)`.

    Only examples where exactly one is right count: with b of them on one side and c on the other,
    p = min(1, 2·P[Binomial(b+c, ½) ≤ min(b, c)]).

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0])
    0.03125

    Raises:
        ValueError: unequal lengths, or values other than 0 and 1.

    Reference: McNemar, Psychometrika 12 (1947).
    """
    from scipy.stats import binomtest

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"McNemar compares equal numbers of examples, found {x.shape}, {y.shape}")
    if not np.isin(x, (0, 1)).all() or not np.isin(y, (0, 1)).all():
        raise ValueError("McNemar compares right (1) and wrong (0); other values were found")
    only_a, only_b = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    if only_a == only_b:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def paired_permutation(
    a: npt.ArrayLike, b: npt.ArrayLike, *, n_permutations: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of mean(a − b) = 0 under random sign flips of per-example differences.

    p = (1 + #{|Σ ±d| ≥ |Σ d|}) / (1 + n_permutations). Examples are flipped, not whole data sets:
    with seven sets p could not fall below 0.016.

    >>> paired_permutation([0.1, 0.2], [0.1, 0.2])
    1.0
    """
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    # The same sum in another order differs in the last bit; ties must count as ties.
    observed = abs(d.sum()) * (1 - 1e-12)
    extreme, step = 0, max(1, (1 << 22) // d.size)
    for start in range(0, n_permutations, step):
        rows = min(step, n_permutations - start)
        signs = rng.integers(0, 2, (rows, d.size), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ d) >= observed).sum())
    return (1 + extreme) / (1 + n_permutations)


@dataclass(frozen=True, slots=True)
class Optimism:
    """Mean of chosen-on score minus left-out score over resamples, with a 95 % range.

    Positive means that choosing flatters, whichever direction of the metric is better.
    """

    value: float
    low: float
    high: float
    n_candidates: int


def selection_optimism(
    candidates: npt.ArrayLike,
    *,
    higher_is_better: bool = True,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Optimism:
    """Bootstrap of choosing the best of several models by their mean score.

    Examples are resampled; the model that is best on the resample is scored on the resample and on
    the examples that it left out (about 37 %), and the difference is averaged.

    Args:
        candidates: per-example scores (m, n) of m fully scored models.
        higher_is_better: direction of the score.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no candidates, or fewer than two examples.

    >>> rng = np.random.default_rng(0)
    >>> equally_good = rng.random((30, 200)) < 0.8
    >>> selection_optimism(equally_good).value > 0.02
    True
    """
    rows = np.asarray(candidates, np.float64)
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise ValueError(f"scores have shape {rows.shape}; expected (models ≥ 1, examples ≥ 2)")
    sign = 1.0 if higher_is_better else -1.0
    m, n = rows.shape
    rng = np.random.default_rng(seed)
    differences: list[float] = []
    # Some resamples at a time: a product of matrices, and not all counts in memory at once.
    step = max(1, (1 << 18) // n)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)])
        left_out = (counts == 0).astype(np.float64)
        n_left = left_out.sum(1)
        inside = counts.astype(np.float64) @ rows.T / n
        best = np.argmax(sign * inside, axis=1)
        outside = np.einsum("bn,bn->b", left_out, rows[best]) / np.maximum(n_left, 1)
        found = sign * (inside[np.arange(size), best] - outside)
        differences += found[n_left > 0].tolist()
    low, high = np.quantile(differences, [0.025, 0.975])
    mean = math.fsum(differences) / len(differences)
    return Optimism(mean, float(low), float(high), m)
