"""What a sweep is asked for, for Python callers and commands alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from stockpot._options import option
from stockpot._types import StrPath
from stockpot.train.sweep.space import Space

TrainFunction: TypeAlias = Callable[[Mapping[str, Any]], None]
"""A user's training: gets the hyper-parameters and `out`, `seed`, `base`, `index`; writes `out`."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How many runs there shall be, and what their hyper-parameters are drawn from.

    Attributes:
        n_runs: how many there shall be, those already done included.
        space: a `Space`, its data, a name (`"small"`, `"image"`, `"vit"`, `"text"`, `"align"`) or
            a file.
        seed: of the space's draws; run i trains with seed 1000·seed + i unless the space has
            `seed`.
        train: instead of the library's loop, a function or a command such as
            `"python train.py --lr {lr} --out {out}"`, which may also name `{seed}`, `{index}` and
            `{base}`.
        sampler: `"random"` draws from the space's law; the others are Optuna's.
        study: keep the trials in `optuna.log` also for `"random"` (needs the extra `sweep`).
        format: of the checkpoints; `"folder"` is a model folder like that of the base.
        device: `"cpu"`, `"cuda"`; None for the best one.
        retry_failed: make failed runs again.
    """

    n_runs: int = option(
        12, flags=("--runs",), minimum=1, help="How many there shall be, done ones included."
    )
    space: Space | Mapping[str, Any] | StrPath = option(
        "small", parse=str, help="small, image, vit, text, align, or a .yaml or .json file."
    )
    seed: int = option(0, help="Of the draws and of the runs.")
    train: TrainFunction | str | None = option(
        None,
        parse=str,
        metavar="CMD",
        help='Your own program: "python t.py --lr {lr} -o {out}".',
    )
    sampler: Literal["random", "tpe", "qmc", "gp"] = option(
        "random", help="random draws from the space's law; others are Optuna's."
    )
    study: bool = option(False, help="Keep trials in RUNS/optuna.log for its dashboard.")
    format: Literal["safetensors", "pt", "folder"] = option(
        "safetensors", help="Of the checkpoints; folder: like a transformers base."
    )
    device: str | None = option(None, help="cpu, cuda, …; default: the best there is.")
    retry_failed: bool = option(False, help="Make failed runs again.")


TWELVE_RUNS = SweepOptions()
"""Twelve runs of the space for small networks."""
