"""The ingredients of the example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from stockpot.tasks.handwriting.lab import FULL, QUICK, draw_runs, run_names

LAW = draw_runs(replace(FULL, n_runs=4000), seed=1)


def p_uniform(values: list[float], low: float, high: float) -> float:
    return float(stats.kstest(values, "uniform", args=(low, high - low)).pvalue)


def test_hyperparameters_follow_the_image_law() -> None:
    low, high = FULL.lr_exponents
    assert p_uniform([-np.log10(c.lr) for c in LAW], low, high) > 1e-3
    assert p_uniform([-np.log10(c.weight_decay) for c in LAW], 0.2, 4.2) > 1e-3
    for field, top, share in (
        ("label_smoothing", 0.25, 1 / 2),
        ("mixup", 0.9, 1 / 2),
        ("shift_pixels", 1, 2 / 3),
        ("rotate_degrees", 20, 2 / 3),
    ):
        used = [getattr(c, field) for c in LAW if getattr(c, field) > 0]
        assert stats.binomtest(len(used), len(LAW), share).pvalue > 1e-3, field
        assert p_uniform(used, 0, top) > 1e-3, field
    epochs = np.bincount([c.epochs for c in LAW], minlength=17)[FULL.epochs[0] :]
    assert stats.chisquare(epochs).pvalue > 1e-3
    assert len(epochs) == FULL.epochs[1] - FULL.epochs[0] + 1


def test_the_seed_fixes_the_runs_and_longer_sweeps_begin_alike() -> None:
    assert draw_runs(FULL, seed=3) == draw_runs(FULL, seed=3)
    assert draw_runs(FULL, seed=3) != draw_runs(FULL, seed=4)
    assert draw_runs(replace(FULL, n_runs=20), seed=3)[:12] == draw_runs(FULL, seed=3)


def test_the_quick_lab_differs_in_size_only() -> None:
    assert QUICK.lr_exponents == FULL.lr_exponents
    assert QUICK.n_train == FULL.n_train
    assert QUICK.n_runs < FULL.n_runs


def test_runs_are_named_in_order() -> None:
    assert run_names(FULL)[:2] == ("run-00", "run-01")
    assert sorted(run_names(FULL)) == list(run_names(FULL))
