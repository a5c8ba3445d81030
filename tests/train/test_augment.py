from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stockpot.errors import TrainingError
from stockpot.train.augment import (
    Mix,
    draw_mix,
    map_inputs,
    mix_inputs,
    move_images,
    rand_augment,
)
from stockpot.train.config import TrainConfig
from stockpot.train.step import smoothed_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_movement_leaves_images_alone() -> None:
    images = torch.rand(3, 2, 8, 6, generator=generator())
    assert torch.allclose(move_images(images, generator()), images, atol=1e-6)


def test_a_shift_moves_by_at_most_that_many_pixels() -> None:
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    moved = move_images(images, generator(), shift_pixels=2)
    rows = (moved.sum((1, 3)) * torch.arange(9)).sum(1)
    columns = (moved.sum((1, 2)) * torch.arange(9)).sum(1)
    for centre in (rows, columns):
        assert float((centre - 4).abs().max()) <= 2 + 1e-4
        assert float((centre - 4).abs().max()) > 1.5


def test_a_turn_keeps_the_pixels_square() -> None:
    """A bar turned by 90° in an oblong image keeps its length."""
    images = torch.zeros(1, 1, 9, 21)
    images[0, 0, 4, 8:13] = 1
    fixed = generator()
    turned = move_images(images, fixed, rotate_degrees=0)
    assert torch.allclose(turned, images, atol=1e-6)
    draw = torch.rand(1, 3, generator=generator(3)) * 2 - 1
    degrees = 90 / float(draw[0, 0])
    turned = move_images(images, generator(3), rotate_degrees=abs(degrees))
    assert turned[0, 0, 2:7, 10].sum() == pytest.approx(5, abs=1e-3)
    assert turned.sum() == pytest.approx(5, abs=1e-3)


def test_mixup_takes_the_stated_share() -> None:
    inputs = torch.tensor([[0.0], [10.0]])
    mixed = mix_inputs(inputs, Mix(0.75, torch.tensor([1, 0])))
    assert mixed.tolist() == [[2.5], [7.5]]


def test_cutmix_share_is_the_area_that_stays() -> None:
    config = TrainConfig(cutmix=1.0)
    random = generator()
    for _ in range(50):
        mix = draw_mix(config, 2, (8, 8), random)
        mixed = mix_inputs(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]), mix)
        if mix.partner.tolist() == [1, 0]:
            assert float(mixed[0].mean()) == pytest.approx(1 - mix.share)


def test_mixup_shares_follow_the_beta_distribution() -> None:
    from scipy import stats

    random = generator()
    shares = [draw_mix(TrainConfig(mixup=0.4), 2, (), random).share for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_only_floating_inputs_are_changed() -> None:
    batch = {
        "pixels": torch.ones(2),
        "ids": torch.ones(2, dtype=torch.int64),
        "labels": torch.ones(2),
    }
    changed = map_inputs(batch, lambda x: x * 2)
    assert changed["pixels"].tolist() == [2, 2]
    assert changed["ids"] is batch["ids"]
    assert changed["labels"] is batch["labels"]


def test_token_ids_cannot_be_mixed() -> None:
    with pytest.raises(TrainingError, match="floating-point inputs"):
        map_inputs((torch.ones(2, dtype=torch.int64), torch.zeros(2)), lambda x: x)


def test_smoothing_is_torchs() -> None:
    logits = torch.randn(6, 5, generator=generator())
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    plain = functional.cross_entropy(logits, targets)
    expected = functional.cross_entropy(logits, targets, label_smoothing=0.2)
    assert torch.allclose(smoothed_loss(plain, logits, 0.2), expected)


def test_smoothing_of_scalars_is_refused() -> None:
    with pytest.raises(TrainingError, match="needs logits"):
        smoothed_loss(torch.zeros(()), torch.zeros(3), 0.1)


@pytest.mark.parametrize(("m", "n"), [(0, 2), (9, 0)])
def test_rand_augment_of_no_magnitude_or_no_operation_is_nothing(m: int, n: int) -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator())
    assert rand_augment(images, generator(), m=m, n=n) is images


def test_rand_augment_keeps_grey_images_grey_and_draws_per_image() -> None:
    row = torch.rand(1, 1, 8, 8, generator=generator())
    images = row.expand(16, -1, -1, -1)
    before = torch.get_rng_state()
    changed = rand_augment(images, generator(), m=20, n=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert changed.shape == images.shape
    assert len({tuple(x.flatten().tolist()) for x in changed}) > 5
    again = rand_augment(images, generator(), m=20, n=2)
    assert torch.equal(changed, again)
