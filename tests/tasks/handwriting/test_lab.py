"""The ingredients of the example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stockpot.errors import WorkerError
from stockpot.tasks.handwriting.lab import FULL, QUICK, WIDE
from stockpot.train.config import TrainConfig
from stockpot.train.sweep.records import RunRecord
from stockpot.train.sweep.run import SweepResult

DRAWN = [WIDE.space().draw(index, seed=1) for index in range(4000)]


def p_uniform(values: list[float], low: float, high: float) -> float:
    return float(stats.kstest(values, "uniform", args=(low, high - low)).pvalue)


def test_the_wide_sweep_follows_the_image_law() -> None:
    low, high = WIDE.lr_exponents
    assert p_uniform([-np.log10(values["lr"]) for values in DRAWN], low, high) > 1e-3
    assert p_uniform([-np.log10(values["weight_decay"]) for values in DRAWN], 0.2, 4.2) > 1e-3
    for field, top, share in (
        ("label_smoothing", 0.25, 1 / 2),
        ("mixup", 0.9, 1 / 2),
        ("shift_pixels", 1, 2 / 3),
        ("rotate_degrees", 20, 2 / 3),
    ):
        used = [values[field] for values in DRAWN if values[field] > 0]
        assert stats.binomtest(len(used), len(DRAWN), share).pvalue > 1e-3, field
        assert p_uniform(used, 0, top) > 1e-3, field
    epochs = np.bincount([values["epochs"] for values in DRAWN])[WIDE.epochs[0] :]
    assert stats.chisquare(epochs).pvalue > 1e-3
    assert len(epochs) == WIDE.epochs[1] - WIDE.epochs[0] + 1


def test_the_runs_of_the_demo_differ_in_rate_decay_epochs_and_seed_alone() -> None:
    drawn = [FULL.space().draw(index, seed=1) for index in range(1000)]
    low, high = FULL.lr_exponents
    assert p_uniform([-np.log10(values["lr"]) for values in drawn], low, high) > 1e-3
    free = ("lr", "weight_decay", "epochs")
    fixed = {tuple((k, v) for k, v in values.items() if k not in free) for values in drawn}
    assert len(fixed) == 1
    assert {"label_smoothing", "mixup"}.isdisjoint(drawn[0])


def test_every_draw_is_a_configuration_of_the_loop() -> None:
    for values in DRAWN[:20]:
        assert TrainConfig.from_mapping(values).batch_size == FULL.batch_size


def test_the_quick_lab_differs_in_size_only() -> None:
    assert QUICK.lr_exponents == FULL.lr_exponents
    assert QUICK.n_train == FULL.n_train
    assert QUICK.n_runs < FULL.n_runs
    assert replace(QUICK, n_base=FULL.n_base, n_runs=FULL.n_runs) != FULL


def test_failed_runs_are_raised_with_their_reasons() -> None:
    made: dict[str, Any] = {"path": "p", "hyperparameters": {}, "seed": 0}
    error = {"type": "ValueError", "message": "too hot", "traceback": ""}
    runs = (
        RunRecord(index=0, name="run-00", status="done", **made),
        RunRecord(index=1, name="run-01", status="failed", error=error, **made),
    )
    SweepResult("folder", "base", runs[:1]).raise_failures()
    with pytest.raises(WorkerError, match="run-01: ValueError: too hot") as caught:
        SweepResult("folder", "base", runs).raise_failures()
    assert caught.value.jobs == ("run-01",)
