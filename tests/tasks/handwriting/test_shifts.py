"""The six changes of handwriting."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.tasks.handwriting.data import handwriting_parts
from stockpot.tasks.handwriting.shifts import (
    CORRUPTIONS,
    blur,
    contrast,
    noise,
    occlusion,
    rotation,
    translation,
)

IMAGES = handwriting_parts(200, 50, seed=0)[0].images


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_shift_is_fixed_by_its_seed_and_stays_in_range(name: str) -> None:
    before = IMAGES.copy()
    shifted = CORRUPTIONS[name](IMAGES, seed=1)
    assert np.array_equal(IMAGES, before)
    assert shifted.shape == IMAGES.shape
    assert shifted.dtype == np.float32
    assert shifted.min() >= 0
    assert shifted.max() <= 16
    assert np.array_equal(shifted, CORRUPTIONS[name](IMAGES, seed=1))
    assert (shifted != IMAGES).any((1, 2)).mean() > 0.8


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"blur"}))
def test_another_seed_gives_another_shift(name: str) -> None:
    assert not np.array_equal(CORRUPTIONS[name](IMAGES, seed=1), CORRUPTIONS[name](IMAGES, seed=2))


def test_noise_has_its_stated_strength() -> None:
    # Far from both ends of the range nothing is clipped.
    grey = np.full((500, 8, 8), 8.0, np.float32)
    assert abs(np.std(noise(grey, seed=0)) - 4.0) < 0.2


def test_blur_spreads_one_cell_over_its_neighbours() -> None:
    dot = np.zeros((1, 8, 8), np.float32)
    dot[0, 4, 4] = 16
    spread = blur(dot, seed=0)[0]
    assert spread[4, 4] < 8
    assert spread[4, 3] == pytest.approx(spread[4, 5])
    assert spread.sum() == pytest.approx(16, rel=1e-2)


def test_rotation_turns_by_15_to_35_degrees_about_the_middle() -> None:
    bar = np.zeros((50, 8, 8), np.float32)
    bar[:, 1:7, 3:5] = 16
    y, x = np.mgrid[0:8, 0:8] - 3.5
    for image in rotation(bar, seed=0):
        mass = image.sum()
        assert abs((image * y).sum() / mass) < 0.2
        assert abs((image * x).sum() / mass) < 0.2
        cov = [(image * a * b).sum() / mass for a, b in ((x, x), (y, y), (x, y))]
        angle = np.rad2deg(0.5 * np.arctan2(2 * cov[2], cov[1] - cov[0]))
        assert 11 < abs(angle) < 39


def test_translation_moves_by_one_cell() -> None:
    dot = np.zeros((40, 8, 8), np.float32)
    dot[:, 4, 4] = 16
    places = {tuple(np.argwhere(image)[0].tolist()) for image in translation(dot, seed=0)}
    assert places == {(3, 4), (5, 4), (4, 3), (4, 5)}


def test_contrast_keeps_two_fifths_of_the_range() -> None:
    full = np.zeros((50, 8, 8), np.float32)
    full[:, 0, 0] = 16
    shifted = contrast(full, seed=0)
    assert np.allclose(np.ptp(shifted, axis=(1, 2)), 6.4, atol=1e-4)


def test_occlusion_blanks_one_square_of_three() -> None:
    hidden = occlusion(np.full((30, 8, 8), 16.0, np.float32), seed=0)
    for image in hidden:
        rows, columns = np.nonzero(image == 0)
        assert len(rows) == 9
        assert np.ptp(rows) == np.ptp(columns) == 2
