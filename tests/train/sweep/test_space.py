from __future__ import annotations

import json
import math

import pytest
from scipy import stats

from stockpot.errors import TrainingError
from stockpot.train.sweep.named import NAMED, parse_space, resolve_space
from stockpot.train.sweep.space import (
    Choice,
    Constant,
    Integer,
    LogUniform,
    Mixture,
    Space,
    Uniform,
)


def test_the_image_law_has_the_stated_marginals() -> None:
    """10,000 draws against METHODS §5: Kolmogorov–Smirnov for ranges, χ² for counts."""
    law = NAMED["image"]()
    draws = [law.draw(i, seed=0) for i in range(10_000)]
    n = len(draws)

    def ks(values, low, high) -> float:
        return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue

    def chi2(values, expected) -> float:
        observed = [sum(v == key for v in values) for key in expected]
        assert sum(observed) == len(values)
        return stats.chisquare(observed, [p * len(values) for p in expected.values()]).pvalue

    pvalues = {
        "lr": ks([-math.log10(d["lr"]) for d in draws], 4, 6),
        "weight_decay": ks([-math.log10(d["weight_decay"]) for d in draws], 0.2, 4.2),
        "epochs": chi2([d["epochs"] for d in draws], dict.fromkeys(range(4, 17), 1 / 13)),
    }
    for name, high in (("label_smoothing", 0.25), ("mixup", 0.9)):
        positive = [d[name] for d in draws if d[name] > 0]
        pvalues[f"{name} = 0"] = stats.binomtest(n - len(positive), n, 0.5).pvalue
        pvalues[name] = ks(positive, 0, high)
    # m = 0 or n = 0 inside the augmented two thirds is no augmentation either, as in the release.
    third = {(m, k): (1 / 3 if (m, k) == (0, 0) else 0) + 2 / 3 / 63
             for m in range(21) for k in range(3)}  # fmt: skip
    pvalues["augmentation"] = chi2([(d["randaugment_m"], d["randaugment_n"]) for d in draws], third)
    assert min(pvalues.values()) > 0.001, pvalues
    constants = {"optimizer": "adamw", "schedule": "cosine", "warmup_steps": 500, "clip_norm": 1.0}
    assert all({name: d[name] for name in constants} == constants for d in draws[:50])


def test_runs_can_be_added_without_changing_those_before() -> None:
    law = NAMED["image"]()
    twelve = [law.draw(i, seed=3) for i in range(12)]
    assert [law.draw(i, seed=3) for i in range(72)][:12] == twelve
    assert [law.draw(i, seed=4) for i in range(12)] != twelve


def test_the_grid_has_twelve_runs_and_no_thirteenth() -> None:
    grid = NAMED["align"]()
    points = [json.dumps(grid.draw(i, seed=0)) for i in range(12)]
    assert grid.n_points == 12 == len(set(points))
    with pytest.raises(TrainingError, match="at most 12 runs"):
        grid.draw(12, seed=0)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_space_survives_json_and_fits_the_loop(name: str) -> None:
    from stockpot.train.config import TrainConfig

    law = NAMED[name]()
    again = parse_space(json.loads(json.dumps(law.as_data())))
    for index in range(12):
        values = again.draw(index, seed=1)
        assert values == law.draw(index, seed=1)
        TrainConfig.from_mapping(values)


def test_scaling_multiplies_bounds_and_keeps_integers_positive() -> None:
    law = NAMED["image"]().scaled({"lr": 100, "epochs": 0.1, "warmup_steps": 0.02})
    assert law.entries["lr"].high == pytest.approx(1e-2)
    assert law.entries["lr"].low == pytest.approx(1e-4)
    assert law.entries["epochs"] == Integer(1, 2)
    assert law.entries["warmup_steps"] == Constant(10)
    grid = NAMED["align"]().scaled({"lr": 10})
    assert grid.draw(0, seed=0)["lr"] == pytest.approx(1e-5)


def test_unknown_names_cannot_be_scaled() -> None:
    with pytest.raises(TrainingError, match="no 'lrr' to scale; it has lr,"):
        NAMED["text"]().scaled({"lrr": 2})


def test_a_space_is_read_from_yaml(tmp_path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        """
lr: {log_uniform: [1e-4, 1e-2]}
epochs: {int: [2, 3]}
batch_size: {choice: [8, 16]}
mixup: {mixture: [{weight: 1, value: 0}, {weight: 3, uniform: [0.1, 0.9]}]}
movement:
  mixture:
    - {weight: 1, set: {shift_pixels: 0, rotate_degrees: 0}}
    - {weight: 1, set: {shift_pixels: {uniform: [0, 1]}, rotate_degrees: 5}}
optimizer: sgd
"""
    )
    space = resolve_space(file)
    assert space.entries["lr"] == LogUniform(1e-4, 1e-2)
    assert space.entries["mixup"] == Mixture(((1, Constant(0)), (3, Uniform(0.1, 0.9))))
    assert space.entries["batch_size"] == Choice((8, 16))
    drawn = space.draw(0, seed=0)
    assert drawn["optimizer"] == "sgd"
    assert "movement" not in drawn
    assert {"shift_pixels", "rotate_degrees"} <= set(drawn)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "holds none"),
        ({"lr": {"loguniform": [1, 2]}}, "lr: .* is no law"),
        ({"lr": {"uniform": [2, 1]}}, "runs from 2 to 1"),
        ({"lr": {"log_uniform": [0, 1]}}, "expected a positive number"),
        ({"lr": {"uniform": [0, 1], "choice": [1]}}, "expected one law"),
        ({"lr": {"mixture": [{"value": 0}]}}, "needs a weight"),
        ({"grid": {"lr": 3}}, "lists of values"),
        ({"grid": {"lr": []}}, "without values"),
    ],
)
def test_what_is_no_space_is_refused(data, message) -> None:
    with pytest.raises(TrainingError, match=message):
        parse_space(data)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TrainingError, match=r"did you mean 'image'\?"):
        resolve_space("imgae")


def test_grid_values_and_draws_go_together() -> None:
    space = Space({"lr": Uniform(0, 1)}, grid={"epochs": [1, 2]})
    first, second = (space.draw(i, seed=0) for i in range(2))
    assert (first["epochs"], second["epochs"]) == (1, 2)
    assert first["lr"] != second["lr"]
