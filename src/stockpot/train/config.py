"""How one fine-tuning run goes: a flat, frozen record, so that every field can be swept."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stockpot.errors import TrainingError

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("fp32", "bf16", "fp16"),
    "keep": ("last", "best"),
    "loss": ("task", "sigmoid"),
}
_TUPLES = ("frozen", "head", "no_decay", "ema_decays")
_LATER = ("loss", "min_crop", "pull_to_start", "distill_from_start")
"""Fields that configurations recorded by earlier versions lack."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a fine-tuning run, besides task, start and seed.

    Names in `frozen`, `head` and `no_decay` are shell patterns over parameter names (`"head.*"`).

    Attributes:
        optimizer: `"adamw"` or `"sgd"`.
        lr: highest learning rate.
        weight_decay: decoupled for AdamW; of all parameters but those in `no_decay`.
        betas: of AdamW.
        momentum: of SGD.
        epochs: passes over the training set; each drops its last incomplete batch.
        epochs_before: the schedule is that of a run with so many more epochs before this one's.
        epochs_after: the same after them; a run in two parts has one schedule.
        max_steps: ends earlier, schedule included; None for all epochs.
        batch_size: examples per step over all devices; None for the task's.
        schedule: what follows warm-up, down to `final_lr_fraction * lr`.
        warmup_steps: steps of linear warm-up.
        warmup_fraction: the same as a fraction of all steps; only one of the two may be given.
        clip_norm: largest gradient norm; None for no clipping.
        loss: `"task"` for the task's own, or `"sigmoid"`: of logits (N, C) and class indices, the
            binary cross-entropy of each class against the others, summed over classes.
        label_smoothing: weight in [0, 1) of the uniform distribution in the target; logits only.
        pull_to_start: λ of λ/2·‖θ − θ₀‖² over the trained parameters, added to the loss (L2-SP).
        distill_from_start: weight in [0, 1] of the divergence from the start's own predictions, in
            place of as much of the loss; logits only.
        mixup: α of Beta(α, α); 0 for none.
        cutmix: the same for CutMix; with both, each batch draws one of them.
        randaugment_m: magnitude 0..30 of RandAugment (needs kornia); 0 for none.
        randaugment_n: operations per image; 0 for none.
        min_crop: smallest share of an image's area, in (0, 1], that random crops keep, which are
            stretched to the old size; 1 for no crops.
        shift_pixels: images move by up to this many pixels each way.
        rotate_degrees: images turn by up to this angle each way.
        precision: `"fp32"`, or `"bf16"` or `"fp16"` mixed precision with float32 weights.
        frozen: parameters that keep the start's values.
        head: parameters of the head, for `probe_epochs`.
        probe_epochs: LP-FT: epochs, before all others, in which only `head` is trained.
        probe_lr: constant learning rate of those; None for `lr`.
        ema_decays: an exponential moving average, debiased, is kept for each.
        ema_every: optimiser steps from one EMA update to the next.
        swa_start_epoch: epochs (of the main phase) after which SWA begins; None for no SWA.
        swa_lr: learning rate of the SWA phase; None leaves the schedule as it is.
        swa_cycle_epochs: 0 for constant `swa_lr`, else the length of cycles from `lr` to `swa_lr`.
        keep: whether the checkpoint holds the last weights or those of the best epoch on held-out.
        score_every: epochs from one held-out score to the next; the last epoch is always scored.

    Raises:
        TrainingError: fields contradict each other; lists all contradictions.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    epochs: int = 1
    epochs_before: int = 0
    epochs_after: int = 0
    max_steps: int | None = None
    batch_size: int | None = None
    schedule: str = "cosine"
    warmup_steps: int = 0
    warmup_fraction: float = 0.0
    final_lr_fraction: float = 0.0
    clip_norm: float | None = 1.0
    loss: str = "task"
    label_smoothing: float = 0.0
    pull_to_start: float = 0.0
    distill_from_start: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment_m: int = 0
    randaugment_n: int = 0
    min_crop: float = 1.0
    shift_pixels: float = 0.0
    rotate_degrees: float = 0.0
    precision: str = "fp32"
    frozen: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = ()
    probe_epochs: int = 0
    probe_lr: float | None = None
    ema_decays: tuple[float, ...] = ()
    ema_every: int = 1
    swa_start_epoch: int | None = None
    swa_lr: float | None = None
    swa_cycle_epochs: int = 0
    keep: str = "last"
    score_every: int = 1

    def __post_init__(self) -> None:
        for name in _TUPLES:
            value = getattr(self, name)
            if isinstance(value, (str, float, int)):
                value = (value,)
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "betas", tuple(self.betas))
        if problems := _problems(self):
            raise TrainingError(
                "this run cannot be made:\n" + "\n".join(f"  {p}" for p in problems)
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration with these fields, the others at their defaults.

        >>> TrainConfig.from_mapping({"lr": 0.1, "epochs": 3}).epochs
        3

        Raises:
            TrainingError: a key is no field; names the nearest ones.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = [_suggest(key, fields) for key in values if key not in fields]
        if unknown:
            raise TrainingError("TrainConfig has no " + "; no ".join(unknown))
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """All fields, with lists for tuples: what JSON and YAML hold.

        Those that came later only where they are used: the same run is recorded alike by every
        version, so that a folder of an earlier one is recognised and continued.
        """
        unused = {f.name: f.default for f in dataclasses.fields(self) if f.name in _LATER}
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in unused or value != unused[name]
        }

    @property
    def total_epochs(self) -> int:
        """Epochs of both phases, probe included."""
        return self.probe_epochs + self.epochs


def _suggest(key: str, fields: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(fields), n=1)
    return f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _problems(c: TrainConfig) -> list[str]:
    problems = [
        f"{name} is {getattr(c, name)!r}, expected one of {', '.join(allowed)}"
        for name, allowed in _CHOICES.items()
        if getattr(c, name) not in allowed
    ]
    bounds = {
        "lr": (0, None), "weight_decay": (0, None), "epochs": (0, None), "warmup_steps": (0, None),
        "epochs_before": (0, None), "epochs_after": (0, None),
        "warmup_fraction": (0, 1), "final_lr_fraction": (0, 1), "label_smoothing": (0, 1),
        "mixup": (0, None), "cutmix": (0, None), "randaugment_m": (0, 30),
        "pull_to_start": (0, None), "distill_from_start": (0, 1), "min_crop": (0, 1),
        "randaugment_n": (0, None), "shift_pixels": (0, None), "rotate_degrees": (0, 180),
        "probe_epochs": (0, None), "swa_cycle_epochs": (0, None), "momentum": (0, 1),
        "clip_norm": (0, None), "swa_lr": (0, None), "probe_lr": (0, None),
        "swa_start_epoch": (0, None), "max_steps": (1, None), "batch_size": (1, None),
        "ema_every": (1, None), "score_every": (1, None),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        value = getattr(c, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            limit = f"at least {low}" if high is None else f"between {low} and {high}"
            problems.append(f"{name} is {value}, expected {limit}")
    swa_from = c.swa_start_epoch
    is_part = c.epochs_before > 0 or c.epochs_after > 0
    whole_only = c.probe_epochs > 0 or swa_from is not None or c.max_steps is not None
    rules = (
        (c.total_epochs < 1, "epochs and probe_epochs are both 0: nothing would be trained"),
        (c.warmup_steps > 0 and c.warmup_fraction > 0, "give warmup_steps or warmup_fraction"),
        (c.probe_epochs > 0 and not c.head, "probe_epochs needs head: patterns of its parameters"),
        (
            is_part and whole_only,
            "epochs_before and epochs_after go without probe_epochs, swa_start_epoch, max_steps",
        ),
        (
            c.epochs_before > 0 and (c.pull_to_start > 0 or c.distill_from_start > 0),
            "pull_to_start and distill_from_start are to the start of the whole run: with "
            "epochs_before go without",
        ),
        (c.label_smoothing == 1, "label_smoothing is 1, which leaves no label"),
        (c.min_crop == 0, "min_crop is 0, which leaves no image"),
        (swa_from is not None and swa_from >= c.epochs, "swa_start_epoch leaves no epoch"),
        (c.swa_cycle_epochs > 0 and c.swa_lr is None, "swa_cycle_epochs needs swa_lr, its lowest"),
        (any(not 0 <= d < 1 for d in c.ema_decays), "ema_decays must lie in [0, 1)"),
        (len(set(c.ema_decays)) < len(c.ema_decays), "ema_decays names one decay twice"),
    )
    return problems + [text for broken, text in rules if broken]
