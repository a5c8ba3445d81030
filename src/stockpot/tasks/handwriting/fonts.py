"""Digits rendered from fonts and made into 8×8 counts as the UCI handwritten digits were.

The UCI set was made from scanned forms: each digit's 32×32 black-and-white bitmap, filling the
height, is cut into 4×4 blocks and the black pixels of each block are counted (Alpaydin and Kaynak,
1998). Here the black and white bitmap comes from an outline font instead. A glyph is rendered large
once and turned into a signed distance; a digit is that distance read at distorted coordinates and
thresholded, so that its pen may be thicker or thinner than the font's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEEN_FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
"""Faces that a base model is trained on; matplotlib ships all of them."""

UNSEEN_FACES = ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
"""Faces kept for the `fonts` shift: the whole Computer Modern family, so no sibling is trained on.

Its `cmmi10` has digits of mixed styles, and the display, symbol and size faces have none.
"""

_EM = 96  # pixels: the large rendering
_COARSE = 48  # points a side: enough to find the extent of a distorted digit
_BOX = 32  # pixels a side of the UCI bitmaps


def render(
    faces: Sequence[str], n: int, *, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """`n` distorted digits from `faces`, and their labels.

    Digits and faces take turns, so that every (face, digit) pair occurs equally often up to one.
    Each digit draws its own slant, rotation, stretch, pen width, smooth warp, size and place. The
    pixels also depend on the version of FreeType inside matplotlib: equal seeds give equal arrays
    on one installation.

    Returns:
        Counts of shape (n, 8, 8), whole numbers 0..16 as float32, and labels of shape (n,) 0..9.

    >>> images, labels = render(["DejaVuSans"], 3, seed=0)
    >>> images.shape, labels.tolist(), float(images.max())
    ((3, 8, 8), [0, 1, 2], 16.0)
    """
    rng = np.random.default_rng(seed)
    images = np.empty((n, 8, 8), np.float32)
    labels = np.arange(n) % 10
    for i in range(n):
        distance = _glyph(faces[i // 10 % len(faces)], int(labels[i]))
        images[i] = block_counts(_bitmap(distance, rng))
    return images, labels.astype(np.int64)


def block_counts(bitmap: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Black pixels in each 4×4 block: (32, 32) bool → (8, 8) float32, whole numbers 0..16."""
    counts: npt.NDArray[np.float32] = bitmap.reshape(8, 4, 8, 4).sum((1, 3)).astype(np.float32)
    return counts


def shipped(faces: Sequence[str]) -> tuple[str, ...]:
    """Those of `faces` that the installed matplotlib has: `cmti10` came with 3.11."""
    return tuple(face for face in faces if _file(face).exists())


def _file(face: str) -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@lru_cache(maxsize=256)
def _glyph(face: str, digit: int) -> npt.NDArray[np.float32]:
    """Signed distance to the outline in units of the digit's height, > 0 inside, margins of ½."""
    from matplotlib.ft2font import FT2Font
    from scipy.ndimage import distance_transform_edt

    font = FT2Font(str(_file(face)))
    font.set_size(_EM, 72)
    font.set_text(str(digit))
    font.draw_glyphs_to_bitmap(antialiased=False)
    ink = np.asarray(font.get_image()) > 0
    ink = ink[np.ix_(ink.any(1), ink.any(0))]
    height, width = ink.shape
    side = 2 * height
    canvas = np.zeros((side, side), bool)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = ink
    distance = distance_transform_edt(canvas) - distance_transform_edt(~canvas)
    result: npt.NDArray[np.float32] = (distance / height).astype(np.float32)
    return result


def _bitmap(distance: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A distorted black and white digit that fills the height of a 32×32 bitmap, True = ink."""
    turn, shear = rng.normal(0.0, 0.15), rng.normal(0.0, 0.2)
    stretch = np.exp(rng.normal(0.0, 0.15))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin + shear, cos]]) @ np.diag([1.0, stretch])
    pen = rng.uniform(-0.015, 0.05)
    # Three waves each way: a smooth warp that bends strokes without tearing them.
    waves = rng.normal(0.0, 0.035, (2, 3))
    phases = rng.uniform(0.0, 2 * np.pi, (2, 3))

    def ink(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether the points (y, x), in heights from the centre, are black."""
        return _sample(distance, *_warp(matrix, waves, phases, y, x)) > -pen

    line = np.linspace(-0.9, 0.9, _COARSE)
    coarse = ink(*np.meshgrid(line, line, indexing="ij"))
    rows, columns = line[coarse.any(1)], line[coarse.any(0)]
    height = rows[-1] - rows[0] + line[1] - line[0]
    width = columns[-1] - columns[0] + line[1] - line[0]
    # UCI digits fill the height and about three quarters of the width; a narrow one stays narrow.
    scale_y = height / _BOX * rng.uniform(0.95, 1.2)
    scale_x = max(width / rng.uniform(18.0, 25.0), 0.55 * height / _BOX)
    centre_y = (rows[0] + rows[-1]) / 2 + scale_y * rng.normal(0.0, 1.5)
    centre_x = (columns[0] + columns[-1]) / 2 + scale_x * rng.normal(0.0, 2.0)
    pixels = np.arange(_BOX) - (_BOX - 1) / 2
    return ink(
        *np.meshgrid(centre_y + pixels * scale_y, centre_x + pixels * scale_x, indexing="ij")
    )


def _warp(
    matrix: npt.NDArray[np.float64],
    waves: npt.NDArray[np.float64],
    phases: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points of the glyph that the points (y, x) of the picture show."""
    source_y = matrix[0, 0] * y + matrix[0, 1] * x
    source_x = matrix[1, 0] * y + matrix[1, 1] * x
    for k in range(waves.shape[1]):
        source_y = source_y + waves[0, k] * np.sin((k + 1) * 2.0 * x + phases[0, k])
        source_x = source_x + waves[1, k] * np.sin((k + 1) * 2.0 * y + phases[1, k])
    return source_y, source_x


def _sample(
    distance: npt.NDArray[np.float32], y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """`distance` at the nearest pixels of points given in heights from the centre."""
    side = distance.shape[0]
    half = (side - 1) / 2
    row = np.clip(np.rint(y * side / 2 + half), 0, side - 1).astype(np.intp)
    column = np.clip(np.rint(x * side / 2 + half), 0, side - 1).astype(np.intp)
    found: npt.NDArray[np.float32] = distance[row, column]
    return found
