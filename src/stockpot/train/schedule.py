"""Learning rate as a pure function of the step, and the schedules of retraining after pruning."""

from __future__ import annotations

import math
from dataclasses import replace

from stockpot.errors import TrainingError
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


SCHEDULES = ("ft", "lrw", "slr", "clr", "llr", "allr")
"""Names of the schedules, in the order in which they were published."""

NEEDS_ORIGINAL = ("slr", "lrw", "allr")
"""Those that need to know how long the original run was, and its learning rate."""

_WARMUP = 0.1


def retrain_config(
    schedule: str,
    original: TrainConfig,
    *,
    epochs: int,
    change: float = 0.0,
    rate: float = 0.0,
) -> TrainConfig:
    """How a pruned model is retrained for `epochs` epochs.

    Everything but the learning rate is as in the original run. T is that run's length, lr_max its
    largest learning rate.

    - `ft`: constant, the lowest learning rate that the original run really used.
    - `lrw`: the last `epochs` epochs of the original schedule once more (at most all of it).
    - `slr`: the original schedule in `epochs` epochs.
    - `clr`: cosine from lr_max to 0.
    - `llr`: linear from lr_max to 0.
    - `allr`: linear to 0 from `adaptive_rate`.

    All but `ft` and `lrw` begin with a tenth of warm-up.

    Args:
        schedule: one of `SCHEDULES`.
        original: of the run that made the dense model.
        epochs: T_rt, of retraining.
        change: ‖W − Wᵖ‖/‖W‖ of this phase's pruning, for `allr`.
        rate: p, the share of the remaining weights that this phase prunes, for `allr`.

    Raises:
        TrainingError: there is no such schedule, or no epoch.

    >>> original = TrainConfig(lr=0.1, epochs=20)
    >>> retrain_config("lrw", original, epochs=5).epochs_before
    15

    References: Han et al. 2015, arXiv 1506.02626 (FT); Renda et al. 2020, arXiv 2003.02389 (LRW);
    Le & Hua 2021, arXiv 2105.03193 (SLR); Zimmer et al. 2021, arXiv 2111.00843 (CLR, LLR, ALLR).
    """
    if schedule not in SCHEDULES:
        raise TrainingError(f"schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if epochs < 1:
        raise TrainingError(f"{epochs} epochs of retraining, expected at least 1")
    config = replace(
        original, epochs=epochs, max_steps=None, probe_epochs=0, swa_start_epoch=None, swa_lr=None,
        swa_cycle_epochs=0, ema_decays=(), epochs_before=0, epochs_after=0, score_every=epochs,
        keep="last",
    )  # fmt: skip
    if schedule == "lrw":
        return replace(config, epochs_before=max(0, original.epochs - epochs))
    if schedule == "ft":
        return _constant(config, _lowest(original))
    warm = replace(config, warmup_steps=0, warmup_fraction=_WARMUP)
    if schedule == "slr":
        return warm
    if schedule == "clr":
        return replace(warm, schedule="cosine", final_lr_fraction=0.0)
    start = original.lr
    if schedule == "allr":
        start = adaptive_rate(
            original.lr, change=change, rate=rate, share=min(epochs / original.epochs, 1.0)
        )
    return replace(warm, schedule="linear", final_lr_fraction=0.0, lr=start)


def adaptive_rate(lr_max: float, *, change: float, rate: float, share: float) -> float:
    """The learning rate from which ALLR falls.

    η = clip(lr_max · (‖W − Wᵖ‖/‖W‖)/√p, min(T_rt/T, 1)·lr_max, lr_max)

    Args:
        lr_max: largest learning rate of the original run.
        change: ‖W − Wᵖ‖/‖W‖, what pruning took from the prunable weights, in 0..1.
        rate: p, the share of the remaining weights that was pruned; with p = 0 nothing was.
        share: min(T_rt/T, 1).

    >>> adaptive_rate(0.1, change=0.3, rate=0.25, share=0.1)
    0.06

    Reference: Zimmer et al. 2021, arXiv 2111.00843, §3.2.
    """
    wanted = lr_max * change / rate**0.5 if rate > 0 else 0.0
    return min(max(wanted, share * lr_max), lr_max)


def _constant(config: TrainConfig, lr: float) -> TrainConfig:
    return replace(config, lr=lr, schedule="constant", warmup_steps=0, warmup_fraction=0.0)


def _lowest(original: TrainConfig) -> float:
    """The learning rate of the last of a hundred steps of each epoch: a schedule may end at 0."""
    total = 100 * original.epochs
    return learning_rate(replace(original, max_steps=None), total - 1, total, 100)


def retrain_lengths(epochs: int, m: int) -> list[int]:
    """Whole epochs of `m` retrainings, evenly from a half to one and a half times `epochs`.

    >>> retrain_lengths(4, 3), retrain_lengths(4, 1)
    ([2, 4, 6], [4])

    Raises:
        TrainingError: two of them would be as long, and so the same model twice.
    """
    found = _lengths(epochs, m)
    if len(set(found)) < m:
        enough = next(e for e in range(epochs + 1, 4 * m + epochs) if len(set(_lengths(e, m))) == m)
        shown = ", ".join(map(str, found))
        raise TrainingError(
            f"{m} retrainings of about {epochs} epochs would last {shown} epochs, some of them "
            f"alike: give at least epochs={enough} (--epochs), or vary something else"
        )
    return found


def _lengths(epochs: int, m: int) -> list[int]:
    if m == 1:
        return [epochs]
    return [max(1, round(epochs * (0.5 + i / (m - 1)))) for i in range(m)]
