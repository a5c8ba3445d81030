from __future__ import annotations

import pytest
import torch

from stockpot.errors import TrainingError
from stockpot.train.augment import (
    Mix,
    augment_images,
    changes_images,
    crop_images,
    draw_mix,
    map_inputs,
    mix_inputs,
    move_images,
    rand_augment,
)
from stockpot.train.config import TrainConfig


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


def test_crops_show_a_part_of_the_share_that_is_asked_for() -> None:
    """On an image whose pixels are their own coordinates, the span seen is the side of the crop."""
    size = 64
    along = torch.arange(size, dtype=torch.float32)
    images = torch.stack([along.expand(size, size), along[:, None].expand(size, size)])
    images = images.expand(400, 2, size, size)
    cropped = crop_images(images, generator(), min_share=0.3)
    wide, high = (
        (cropped[:, i].flatten(1).amax(1) - cropped[:, i].flatten(1).amin(1)) / (size - 1)
        for i in (0, 1)
    )
    shares, ratios = wide * high, wide / high
    assert 0.25 < float(shares.min()) < 0.35, "the least share, less half a pixel at each edge"
    assert float(shares.max()) > 0.9
    assert float(shares.mean()) == pytest.approx(0.63, abs=0.04), "large crops lose their corners"
    assert 0.7 < float(ratios.min()) < 0.8 < 1.25 < float(ratios.max()) < 1.4
    left = cropped[:, 0].flatten(1).amin(1)
    small = wide < 0.7
    assert float(left[small].min()) < 3
    assert float(left[small].max()) > 0.3 * size


def test_each_image_has_a_crop_of_its_own_and_the_generator_decides_it() -> None:
    images = torch.rand(1, 1, 8, 8, generator=generator()).expand(5, 1, 8, 8)
    first = crop_images(images, generator(1), min_share=0.5)
    assert torch.equal(first, crop_images(images, generator(1), min_share=0.5))
    assert not torch.allclose(first[0], first[1])
    assert not torch.equal(first, crop_images(images, generator(2), min_share=0.5))
    ones = torch.ones(20, 3, 7, 5)
    assert torch.allclose(crop_images(ones, generator(), min_share=0.05), ones), "no edge is seen"


def test_what_is_no_image_is_not_cropped() -> None:
    with pytest.raises(TrainingError, match=r"expected .N, C, H, W."):
        crop_images(torch.ones(2, 5), generator(), min_share=0.5)


@pytest.mark.parametrize(
    ("change", "does"),
    [({"min_crop": 0.5}, True), ({"shift_pixels": 1}, True), ({"rotate_degrees": 5}, True),
     ({"randaugment_m": 3, "randaugment_n": 1}, True), ({"randaugment_m": 3}, False), ({}, False)],
)  # fmt: skip
def test_a_configuration_knows_whether_it_changes_images(change: dict, does: bool) -> None:
    config = TrainConfig(**change)
    assert changes_images(config) is does
    if "randaugment_n" not in change:
        images = torch.rand(4, 3, 8, 8, generator=generator())
        assert torch.equal(augment_images(config, images, generator()), images) is not does


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
