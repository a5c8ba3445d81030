from __future__ import annotations

import pytest

from stockpot.errors import TrainingError
from stockpot.train.config import TrainConfig
from stockpot.train.schedule import (
    SCHEDULES,
    adaptive_rate,
    learning_rate,
    retrain_config,
    retrain_lengths,
)


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


ORIGINAL = TrainConfig(lr=0.4, epochs=20, schedule="cosine", warmup_steps=7, weight_decay=0.01)
PER_EPOCH = 10


def retraining_rates(
    schedule: str, original: TrainConfig = ORIGINAL, epochs: int = 5, **pruned: float
):
    config = retrain_config(schedule, original, epochs=epochs, **pruned)
    total = epochs * PER_EPOCH
    return [learning_rate(config, step, total, PER_EPOCH) for step in range(total)]


def original_rates() -> list[float]:
    return [learning_rate(ORIGINAL, step, 200, PER_EPOCH) for step in range(200)]


def test_fine_tuning_is_constant_at_the_lowest_rate() -> None:
    found = retraining_rates("ft")
    assert set(found) == {found[0]}
    assert 0 < found[0] < 1e-4
    assert found[0] <= min(r for r in original_rates()[7:])


def test_rewinding_replays_the_end_of_the_original_run() -> None:
    assert retraining_rates("lrw") == original_rates()[-50:]


def test_rewinding_for_longer_than_the_run_was_replays_all_of_it() -> None:
    config = retrain_config("lrw", ORIGINAL, epochs=30)
    assert config.epochs_before == 0


def test_the_compressed_schedule_has_the_shape_of_the_original_after_its_warm_up() -> None:
    found = retraining_rates("slr", TrainConfig(lr=0.4, epochs=20, final_lr_fraction=0.5))
    assert max(found) == pytest.approx(0.4)
    assert found[-1] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("schedule", ["clr", "llr"])
def test_restarts_begin_at_the_largest_rate_and_end_at_zero(schedule: str) -> None:
    found = retraining_rates(schedule, TrainConfig(lr=0.4, epochs=20, final_lr_fraction=0.5))
    assert found[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert found[5:] == sorted(found[5:], reverse=True)
    assert found[-1] < 0.02
    middle = found[5 + 22]
    assert middle == pytest.approx(0.2 if schedule == "clr" else 0.4 * 23 / 45, rel=0.05)


def test_the_adaptive_restart_begins_where_the_formula_says() -> None:
    found = retraining_rates("allr", change=0.3, rate=0.36)
    assert max(found) == pytest.approx(0.4 * 0.3 / 0.6)
    assert found[5:] == sorted(found[5:], reverse=True)


@pytest.mark.parametrize(
    ("change", "rate", "expected"),
    [(0.9, 0.25, 1.0), (0.001, 0.25, 0.25), (0.3, 0.25, 0.6), (0.0, 0.0, 0.25)],
)
def test_the_adaptive_rate_is_clipped_on_both_sides(change, rate, expected) -> None:
    assert adaptive_rate(1.0, change=change, rate=rate, share=0.25) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_but_the_learning_rate_is_the_original_runs(schedule: str) -> None:
    config = retrain_config(schedule, ORIGINAL, epochs=5, change=0.1, rate=0.5)
    assert (config.optimizer, config.weight_decay) == ("adamw", 0.01)
    assert config.epochs == 5


def test_unknown_schedules_and_no_epochs_are_refused() -> None:
    with pytest.raises(TrainingError, match="expected one of ft, lrw"):
        retrain_config("sgdr", ORIGINAL, epochs=5)
    with pytest.raises(TrainingError, match="expected at least 1"):
        retrain_config("llr", ORIGINAL, epochs=0)


def test_a_run_in_two_parts_has_one_schedule() -> None:
    first = TrainConfig(lr=1.0, epochs=2, epochs_after=3, warmup_fraction=0.2)
    second = TrainConfig(lr=1.0, epochs=3, epochs_before=2, warmup_fraction=0.2)
    whole = TrainConfig(lr=1.0, epochs=5, warmup_fraction=0.2)
    found = [learning_rate(first, s, 20, 10) for s in range(20)]
    found += [learning_rate(second, s, 30, 10) for s in range(30)]
    assert found == [learning_rate(whole, s, 50, 10) for s in range(50)]


def test_parts_do_not_go_with_phases_of_their_own() -> None:
    with pytest.raises(TrainingError, match="epochs_before and epochs_after"):
        TrainConfig(epochs=3, epochs_before=1, swa_start_epoch=1)


@pytest.mark.parametrize(("epochs", "m", "enough"), [(1, 3, 2), (1, 4, 4), (2, 5, 4), (3, 7, 5)])
def test_retrainings_of_equal_length_are_refused_with_the_fewest_epochs_that_keep_them_apart(
    epochs: int, m: int, enough: int
) -> None:
    with pytest.raises(TrainingError, match=rf"give at least epochs={enough} \("):
        retrain_lengths(epochs, m)
    assert len(set(retrain_lengths(enough, m))) == m
    with pytest.raises(TrainingError, match="some of them alike"):
        retrain_lengths(enough - 1, m)
