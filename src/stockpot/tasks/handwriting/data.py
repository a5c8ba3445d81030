"""Handwritten digits cut into fine-tuning, held-out and test parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Digits:
    """Images and what they show.

    `images`: float32 (n, 8, 8), ink per cell, whole numbers 0..16 before any shift. `labels`: int64
    (n,), 0..9.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def handwriting_parts(
    n_train: int, n_held_out: int, n_test: int | None = None, *, seed: int
) -> tuple[Digits, Digits, Digits]:
    """The 1,797 UCI digits as (fine-tuning, held-out, test): disjoint, stratified by class.

    With `n_test` None the test part is everything that is left. Digits of one writer may lie in
    several parts: the set says nothing about writers.

    Raises:
        ValueError: the parts ask for more digits than there are.

    >>> [len(part) for part in handwriting_parts(400, 500, seed=0)]
    [400, 500, 897]
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images, labels = bunch.images.astype(np.float32), bunch.target.astype(np.int64)
    n_rest = n_train + n_held_out
    if n_rest + (1 if n_test is None else n_test) > len(labels):
        raise ValueError(
            f"{n_train} training and {n_held_out} held-out digits leave too few to test on: "
            f"there are {len(labels)}; ask for fewer"
        )
    rest, test = train_test_split(
        np.arange(len(labels)),
        train_size=n_rest,
        test_size=n_test,
        stratify=labels,
        random_state=seed,
    )
    train, held_out = train_test_split(
        rest, train_size=n_train, stratify=labels[rest], random_state=seed
    )
    train, held_out, test = (Digits(images[i], labels[i]) for i in (train, held_out, test))
    return train, held_out, test


def as_dataset(digits: Digits) -> TensorDataset:
    """Pairs of a float32 image (1, 8, 8), ink 0..1, and an int64 label, for torch."""
    import torch
    from torch.utils.data import TensorDataset

    images = torch.from_numpy(digits.images[:, None] / np.float32(16))
    return TensorDataset(images, torch.from_numpy(digits.labels))
