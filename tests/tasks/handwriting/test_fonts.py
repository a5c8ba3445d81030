"""Digits from fonts."""

from __future__ import annotations

import numpy as np

from stockpot.tasks.handwriting.fonts import SEEN_FACES, UNSEEN_FACES, block_counts, render, shipped


def test_a_block_counts_its_black_pixels() -> None:
    bitmap = np.zeros((32, 32), bool)
    bitmap[0:4, 4:8] = True
    bitmap[31, 31] = True
    counts = block_counts(bitmap)
    assert counts.shape == (8, 8)
    assert (counts[0, 1], counts[7, 7], counts.sum()) == (16, 1, 17)


def test_counts_are_whole_numbers_from_0_to_16_and_classes_balanced() -> None:
    images, labels = render(shipped(UNSEEN_FACES), 60, seed=0)
    assert images.dtype == np.float32
    assert np.array_equal(images, np.round(images))
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [6] * 10


def test_a_seed_fixes_every_pixel_and_another_seed_changes_them() -> None:
    first, _ = render(SEEN_FACES, 20, seed=3)
    again, _ = render(SEEN_FACES, 20, seed=3)
    other, _ = render(SEEN_FACES, 20, seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_face_shows_ten_digits_that_differ() -> None:
    for face in (*SEEN_FACES, *shipped(UNSEEN_FACES)):
        images, _ = render([face], 10, seed=0)
        assert (images.sum((1, 2)) > 40).all(), face
        flat = images.reshape(10, -1)
        distances = np.abs(flat[:, None] - flat[None]).sum(-1) + np.eye(10) * 1e9
        assert distances.min() > 50, face


def test_all_faces_are_shipped_but_one_that_came_later() -> None:
    assert shipped(SEEN_FACES) == SEEN_FACES
    assert set(UNSEEN_FACES) - set(shipped(UNSEEN_FACES)) <= {"cmti10"}


def test_no_face_is_both_seen_and_unseen() -> None:
    assert not set(SEEN_FACES) & set(UNSEEN_FACES)


def test_digits_fill_the_frame_about_as_handwriting_does() -> None:
    from sklearn.datasets import load_digits

    images, _ = render(SEEN_FACES, 320, seed=0)
    handwriting = load_digits().images
    assert abs(images.mean() - handwriting.mean()) < 1.0
    assert np.abs(images.mean((0, 1)) - handwriting.mean((0, 1))).max() < 4
