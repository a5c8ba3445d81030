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
