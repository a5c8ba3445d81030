"""Spaces by name, and spaces read from files."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stockpot._types import StrPath
from stockpot.errors import TrainingError
from stockpot.train.sweep.space import (
    Choice,
    Constant,
    Distribution,
    Integer,
    LogUniform,
    Mixture,
    Space,
    Uniform,
)


def image_law() -> Space:
    """The random law that fits the 71 configurations of the model-soups release.

    lr 10^−U(4,6); weight decay 10^−U(0.2,4.2); label smoothing 0 with probability ½ else U(0,0.25);
    mixup 0 with probability ½ else U(0,0.9); epochs U{4..16}; no augmentation with probability ⅓
    else RandAugment with m U{0..20} and n U{0..2}; AdamW, 500 warm-up steps, cosine to 0, clip 1.

    Made for CLIP ViT-B/32 on ImageNet: scale `lr`, `epochs` and `warmup_steps` for smaller work.
    Reference: Wortsman et al. 2022, arXiv 2203.05482, Appendix (random search).
    """
    none: dict[str, Distribution] = {"randaugment_m": Constant(0), "randaugment_n": Constant(0)}
    some: dict[str, Distribution] = {
        "randaugment_m": Integer(0, 20),
        "randaugment_n": Integer(0, 2),
    }
    return Space(
        {
            "lr": LogUniform(1e-6, 1e-4),
            "weight_decay": LogUniform(10**-4.2, 10**-0.2),
            "label_smoothing": half_zero(0.25),
            "mixup": half_zero(0.9),
            "epochs": Integer(4, 16),
            "augmentation": Mixture(((1, none), (2, some))),
            "optimizer": Constant("adamw"),
            "schedule": Constant("cosine"),
            "warmup_steps": Constant(500),
            "clip_norm": Constant(1.0),
        }
    )


def align_grid() -> Space:
    """Learning rate × augmentation × mixup, 12 runs, after the paper's sweep of ALIGN.

    The paper names the three axes and the number of runs; the values on them are our own.
    """
    return Space(
        {
            "epochs": Constant(8),
            "schedule": Constant("cosine"),
            "warmup_steps": Constant(500),
            "clip_norm": Constant(1.0),
        },
        grid={
            "lr": [1e-6, 5e-6, 1e-5],
            "augmentation": [
                {"randaugment_m": 0, "randaugment_n": 0},
                {"randaugment_m": 15, "randaugment_n": 2},
            ],
            "mixup": [0.0, 0.5],
        },
    )


def vit_law() -> Space:
    """Learning rate, decay schedule, loss function and least crop, after the sweep of ViT-G/14.

    The paper names the four axes of those 58 runs; the values on them are our own: lr log-uniform
    1e-6…1e-4; decay linear or cosine; softmax or sigmoid loss; crops of at least U(0.05, 1) of the
    area.
    """
    return Space(
        {
            "lr": LogUniform(1e-6, 1e-4),
            "schedule": Choice(("cosine", "linear")),
            "loss": Choice(("task", "sigmoid")),
            "min_crop": Uniform(0.05, 1.0),
            "epochs": Constant(5),
            "warmup_steps": Constant(500),
            "clip_norm": Constant(1.0),
        }
    )


def text_law() -> Space:
    """The GLUE law: lr log-uniform 1e-6…1e-3, batch {8,16,32,64}, epochs {2,3,5}, the seed.

    Wide on purpose: uniform soups of it may collapse where greedy ones do not.
    Reference: Wortsman et al. 2022, arXiv 2203.05482, Appendix (text classification).
    """
    return Space(
        {
            "lr": LogUniform(1e-6, 1e-3),
            "batch_size": Choice((8, 16, 32, 64)),
            "epochs": Choice((2, 3, 5)),
            "schedule": Constant("linear"),
        }
    )


def small_law() -> Space:
    """For networks that train in seconds or minutes, on plain torch: no RandAugment.

    lr log-uniform 3e-4…1e-2; weight decay 10^−U(1,4); label smoothing and mixup as in `image_law`;
    epochs U{8..24}; no movement with probability ⅓ else shifts up to U(0,1) pixel and turns up to
    U(0,15) degrees; a tenth of the steps warm up.
    """
    still: dict[str, Distribution] = {
        "shift_pixels": Constant(0.0),
        "rotate_degrees": Constant(0.0),
    }
    moved: dict[str, Distribution] = {
        "shift_pixels": Uniform(0, 1),
        "rotate_degrees": Uniform(0, 15),
    }
    return Space(
        {
            "lr": LogUniform(3e-4, 1e-2),
            "weight_decay": LogUniform(1e-4, 1e-1),
            "label_smoothing": half_zero(0.25),
            "mixup": half_zero(0.9),
            "epochs": Integer(8, 24),
            "movement": Mixture(((1, still), (2, moved))),
            "warmup_fraction": Constant(0.1),
        }
    )


def half_zero(high: float) -> Mixture:
    """0 with probability ½, else U(0, `high`)."""
    return Mixture(((1, Constant(0.0)), (1, Uniform(0, high))))


NAMED: Mapping[str, Callable[[], Space]] = MappingProxyType(
    {
        "small": small_law,
        "image": image_law,
        "vit": vit_law,
        "text": text_law,
        "align": align_grid,
    }
)
"""Spaces that come with stockpot."""


def resolve_space(space: Space | Mapping[str, Any] | StrPath) -> Space:
    """A space by its name, from a `.yaml` or `.json` file, or from plain data.

    >>> resolve_space("text").entries["epochs"]
    Choice(values=(2, 3, 5))

    Raises:
        TrainingError: nothing is so named, or the data describe no space.
    """
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        return parse_space(space)
    name = str(space)
    if name in NAMED:
        return NAMED[name]()
    if not Path(name).is_file():
        near = difflib.get_close_matches(name, NAMED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"named spaces: {', '.join(NAMED)}"
        raise TrainingError(f"{name!r} is neither a named space nor a file; {hint}")
    from stockpot.io.yaml_files import YamlError, read_yaml

    try:
        return parse_space(read_yaml(name))
    except YamlError as error:
        where = f":{error.line}" if error.line else ""
        raise TrainingError(f"{name}{where}: {error}") from error


def parse_space(data: Any) -> Space:
    """The space that plain data describe, as YAML and JSON hold them.

    >>> space = parse_space({
    ...     "lr": {"log_uniform": [1e-4, 1e-2]},
    ...     "mixup": {"mixture": [{"weight": 1, "value": 0}, {"weight": 1, "uniform": [0, 0.9]}]},
    ...     "epochs": 3,
    ... })
    >>> sorted(space.draw(0, seed=0))
    ['epochs', 'lr', 'mixup']

    Raises:
        TrainingError: naming the entry that cannot be read.
    """
    if not isinstance(data, Mapping) or not data:
        raise TrainingError("a search space is a mapping of names to laws, and this holds none")
    grid = data.get("grid")
    if grid is not None and not (
        isinstance(grid, Mapping) and all(isinstance(v, list) for v in grid.values())
    ):
        raise TrainingError("grid has to be a mapping of names to lists of values")
    entries = {k: _parse(k, value) for k, value in data.items() if k != "grid"}
    return Space(entries, grid)


_LAWS: Mapping[str, Callable[..., Distribution]] = {
    kind.law: kind for kind in (Uniform, LogUniform, Integer)
}


def _parse(name: str, data: Any) -> Distribution:
    if not isinstance(data, Mapping):
        return Constant(_number(data))
    if len(data) != 1:
        raise TrainingError(f"{name} has keys {', '.join(map(str, data))}; expected one law")
    law, value = next(iter(data.items()))
    if law == "choice" and isinstance(value, list):
        return Choice(tuple(map(_number, value)))
    if law == "mixture" and isinstance(value, list):
        return Mixture(tuple(_parse_option(name, option) for option in value))
    if law in _LAWS and isinstance(value, list) and len(value) == 2:
        ends = [_number(end) for end in value]
        if not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
            raise TrainingError(f"{name}: {law} runs between two numbers, and {value} are not that")
        return _LAWS[law](*ends)
    if law == "value":
        return Constant(_number(value))
    raise TrainingError(
        f"{name}: {{{law}: {value}}} is no law; expected uniform, log_uniform or int with "
        "[low, high], choice with a list, mixture with a list of options, or a plain value"
    )


def _number(value: Any) -> Any:
    """`value`, or the number it spells: YAML 1.1 reads 1e-4 (without a point) as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _parse_option(
    name: str, option: Any
) -> tuple[float, Distribution | Mapping[str, Distribution]]:
    if not isinstance(option, Mapping) or "weight" not in option:
        raise TrainingError(
            f"{name}: each option of a mixture needs a weight, and {option} has none"
        )
    rest = {key: value for key, value in option.items() if key != "weight"}
    weight, several = _number(option["weight"]), rest.get("set")
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise TrainingError(f"{name}: the weight {weight!r:.40} of an option is no number")
    if set(rest) == {"set"} and isinstance(several, Mapping):
        return weight, {key: _parse(key, value) for key, value in several.items()}
    return weight, _parse(name, rest)
