"""Six ways in which handwriting may look other than at training: functions of counts 0..16.

Each is fixed by its seed and keeps values within 0..16, shape (n, 8, 8), float32. Strengths were
set so that every shift costs a fine-tuned network something and none reduces it to guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]


def noise(images: Images, *, seed: int) -> Images:
    """Gaussian noise of standard deviation 4 (of 16) on every cell."""
    rng = np.random.default_rng(seed)
    return _clipped(images + rng.normal(0.0, 4.0, images.shape))


def uneven_noise(images: Images, most: float, *, seed: int) -> Images:
    """Gaussian noise on every cell, of a standard deviation in 0..`most` for each image."""
    if most == 0:
        return images
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0.0, most, (len(images), 1, 1))
    return _clipped(images + strength * rng.normal(size=images.shape))


def blur(images: Images, *, seed: int) -> Images:
    """Gaussian blur of standard deviation 0.8 cells; `seed` changes nothing."""
    from scipy.ndimage import gaussian_filter

    del seed
    return _clipped(gaussian_filter(images, (0.0, 0.8, 0.8), mode="constant"))


def rotation(images: Images, *, seed: int) -> Images:
    """A turn by 15 to 35 degrees, to either side."""
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(seed)
    angles = np.deg2rad(rng.uniform(15.0, 35.0, len(images)) * rng.choice([-1, 1], len(images)))
    turned = np.empty_like(images)
    centre = np.full(2, 3.5)
    for i, (image, angle) in enumerate(zip(images, angles, strict=True)):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        turned[i] = affine_transform(image, matrix, centre - matrix @ centre, order=1)
    return _clipped(turned)


def translation(images: Images, *, seed: int) -> Images:
    """A move by one cell to one of the four sides; what leaves the frame is lost."""
    rng = np.random.default_rng(seed)
    moved = np.zeros_like(images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    sides = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])[rng.integers(4, size=len(images))]
    for i, (down, right) in enumerate(sides):
        moved[i] = padded[i, 1 - down : 9 - down, 1 - right : 9 - right]
    return moved


def contrast(images: Images, *, seed: int) -> Images:
    """Faint ink on grey paper: the range 0..16 shrinks to two fifths, above a level of its own."""
    rng = np.random.default_rng(seed)
    paper = rng.uniform(0.0, 8.0, (len(images), 1, 1))
    return _clipped(paper + images * np.float32(0.4))


def occlusion(images: Images, *, seed: int) -> Images:
    """A blank square of 3×3 cells somewhere in the frame."""
    rng = np.random.default_rng(seed)
    hidden = images.copy()
    for i, (top, left) in enumerate(rng.integers(0, 6, (len(images), 2))):
        hidden[i, top : top + 3, left : left + 3] = 0
    return hidden


CORRUPTIONS: Mapping[str, Callable[..., Images]] = MappingProxyType(
    {
        "noise": noise,
        "blur": blur,
        "rotation": rotation,
        "translation": translation,
        "contrast": contrast,
        "occlusion": occlusion,
    }
)
"""The shifts of handwriting by name; the seventh, `fonts`, is other data."""


def _clipped(images: npt.NDArray[np.floating]) -> Images:
    clipped: Images = np.clip(images, 0, 16).astype(np.float32)
    return clipped
