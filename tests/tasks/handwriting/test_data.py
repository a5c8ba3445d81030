"""The parts of the handwriting set."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.tasks.handwriting.data import Digits, as_dataset, handwriting_parts


def as_rows(digits: Digits) -> set[bytes]:
    return {image.tobytes() for image in digits.images}


def test_parts_are_disjoint_and_together_the_whole_set() -> None:
    parts = handwriting_parts(400, 500, seed=0)
    assert [len(part) for part in parts] == [400, 500, 897]
    train, held_out, test = map(as_rows, parts)
    assert not train & held_out
    assert not train & test
    assert not held_out & test


def test_parts_are_stratified() -> None:
    for part in handwriting_parts(400, 500, seed=1):
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert np.abs(shares - 0.1).max() < 0.01


def test_the_seed_decides_the_parts() -> None:
    first, again, other = (handwriting_parts(50, 50, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 1797"):
        handwriting_parts(1000, 797, seed=0)


def test_a_dataset_gives_images_between_0_and_1_with_a_channel() -> None:
    train, _, _ = handwriting_parts(50, 50, seed=0)
    image, label = as_dataset(train)[0]
    assert image.shape == (1, 8, 8)
    assert float(image.max()) == 1.0
    assert int(label) == train.labels[0]


def test_a_smaller_test_part_can_be_asked_for() -> None:
    assert [len(part) for part in handwriting_parts(50, 50, 60, seed=0)] == [50, 50, 60]
