"""Learning rate as a pure function of the step, so that nothing of it needs saving."""

from __future__ import annotations

import math

from stockpot.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of optimiser step `step` (from 0) out of `total`, probe phase included.

    Warm-up rises linearly and reaches `lr` at its last step; then cosine or linear decay reaches
    `final_lr_fraction * lr` after the last step. The SWA phase replaces the schedule when `swa_lr`
    is given: constant, or cycles falling linearly from `lr` to `swa_lr` (Izmailov et al. 2018,
    arXiv 1803.05407, §3.2). With `epochs_before` or `epochs_after` the run is a part of a longer
    one, whose schedule it follows.

    >>> config = TrainConfig(lr=1.0, schedule="linear", warmup_steps=2)
    >>> [round(learning_rate(config, s, 6, 6), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    probe = min(config.probe_epochs * steps_per_epoch, total)
    if step < probe:
        return config.lr if config.probe_lr is None else config.probe_lr
    before, after = config.epochs_before, config.epochs_after
    step = step - probe + before * steps_per_epoch
    total = total - probe + (before + after) * steps_per_epoch
    if config.swa_start_epoch is not None and config.swa_lr is not None:
        into_swa = step - config.swa_start_epoch * steps_per_epoch
        if into_swa >= 0:
            return _swa_rate(config, into_swa, steps_per_epoch)
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, total - warmup)
    fall = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * fall)


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Steps of warm-up out of `total` of the main phase."""
    if config.warmup_fraction > 0:
        return max(1, round(config.warmup_fraction * total))
    return config.warmup_steps


def _swa_rate(config: TrainConfig, into_swa: int, steps_per_epoch: int) -> float:
    assert config.swa_lr is not None
    if config.swa_cycle_epochs == 0:
        return config.swa_lr
    cycle = config.swa_cycle_epochs * steps_per_epoch
    done = (into_swa % cycle + 1) / cycle
    return (1 - done) * config.lr + done * config.swa_lr
