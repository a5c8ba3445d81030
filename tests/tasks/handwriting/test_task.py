"""The handwriting task and the task of its base."""

from __future__ import annotations

import torch

from stockpot.evaluate.task import Role, Task
from stockpot.tasks.handwriting import SHIFTS, base_task, handwriting


def test_splits_have_their_roles_and_order() -> None:
    task = handwriting(n_fonts=20)
    assert isinstance(task, Task)
    roles = {name: split.role for name, split in task.splits.items()}
    assert roles == {
        "held-out": Role.HELD_OUT,
        "test": Role.TEST,
        **dict.fromkeys(SHIFTS, Role.SHIFT),
    }
    assert list(roles) == ["held-out", "test", *SHIFTS]
    assert len(SHIFTS) == 7


def test_shifts_of_handwriting_show_the_digits_of_the_test_split() -> None:
    task = handwriting(n_fonts=20)
    labels = {name: split.dataset.tensors[1] for name, split in task.splits.items()}
    for name in set(SHIFTS) - {"fonts"}:
        assert torch.equal(labels[name], labels["test"])


def test_equal_seeds_give_equal_data_and_others_do_not() -> None:
    first, again, other = (handwriting(seed=s, n_fonts=20) for s in (5, 5, 6))
    for name in first.splits:
        images = [t.splits[name].dataset.tensors[0] for t in (first, again, other)]
        assert torch.equal(images[0], images[1]), name
        assert not torch.equal(images[0], images[2]), name


def test_a_batch_goes_from_the_data_to_a_loss() -> None:
    task = handwriting(n_fonts=20)
    batch = next(iter(task.batches(task.train_set, batch_size=8)))
    loss = task.loss(task.predict(task.build(), batch), task.targets(batch))
    assert loss.shape == ()
    assert torch.isfinite(loss)


def test_the_base_trains_on_other_pictures_than_it_is_scored_on() -> None:
    task = base_task(n_train=40, n_held_out=40)
    images = task.train_set.tensors[0]
    assert not torch.equal(images, task.splits["held-out"].dataset.tensors[0])
    assert list(task.splits) == ["held-out"]


def test_the_base_can_be_trained_on_noisy_print() -> None:
    plain, noisy, again = (
        base_task(seed=3, n_train=200, n_held_out=20, noise=n) for n in (0, 5, 5)
    )
    a, b, c = (task.train_set.tensors[0] for task in (plain, noisy, again))
    assert torch.equal(b, c)
    assert ((b >= 0) & (b <= 1)).all()
    strength = (b - a).flatten(1).std(1) * 16
    assert 0 < float(strength.min()) < 1 < 2 < float(strength.max()) < 5
    held_out = [task.splits["held-out"].dataset.tensors[0] for task in (plain, noisy)]
    assert torch.equal(*held_out)
