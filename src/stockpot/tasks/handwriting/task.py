"""The two tasks of the example: reading handwriting, and reading print to start from."""

from __future__ import annotations

from stockpot.evaluate.task import Role, Split
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.handwriting.data import Digits, as_dataset, handwriting_parts
from stockpot.tasks.handwriting.fonts import SEEN_FACES, UNSEEN_FACES, render, shipped
from stockpot.tasks.handwriting.network import make_network
from stockpot.tasks.handwriting.shifts import CORRUPTIONS, uneven_noise

SHIFTS = (*CORRUPTIONS, "fonts")
"""Names of the seven shift splits, in the order in which they are reported."""

# Of what the network and the metric are; the data are keyed by their own fingerprints.
_VERSION = "handwriting-1"
# Streams of random numbers that must not run alike: seed * _STREAMS + one of these.
_STREAMS = 16
_FONTS, _BASE_TRAIN, _BASE_HELD_OUT, _FIRST_SHIFT = 0, 1, 2, 3
_BASE_NOISE = 15


def handwriting(
    *,
    seed: int = 0,
    n_train: int = 100,
    n_held_out: int = 500,
    n_test: int | None = None,
    n_fonts: int = 1000,
) -> ClassificationTask:
    """Reading handwritten digits after seeing `n_train` of them; the built-in `--task handwriting`.

    `seed` decides which digits are for fine-tuning, held-out and test, and the shifts; equal seeds
    give equal data. The base of `base_task` is a zero-shot model of this task: it shares the
    classes and has seen no handwriting.

    Splits: `held-out` to choose; `test` (`n_test` digits, None for all that are left) and the seven
    `SHIFTS` to report. Six shifts change the
    very digits of `test`; `fonts` are `n_fonts` printed digits from faces kept from the base, and
    stand beside the average over the shifts. One of the five faces needs matplotlib 3.11.

    >>> task = handwriting(n_fonts=20)
    >>> [(name, len(split.dataset)) for name, split in task.splits.items()][:2]
    [('held-out', 500), ('test', 1197)]
    """
    train, held_out, test = handwriting_parts(n_train, n_held_out, n_test, seed=seed)
    stream = seed * _STREAMS
    shifted = {
        name: Digits(change(test.images, seed=stream + _FIRST_SHIFT + i), test.labels)
        for i, (name, change) in enumerate(CORRUPTIONS.items())
    }
    fonts = Digits(*render(shipped(UNSEEN_FACES), n_fonts, seed=stream + _FONTS))
    return ClassificationTask(
        build=make_network,
        splits={
            "held-out": Split(as_dataset(held_out), role=Role.HELD_OUT),
            "test": Split(as_dataset(test), role=Role.TEST),
            **{
                # The same digits in the same order: their average resamples them jointly.
                name: Split(as_dataset(digits), role=Role.SHIFT, images="test")
                for name, digits in shifted.items()
            },
            # What the base was trained for is no shift for the base.
            "fonts": Split(as_dataset(fonts), role=Role.SHIFT, averaged=False),
        },
        train_set=as_dataset(train),
        version=_VERSION,
    )


def base_task(
    *, seed: int = 0, n_train: int = 6000, n_held_out: int = 320, noise: float = 0.0
) -> ClassificationTask:
    """Reading printed digits: what the base, the common start of all ingredients, is trained on.

    `train_set` and the `held-out` split are renderings of `SEEN_FACES`; there is no handwriting in
    them, and none of the faces of `handwriting`'s `fonts` split. Each training digit has Gaussian
    noise of its own strength, uniform from 0 to `noise` (of ink counted 0..16).

    >>> len(base_task(n_train=40, n_held_out=20).train_set)
    40
    """
    stream = seed * _STREAMS
    held_out = Digits(*render(SEEN_FACES, n_held_out, seed=stream + _BASE_HELD_OUT))
    train = Digits(*render(SEEN_FACES, n_train, seed=stream + _BASE_TRAIN))
    noisy = Digits(uneven_noise(train.images, noise, seed=stream + _BASE_NOISE), train.labels)
    return ClassificationTask(
        build=make_network,
        splits={"held-out": Split(as_dataset(held_out), role=Role.HELD_OUT)},
        train_set=as_dataset(noisy),
        version=_VERSION,
    )
