from __future__ import annotations

import json

import pytest

from stockpot.errors import TrainingError
from stockpot.train.config import TrainConfig


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(lr=0.1, frozen=("a.*",), ema_decays=(0.9, 0.99), swa_start_epoch=0)
    assert TrainConfig.from_mapping(json.loads(json.dumps(config.as_dict()))) == config


def test_one_pattern_may_be_given_as_text() -> None:
    assert TrainConfig(frozen="head.*").frozen == ("head.*",)  # type: ignore[arg-type]


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TrainingError, match=r"'weight_decai' .did you mean 'weight_decay'"):
        TrainConfig.from_mapping({"weight_decai": 1})


def test_every_contradiction_is_listed() -> None:
    with pytest.raises(TrainingError) as caught:
        TrainConfig(
            optimizer="adam", lr=-1, epochs=0, warmup_steps=1, warmup_fraction=0.5,
            ema_decays=(1.0,), swa_start_epoch=5,
        )  # fmt: skip
    message = str(caught.value)
    for part in ("optimizer", "lr is -1", "nothing would be trained", "warmup", "ema", "swa_start"):
        assert part in message


def test_a_run_is_recorded_as_by_versions_that_had_fewer_fields() -> None:
    """Folders and states of earlier versions are recognised by it."""
    added = ("loss", "min_crop", "pull_to_start", "distill_from_start")
    plain = TrainConfig(lr=0.1).as_dict()
    assert not set(added) & set(plain)
    used = TrainConfig(loss="sigmoid", min_crop=0.5, pull_to_start=0.1, distill_from_start=0.3)
    assert set(added) <= set(used.as_dict())
    assert TrainConfig.from_mapping(json.loads(json.dumps(used.as_dict()))) == used


@pytest.mark.parametrize("field", ["pull_to_start", "distill_from_start"])
def test_the_start_of_a_part_is_not_that_of_the_run(field: str) -> None:
    with pytest.raises(TrainingError, match="epochs_before go without"):
        TrainConfig.from_mapping({"epochs": 2, "epochs_before": 3, field: 0.5})
    TrainConfig.from_mapping({"epochs": 2, "epochs_after": 3, field: 0.5})


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_crop", 0), ("min_crop", 1.5), ("pull_to_start", -1), ("distill_from_start", 1.1),
     ("loss", "hinge")],
)  # fmt: skip
def test_values_outside_their_bounds_are_refused(field: str, value: object) -> None:
    with pytest.raises(TrainingError, match=f"{field} is "):
        TrainConfig.from_mapping({field: value})
