"""What is done to a batch before the model sees it: crops, movements, RandAugment, mixup, CutMix.

A batch is a tuple or list whose first item is the input, or a mapping whose floating tensors are.
All randomness comes from the generator passed in, drawn on the CPU so that the device does not
matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from stockpot._optional import require
from stockpot.errors import TrainingError
from stockpot.train.config import TrainConfig

_Change = Callable[[torch.Tensor], torch.Tensor]


def map_inputs(batch: Any, change: _Change) -> Any:
    """`batch` with `change` applied to its floating inputs, targets left alone.

    Raises:
        TrainingError: it holds no floating input (token ids cannot be mixed or moved).
    """
    changed = _map(batch[0] if isinstance(batch, (tuple, list)) else batch, change)
    if changed is None:
        raise TrainingError(
            "mixup, CutMix and image augmentation need floating-point inputs, and this batch has "
            "none; set mixup, cutmix, shift_pixels, rotate_degrees and randaugment to 0, and "
            "min_crop to 1"
        )
    return (changed, *batch[1:]) if isinstance(batch, (tuple, list)) else changed


def _map(inputs: Any, change: _Change) -> Any:
    if isinstance(inputs, torch.Tensor):
        return change(inputs) if inputs.is_floating_point() else None
    if isinstance(inputs, Mapping):
        moved = {
            name: change(value)
            for name, value in inputs.items()
            if name not in ("labels", "label")
            and isinstance(value, torch.Tensor)
            and value.is_floating_point()
        }
        return {**inputs, **moved} if moved else None
    return None


def crop_images(
    images: torch.Tensor, generator: torch.Generator, *, min_share: float
) -> torch.Tensor:
    """A part of each of `images` (N, C, H, W), stretched to the old size (bilinear).

    Its share of the area is uniform from `min_share` to 1, its aspect ratio log-uniform from ¾ to
    4/3 (sides are cut at those of the image), its place uniform.

    Reference: Szegedy et al. 2014, arXiv 1409.4842, section 6.

    >>> crop_images(torch.rand(2, 3, 8, 6), torch.Generator(), min_share=0.5).shape
    torch.Size([2, 3, 8, 6])
    """
    _require_images(images)
    draws = torch.rand(len(images), 4, generator=generator)
    area = min_share + (1 - min_share) * draws[:, 0]
    stretch = torch.exp((draws[:, 1] - 0.5) * math.log(4 / 3))  # the root of the aspect ratio
    wide, high = ((area.sqrt() * s).clamp(max=1) for s in (stretch, 1 / stretch))
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide, high
    theta[:, 0, 2] = (2 * draws[:, 2] - 1) * (1 - wide)
    theta[:, 1, 2] = (2 * draws[:, 3] - 1) * (1 - high)
    # The outermost samples of a crop at the edge lie within half a pixel outside the image.
    return _sampled(images, theta, outside="border")


def move_images(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    shift_pixels: float = 0.0,
    rotate_degrees: float = 0.0,
) -> torch.Tensor:
    """Each of `images` (N, C, H, W) turned and shifted by its own amounts, uniform in ± the limits.

    Bilinear; what comes in from outside is 0. Plain torch, so that it needs no extra package.

    >>> images = torch.ones(2, 1, 4, 4)
    >>> moved = move_images(images, torch.Generator().manual_seed(0), rotate_degrees=45)
    >>> moved.shape, bool((moved <= 1).all()), bool((moved == 1).all())
    (torch.Size([2, 1, 4, 4]), True, False)
    """
    _require_images(images)
    n, _, height, width = images.shape
    draws = torch.rand(n, 3, generator=generator) * 2 - 1
    angle = draws[:, 0] * math.radians(rotate_degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # grid_sample's coordinates run from -1 to 1 over each side: a turn must keep pixels square.
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos, -sin * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sin * width / height, cos
    theta[:, 0, 2] = draws[:, 1] * 2 * shift_pixels / width
    theta[:, 1, 2] = draws[:, 2] * 2 * shift_pixels / height
    return _sampled(images, theta, outside="zeros")


def _require_images(images: torch.Tensor) -> None:
    if images.ndim != 4:
        raise TrainingError(f"images have shape {tuple(images.shape)}, expected (N, C, H, W)")


def _sampled(images: torch.Tensor, theta: torch.Tensor, *, outside: str) -> torch.Tensor:
    """`images` seen through affine maps `theta` (N, 2, 3) of coordinates from -1 to 1."""
    theta = theta.to(images.device, images.dtype)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def rand_augment(
    images: torch.Tensor, generator: torch.Generator, *, m: int, n: int
) -> torch.Tensor:
    """RandAugment of `images` (N, C, H, W) in [0, 1]: `n` operations of magnitude `m` (0..30) each.

    Operations are drawn per image, not once per batch as kornia does by itself; m = 0 or n = 0
    leaves the images as they are; grey images stay grey. Needs the extra `vision`.

    Reference: Cubuk et al. 2019, arXiv 1909.13719.
    """
    if m == 0 or n == 0:
        return images
    kornia = require("kornia.augmentation.auto", extra="vision")
    operation = kornia.RandAugment(n=n, m=m)
    grey = images.shape[1] == 1
    seeds = torch.randint(0, 2**31 - 1, (len(images),), generator=generator).tolist()
    wide = images.expand(-1, 3, -1, -1) if grey else images
    rows = []
    # kornia draws from the global generators; the fork leaves them as they were.
    with torch.random.fork_rng():
        for row, seed in zip(wide.float(), seeds, strict=True):
            torch.manual_seed(seed)
            rows.append(operation(row[None]))
    result = torch.cat(rows).to(images.dtype)
    return result.mean(1, keepdim=True) if grey else result


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: each example keeps `share` of itself and takes the rest from `partner`.

    `box` (top, left, height, width) is the part that CutMix pastes; None for mixup.
    """

    share: float
    partner: torch.Tensor
    box: tuple[int, int, int, int] | None = None


def draw_mix(config: TrainConfig, n: int, size: tuple[int, ...], generator: torch.Generator) -> Mix:
    """Mixing of a batch of `n` examples of spatial `size`, drawn from `generator`.

    share ~ Beta(α, α). For CutMix it is then corrected to the area that really stays, since the box
    is cut at the edges. References: Zhang et al. 2017, arXiv 1710.09412; Yun et al. 2019, arXiv
    1905.04899.
    """
    use_cutmix = config.cutmix > 0
    if config.cutmix > 0 and config.mixup > 0:
        use_cutmix = bool(torch.rand((), generator=generator) < 0.5)
    share = _beta(config.cutmix if use_cutmix else config.mixup, generator)
    partner = torch.randperm(n, generator=generator)
    if not use_cutmix:
        return Mix(share, partner)
    if len(size) < 2:
        raise TrainingError("CutMix needs images (N, C, H, W); use mixup for other inputs")
    box = _draw_box(size[-2], size[-1], share, generator)
    return Mix(1 - box[2] * box[3] / (size[-2] * size[-1]), partner, box)


def mix_inputs(inputs: torch.Tensor, mix: Mix) -> torch.Tensor:
    """`inputs` (N, …) mixed with those of their partners."""
    other = inputs[mix.partner.to(inputs.device)]
    if mix.box is None:
        return inputs.lerp(other, 1 - mix.share)
    top, left, height, width = mix.box
    mixed = inputs.clone()
    window = (..., slice(top, top + height), slice(left, left + width))
    mixed[window] = other[window]
    return mixed


def _draw_box(
    height: int, width: int, share: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    side = math.sqrt(1 - share)
    h, w = round(height * side), round(width * side)
    row, column = (int(torch.randint(0, s, (), generator=generator)) for s in (height, width))
    top, left = max(0, row - h // 2), max(0, column - w // 2)
    bottom, right = min(height, row - h // 2 + h), min(width, column - w // 2 + w)
    return top, left, bottom - top, right - left


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Beta(α, α) from two Gamma(α) draws: torch.distributions takes no generator."""
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator).tolist()
    return float(a / (a + b)) if a + b > 0 else float(torch.rand((), generator=generator) < 0.5)


@dataclass(frozen=True)
class ImageTransform:
    """Crops, movements and RandAugment of a configuration, as the `augment` of a task.

    >>> moved = ImageTransform(TrainConfig(shift_pixels=1.0))
    >>> images, labels = moved([torch.ones(2, 1, 4, 4), torch.zeros(2)], torch.Generator())
    >>> images.shape, labels.shape
    (torch.Size([2, 1, 4, 4]), torch.Size([2]))
    """

    config: TrainConfig

    def __call__(self, batch: Any, generator: torch.Generator) -> Any:
        """`batch` with its images augmented.

        Raises:
            TrainingError: it holds no images.
        """
        return map_inputs(batch, lambda images: augment_images(self.config, images, generator))


def changes_images(config: TrainConfig) -> bool:
    """Whether `augment_images` does anything."""
    moves = config.shift_pixels > 0 or config.rotate_degrees > 0
    return moves or config.min_crop < 1 or (config.randaugment_m > 0 and config.randaugment_n > 0)


def augment_images(
    config: TrainConfig, images: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """`images` with the configuration's crops, movements and RandAugment."""
    if config.min_crop < 1:
        images = crop_images(images, generator, min_share=config.min_crop)
    if config.shift_pixels > 0 or config.rotate_degrees > 0:
        images = move_images(
            images,
            generator,
            shift_pixels=config.shift_pixels,
            rotate_degrees=config.rotate_degrees,
        )
    if config.randaugment_m > 0 and config.randaugment_n > 0:
        images = rand_augment(images, generator, m=config.randaugment_m, n=config.randaugment_n)
    return images
