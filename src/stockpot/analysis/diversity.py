"""How differently two classifiers decide, and which of the two a model between them follows.

All functions take arrays over the same n examples in the same order, and compute in float64.

Reference: Wortsman et al. 2021 (WiSE-FT), arXiv 2109.01903, App. E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot.analysis.calibration import log_softmax

_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Diversity:
    """Two models f and g on n labelled examples; every measure is 0 for two equal models.

    Attributes:
        prediction: share of examples on which exactly one of the two is right.
        kappa: complement of Cohen's kappa of the predicted labels.
        kl: mean KL(p_f ‖ p_g), nats.
        cka: complement of linear CKA of the outputs; None where one model's outputs never vary.
        margin_f: mean of the largest minus the second largest output of f.
        margin_g: the same of g: the model with larger margins dominates what lies between them.
        n: examples.
    """

    prediction: float
    kappa: float
    kl: float
    cka: float | None
    margin_f: float
    margin_g: float
    n: int


@dataclass(frozen=True, slots=True)
class Override:
    """Where two models disagree, whom a third follows; shares of *all* n examples.

    `disagree` = `first` + `second` + `neither`: the third may also give a label of its own.
    """

    disagree: float
    first: float
    second: float
    neither: float
    n: int


def prediction_diversity(correct_f: npt.ArrayLike, correct_g: npt.ArrayLike) -> float:
    """Share of examples (n,) on which exactly one of two models is right.

    >>> prediction_diversity([1, 1, 0, 0], [1, 0, 1, 0])
    0.5

    Raises:
        ValueError: unequal lengths, or no examples.
    """
    f, g = _pair(correct_f, correct_g, 1)
    return float((f.astype(bool) != g.astype(bool)).mean())


def kappa_complement(labels_f: npt.ArrayLike, labels_g: npt.ArrayLike) -> float:
    """1 − κ = (1 − p_o) / (1 − p_e) of predicted labels (n,).

    p_o is the share of equal labels, p_e = Σ_c p_f(c)·p_g(c) that of two models which give labels
    as often as these and independently. 1 means no more agreement than that. Two models that only
    ever give one label, and the same, have 0.

    >>> kappa_complement([0, 0, 1, 1], [0, 1, 0, 1])
    1.0

    Raises:
        ValueError: unequal lengths, or no examples.

    Reference: Cohen, Educational and Psychological Measurement 20 (1960).
    """
    f, g = _pair(labels_f, labels_g, 1)
    _, codes = np.unique(np.concatenate([f, g]), return_inverse=True)
    a, b = codes[: f.size], codes[f.size :]
    n_labels = int(codes.max()) + 1
    counts = [np.bincount(x, minlength=n_labels) for x in (a, b)]
    by_chance = int((counts[0] * counts[1]).sum()) / f.size**2
    observed = float((a == b).mean())
    return 0.0 if by_chance == 1 else (1 - observed) / (1 - by_chance)


def mean_kl(logits_f: npt.ArrayLike, logits_g: npt.ArrayLike) -> float:
    """Mean over examples of KL(p_f ‖ p_g), p = softmax of logits (n, C); in nats.

    It is not symmetric: it is large where g finds improbable what f believes.

    >>> round(mean_kl([[0.0, 0.0]], [[1.0, 1.0]]), 12)
    0.0

    Raises:
        ValueError: unequal shapes, or no examples.
    """
    f, g = (log_softmax(x) for x in _pair(logits_f, logits_g, 2))
    terms = np.zeros_like(f)
    # A class that f rules out adds nothing, whatever g makes of it.
    believed = ~np.isneginf(f)
    terms[believed] = np.exp(f[believed]) * (f[believed] - g[believed])
    return float(terms.sum(axis=1).mean())


def cka_complement(features_f: npt.ArrayLike, features_g: npt.ArrayLike) -> float:
    """1 − linear CKA of two representations (n, d_f) and (n, d_g) of the same examples.

    CKA = ‖S_gᵀ S_f‖_F² / (‖S_fᵀ S_f‖_F · ‖S_gᵀ S_g‖_F) with columns centred. It does not change
    under rotation and scaling of either side.

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> bool(abs(cka_complement(x, -2 * x[:, ::-1])) < 1e-12)
    True

    Raises:
        ValueError: other numbers of examples, or a representation that does not vary.

    Reference: Kornblith et al. 2019, arXiv 1905.00414, eq. 5.
    """
    f, g = (np.asarray(x, np.float64) for x in (features_f, features_g))
    if f.ndim != 2 or g.ndim != 2 or len(f) != len(g) or len(f) == 0:
        raise ValueError(f"expected (n, d) and (n, e) of the same examples, found {f.shape} and "
                         f"{g.shape}")  # fmt: skip
    # Before centring, which leaves rounding errors where nothing varies.
    if not (_varies(f) and _varies(g)):
        raise ValueError("CKA is not defined: a representation is the same for all examples")
    f, g = f - f.mean(axis=0), g - g.mean(axis=0)
    norms = np.linalg.norm(f.T @ f), np.linalg.norm(g.T @ g)
    return float(1 - np.linalg.norm(g.T @ f) ** 2 / (norms[0] * norms[1]))


def mean_margin(logits: npt.ArrayLike) -> float:
    """Mean over examples of the largest minus the second largest of (n, C ≥ 2) logits.

    >>> mean_margin([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    1.0

    Raises:
        ValueError: fewer than two classes, or no examples.
    """
    x = np.asarray(logits, np.float64)
    if x.ndim != 2 or x.shape[1] < 2 or len(x) == 0:
        raise ValueError(f"margins need (n, C ≥ 2) logits, found {x.shape}")
    two = np.partition(x, -2, axis=1)[:, -2:]
    return float((two[:, 1] - two[:, 0]).mean())


def override(
    labels_first: npt.ArrayLike, labels_second: npt.ArrayLike, labels_between: npt.ArrayLike
) -> Override:
    """Whom a model between two follows where they disagree; labels (n,) of each.

    With `first` the zero-shot model, `second` the fine-tuned one and WiSE-FT at α = 0.5 between
    them, this says which of the two dominates on a data set.

    >>> override([0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 2])
    Override(disagree=0.75, first=0.25, second=0.25, neither=0.25, n=4)

    Raises:
        ValueError: unequal lengths, or no examples.
    """
    a, b = _pair(labels_first, labels_second, 1)
    _, c = _pair(labels_first, labels_between, 1)
    differ = a != b
    first, second = differ & (c == a), differ & (c == b)
    neither = differ & ~first & ~second
    return Override(
        disagree=float(differ.mean()),
        first=float(first.mean()),
        second=float(second.mean()),
        neither=float(neither.mean()),
        n=len(a),
    )


def diversity(
    outputs_f: npt.ArrayLike, outputs_g: npt.ArrayLike, targets: npt.ArrayLike
) -> Diversity:
    """Every measure of two classifiers from their logits (n, C ≥ 2) and the labels (n,).

    >>> x = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> diversity(x, x, [0, 1]).prediction
    0.0

    Raises:
        ValueError: shapes that do not fit, or no examples.
    """
    f, g = (np.asarray(x, np.float64) for x in _pair(outputs_f, outputs_g, 2))
    labels, (by_f, by_g) = np.asarray(targets), (f.argmax(1), g.argmax(1))
    if labels.shape != by_f.shape:
        raise ValueError(f"{len(f)} examples need as many labels, found shape {labels.shape}")
    # Classes that are masked out with −∞ are no part of a representation.
    seen_f, seen_g = (x[:, np.isfinite(x).all(axis=0)] for x in (f, g))
    return Diversity(
        prediction=prediction_diversity(by_f == labels, by_g == labels),
        kappa=kappa_complement(by_f, by_g),
        kl=mean_kl(f, g),
        cka=cka_complement(seen_f, seen_g) if _varies(seen_f) and _varies(seen_g) else None,
        margin_f=mean_margin(f),
        margin_g=mean_margin(g),
        n=len(f),
    )


def _pair(
    a: npt.ArrayLike, b: npt.ArrayLike, n_dims: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.ndim != n_dims or len(x) == 0:
        kind = "(n,)" if n_dims == 1 else "(n, C)"
        raise ValueError(
            f"expected two arrays {kind} over the same examples, found {x.shape} and {y.shape}"
        )
    return x, y


def _varies(features: _F64) -> bool:
    return bool((features != features[0]).any())
