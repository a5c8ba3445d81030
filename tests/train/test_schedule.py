from __future__ import annotations

import pytest

from stockpot.train.config import TrainConfig
from stockpot.train.schedule import learning_rate


def rates(config: TrainConfig, total: int, per_epoch: int) -> list[float]:
    return [learning_rate(config, step, total, per_epoch) for step in range(total)]


def test_cosine_rises_to_lr_and_falls_to_zero() -> None:
    found = rates(TrainConfig(lr=2.0, warmup_steps=4), 104, 104)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[54] == pytest.approx(1.0)
    assert found == [*found[:4], *sorted(found[4:], reverse=True)]
    assert 0 < found[-1] < 1e-3


def test_a_floor_is_kept() -> None:
    assert rates(TrainConfig(lr=1.0, final_lr_fraction=0.1), 1000, 1000)[-1] >= 0.1


def test_probing_is_constant_and_the_schedule_follows_it() -> None:
    config = TrainConfig(lr=1.0, epochs=1, probe_epochs=1, probe_lr=9.0, head=("h",))
    assert rates(config, 4, 2) == [9.0, 9.0, 1.0, pytest.approx(0.5)]


def test_swa_cycles_fall_from_lr_to_the_lowest() -> None:
    config = TrainConfig(lr=1.0, epochs=5, swa_start_epoch=1, swa_lr=0.2, swa_cycle_epochs=2)
    assert rates(config, 10, 2)[2:] == pytest.approx([0.8, 0.6, 0.4, 0.2] * 2)


def test_a_fraction_of_warmup_is_of_the_main_phase() -> None:
    config = TrainConfig(lr=1.0, warmup_fraction=0.5, schedule="constant")
    assert rates(config, 4, 4) == [0.5, 1.0, 1.0, 1.0]
